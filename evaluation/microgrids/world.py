"""Tasks of the micro-grids, and their three sides: what teachers learn on, choose on and are compared on."""

from __future__ import annotations

import random
from collections.abc import Sequence

from evaluation.grids.tasks import Grid, GridPair, GridTask, GridTest
from evaluation.microgrids.rules import USED_COLOURS, Rule, draw_grid, draw_rule

BACKGROUNDS = (1 / 6, 0.4)
"""Shares of background, each for half of the tasks: rules of falling need room, others do not."""

PRETRAINED = ("turn-90", "mirror", "transpose", "shift-right", "copy-left", "fall-down")
"""Families that the student's pretraining shows, in context; it never sees a rule about colours."""
ADAPTED = (
    "swap", "copy-top", "repaint", "fall-right", "swap", "copy-right", "repaint", "shift-down", "swap", "fall-up",
    "repaint", "turn-270",
)  # fmt: skip
"""Families of the tasks that teachers learn on, in turn; every second task is about colours."""
UNSEEN = ("cycle", "copy-bottom", "swap+mirror", "shift-up", "fill")
"""Families that no teacher learns on and no model was pretrained on: a part of the test tasks."""
TESTED = (*ADAPTED, *UNSEEN)
"""Families of the tasks that variants are compared on."""


def draw_task(
    rng: random.Random, rule: Rule, name: str, *, demonstrations: int = 4, tests: int = 16, source: str = ""
) -> GridTask:
    """Return a task: a rule shown on some grids and asked for on others, no two of them alike.

    Every colour but the background occurs in the demonstrations, so that what the rule does with it can be
    told, and at least half of the demonstrations are changed by the rule.

    Args:
        rng: Makes all choices.
        rule: Of the task.
        name: Its id.
        demonstrations: Pairs shown, at least 2.
        tests: Pairs asked for, at least 1.
        source: Where it comes from.
    """
    background = rng.choice(BACKGROUNDS)
    while True:
        grids: dict[Grid, None] = {}
        while len(grids) < demonstrations + tests:
            grids[draw_grid(rng, background)] = None
        shown, asked = list(grids)[:demonstrations], list(grids)[demonstrations:]
        if _shows(rule, shown):
            break
    return GridTask(
        id=name,
        demonstrations=tuple(GridPair(input=grid, output=rule.apply(grid)) for grid in shown),
        tests=tuple(GridTest(input=grid, output=rule.apply(grid)) for grid in asked),
        source=source,
        family=rule.family,
    )


def _shows(rule: Rule, grids: Sequence[Grid]) -> bool:
    colours = {cell for grid in grids for row in grid for cell in row}
    changed = sum(rule.apply(grid) != grid for grid in grids)
    return colours >= set(range(1, USED_COLOURS)) and 2 * changed >= len(grids)


def draw_tasks(side: str, families: Sequence[str], count: int, seed: int, **shape: int) -> tuple[GridTask, ...]:
    """Return tasks of one side, its families in turn; the first ones of a larger count are those of a smaller one.

    Args:
        side: `train`, `development` or `test`: part of every id and of the seed.
        families: Names, in the order in which they take turns.
        count: Tasks.
        seed: Of all choices.
        shape: As for `draw_task`.
    """
    tasks = []
    for number in range(count):
        rng = random.Random(f"micro-grids:{side}:{seed}:{number}")
        rule = draw_rule(rng, families[number % len(families)])
        source = f"micro-grids, seed {seed}, {side} task {number}: {rule.family} {rule.parameters}".rstrip()
        tasks.append(draw_task(rng, rule, f"{side}-{seed}-{number:04d}", source=source, **shape))
    return tuple(tasks)
