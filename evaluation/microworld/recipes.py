"""How the two shipped micro models are pretrained: sizes, phases, seeds.

The shipped checkpoints went through these phases in three sittings, each with its own warm-up and decay; a rebuild goes
through them in one.
"""

from __future__ import annotations

from collections.abc import Iterator

from evaluation.microworld.corpora import (
    Text,
    bound_values,
    repeated_words,
    student_lines,
    student_readings,
    teacher_edits,
)
from evaluation.microworld.pretraining import Phase, Shape
from evaluation.microworld.world import Pool

STUDENT_SHAPE = Shape(hidden=96, layers=4, intermediate=256)
"""0.53 million parameters."""
TEACHER_SHAPE = Shape(hidden=128, layers=4, intermediate=384)
"""0.97 million parameters."""

LONG_EDITS = (8, 14)
"""Fewest and most lines of an edit while binding is learned: a passage costs the same however much is asked of it."""


def _looking_up(seed: int, pool: Pool) -> list[Phase]:
    """Return the phases that both models begin with: copying, then looking values up by name."""
    copying = repeated_words(seed)

    def binding(largest: int, attributes: int) -> tuple[Iterator[Text], int]:
        return bound_values(seed, pool, largest=largest, attributes=attributes), 40

    return [
        Phase(220, ((copying, 64),)),
        Phase(150, (binding(2, 1),)),
        Phase(250, (binding(4, 1),)),
        Phase(250, (binding(4, 2), (copying, 4))),
    ]


def student_phases(seed: int) -> list[Phase]:
    """Return the student's pretraining: looking up, then facts, with passages to be questioned on beside them."""
    lines, readings = student_lines(seed), student_readings(seed, questions=8)
    return [
        *_looking_up(seed, "context"),
        Phase(1700, ((lines, 200), (readings, 8), (repeated_words(seed), 4))),
    ]


def teacher_phases(seed: int) -> list[Phase]:
    """Return the teacher's pretraining: looking up, true edits, then useful and useless lines mixed."""
    copying = repeated_words(seed)
    return [
        *_looking_up(seed, "teacher"),
        Phase(710, ((teacher_edits(seed, clean=True, length=LONG_EDITS), 16), (copying, 4))),
        Phase(500, ((teacher_edits(seed, clean=False), 20), (copying, 4))),
        Phase(420, ((teacher_edits(seed, clean=False), 28),), content_weight=1.0),
    ]
