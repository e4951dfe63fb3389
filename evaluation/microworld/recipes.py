"""How the two shipped micro models are pretrained: sizes, phases, seeds."""

from __future__ import annotations

from evaluation.microworld.corpora import repeated_words, student_lines, student_readings, teacher_edits
from evaluation.microworld.pretraining import Phase, Shape

STUDENT_SHAPE = Shape(hidden=96, layers=4, intermediate=256)
"""0.53 million parameters."""
TEACHER_SHAPE = Shape(hidden=128, layers=4, intermediate=384)
"""0.97 million parameters."""


def student_phases(seed: int, scale: float = 1.0) -> list[Phase]:
    """Return the student's pretraining: known facts throughout, reading exercises of growing size beside them."""
    lines = student_lines(seed)
    return [
        Phase(round(500 * scale), ((repeated_words(seed), 64),)),
        Phase(round(400 * scale), ((lines, 192), (student_readings(seed, largest=2), 24))),
        Phase(round(1600 * scale), ((lines, 192), (student_readings(seed), 16))),
    ]


def teacher_phases(seed: int, scale: float = 1.0) -> list[Phase]:
    """Return the teacher's pretraining: true edits on growing passages first, the mixture of useful and useless last."""
    return [
        Phase(round(500 * scale), ((repeated_words(seed), 64),)),
        Phase(round(400 * scale), ((teacher_edits(seed, clean=True, largest=2), 32),)),
        Phase(round(1000 * scale), ((teacher_edits(seed, clean=True), 24),)),
        Phase(round(1000 * scale), ((teacher_edits(seed, clean=False), 24),)),
    ]
