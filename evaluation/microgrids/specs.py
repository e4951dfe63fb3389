"""The specifications that the micro-grids' teacher writes: few enough to try them all on a task."""

from __future__ import annotations

import random
from typing import Any

from student.augmentations import most_examples
from teacher.spec_space import SpecSpace, edit_of

SPACE = SpecSpace(learning_rate=(0.01, 0.05), epochs=(2, 4, 8))
BATCH = 4
"""Examples in an optimizer step of the students that the specifications are for."""


def steps_of(choice: dict[str, Any], demonstrations: int) -> int:
    """Return the optimizer steps that a specification asks for, at most: equal examples are trained on once."""
    shown = edit_of(choice).augmentations
    assert shown is not None
    return -(-most_examples(shown, demonstrations) // BATCH) * int(choice["epochs"])


def draw_spec(rng: random.Random, demonstrations: int, budget: int | None) -> dict[str, Any]:
    """Return a random specification within a budget of steps, all of them equally likely; None allows any."""
    while True:
        choice = SPACE.draw(rng)
        if budget is None or steps_of(choice, demonstrations) <= budget:
            return choice
