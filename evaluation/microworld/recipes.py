"""How the two shipped micro models are pretrained: sizes, phases, seeds."""

from __future__ import annotations

from evaluation.microworld.corpora import repeated_words, student_lines, student_readings, teacher_edits
from evaluation.microworld.pretraining import Phase, Shape

STUDENT_SHAPE = Shape(hidden=96, layers=4, intermediate=256)
"""0.53 million parameters."""
TEACHER_SHAPE = Shape(hidden=128, layers=4, intermediate=384)
"""0.97 million parameters."""

LONG_EDITS = (8, 14)
"""Fewest and most lines of an edit while binding is learned: a passage costs the same however much is asked of it."""


def student_phases(seed: int) -> list[Phase]:
    """Return the student's pretraining: copying first, then facts throughout, with passages of growing size to read.

    Copying stays in every phase: without it both models forgot it within a few hundred steps of other texts.
    """
    copying, lines = repeated_words(seed), student_lines(seed)
    return [
        Phase(300, ((copying, 64),)),
        Phase(500, ((lines, 128), (student_readings(seed, largest=2), 20), (copying, 8))),
        Phase(1100, ((lines, 160), (student_readings(seed, questions=8), 14), (copying, 8))),
    ]


def teacher_phases(seed: int) -> list[Phase]:
    """Return the teacher's pretraining: copying, true edits on growing passages, then useful and useless lines mixed."""
    copying = repeated_words(seed)
    return [
        Phase(300, ((copying, 64),)),
        Phase(300, ((teacher_edits(seed, clean=True, largest=2, length=LONG_EDITS), 16), (copying, 8))),
        Phase(700, ((teacher_edits(seed, clean=True, length=LONG_EDITS), 14), (copying, 8))),
        Phase(600, ((teacher_edits(seed, clean=False), 20), (copying, 8))),
    ]
