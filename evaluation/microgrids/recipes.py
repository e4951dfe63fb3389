"""How the micro-grids' models are pretrained: size, stages of phases, seeds.

The teacher starts from the student: both have learned to find a rule from pairs, and the teacher then learns to say
which one it sees, of more families than the student has seen, and to write specifications.
"""

from __future__ import annotations

from evaluation.microgrids.pretraining import Phase
from evaluation.microgrids.world import ADAPTED, PRETRAINED
from evaluation.microworld.pretraining import Shape

SHAPE = Shape(hidden=64, layers=4, intermediate=192, rope_theta=200.0, heads=4)
"""0.30 million parameters. Texts are short, and with the usual base of 10,000 what the named rules do took five times
the steps to learn."""

READ = tuple(
    dict.fromkeys((*PRETRAINED, *ADAPTED, "turn-180", "flip", "shift-left", "fall-left", "repaint+shift-right"))
)
"""Families that a teacher learns to name: neighbours of those that are kept from everybody, but none of them."""


def student_stages() -> list[list[Phase]]:
    """Return the pretraining of a student, with which a teacher begins as well."""
    return [
        [Phase(500, 96, (1,), {"told": 1.0}, PRETRAINED)],
        [Phase(2000, 48, (4,), {"told": 0.2, "shown": 0.8}, PRETRAINED, decay=0.1)],
        # One pair more, as tasks have it: four are shown and one is asked for, and what is longer than any text of the
        # pretraining is read badly (.13 instead of 1.0 right).
        [Phase(500, 40, (5,), {"told": 0.1, "shown": 0.9}, PRETRAINED, decay=0.6, peak=0.5)],
    ]


def teacher_stages() -> list[list[Phase]]:
    """Return the pretraining of a teacher, after the student's."""
    return [*student_stages(), [Phase(1400, 40, (4,), {"told": 0.1, "shown": 0.1, "named": 0.8}, READ)]]
