"""The micro-grids: families of rules on small grids, their tasks, and the space of specifications.

A transformation helps test-time training if it commutes with the rule and misleads otherwise. Colour rules commute with
all orientations and no colour permutation; geometric rules with all colour permutations and few orientations.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from pydantic import Field

from evaluation.grids.augmentations import augmentations_of, most_examples
from evaluation.grids.domain import DEMONSTRATIONS, GridData, as_task
from evaluation.grids.grids import (
    COLOURS,
    FLIP,
    MIRROR,
    TRANSPOSE,
    TURNS,
    Grid,
    GridPair,
    GridTask,
    GridTest,
    Orientation,
    recolouring,
    shift,
)
from evaluation.tasks import KnowledgeTask, Split

SIDE = 3
"""Rows and columns. With five colours instead of nine, geometric rules took a student several times the steps."""
BACKGROUNDS = (1 / 6, 0.4)
"""Shares of background, each in half of the tasks; `fall` rules need room."""

PRETRAINED = ("turn-90", "mirror", "transpose", "shift-right", "copy-left", "fall-down")
"""Families of the student's pretraining; none is about colours."""
ADAPTED = (
    "swap", "copy-top", "repaint", "fall-right", "swap", "copy-right", "repaint", "shift-down", "swap", "fall-up",
    "repaint", "turn-270",
)  # fmt: skip
"""Families of the training tasks, in turn; every second one is about colours."""
UNSEEN = ("cycle", "copy-bottom", "swap+mirror", "shift-up", "fill")
"""Families of test tasks alone, unseen in pretraining and training."""
TESTED = (*ADAPTED, *UNSEEN)
"""Families of the test tasks."""

SPACE: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "orientations": ("none", "mirror", "flip", "transpose", "turns", "all"),
        "colourings": (0, 8),
        "learning_rate": (0.01, 0.05),
        "epochs": (2, 4, 8),
    }
)
"""Fields and values of the teacher's specifications; small enough for exhaustive search."""
REWARDED_TESTS, COMPARED_TESTS = 8, 8
"""Test inputs of a task for rewards, and further ones for comparisons."""
_BATCH = 4
"""Batch size of the students."""

Kind = Literal["colours", "places", "both"]
"""Subject of a rule."""
Apply = Callable[[Grid], Grid]
Maker = Callable[[random.Random], tuple[str, Apply]]
"""Draws a rule and returns its parameters, as text, with the rule."""


class Rule(NamedTuple):
    """One rule of a family."""

    family: str
    parameters: str
    """Empty for families of a single rule."""
    apply: Apply


def _fallen(grid: Grid) -> Grid:
    """Return the grid with the cells of each column dropped to the bottom, in their order."""
    columns = []
    for column in zip(*grid, strict=True):
        solid = [cell for cell in column if cell]
        columns.append([0] * (len(column) - len(solid)) + solid)
    return tuple(zip(*columns, strict=True))


def _copied_left(grid: Grid) -> Grid:
    """Return the grid with its left side mirrored onto its right side."""
    return tuple((*row[: (len(row) + 1) // 2], *row[: len(row) // 2][::-1]) for row in grid)


def _under(view: Orientation, apply: Apply) -> Apply:
    """Return a rule conjugated with an orientation."""
    return lambda grid: view.undo(apply(view.apply(grid)))


def _becoming(becomes: Mapping[int, int]) -> tuple[str, Apply]:
    """Return the parameters, such as `1>4,4>1`, and the rule that replaces these colours."""
    named = ",".join(f"{old}>{new}" for old, new in sorted(becomes.items()))
    return named, recolouring([becomes.get(colour, colour) for colour in range(COLOURS)]).apply


def _ring(length: int) -> Maker:
    """Return the maker of cyclic permutations of `length` colours."""

    def make(rng: random.Random) -> tuple[str, Apply]:
        ring = rng.sample(range(1, COLOURS), length)
        return _becoming(dict(zip(ring, ring[1:] + ring[:1], strict=True)))

    return make


def _repaint(rng: random.Random) -> tuple[str, Apply]:
    old, new = rng.sample(range(1, COLOURS), 2)
    return _becoming({old: new})


def _fill(rng: random.Random) -> tuple[str, Apply]:
    return _becoming({0: rng.randrange(1, COLOURS)})


_FIXED: dict[str, Apply] = {
    "turn-90": TURNS[0].apply,
    "turn-180": TURNS[1].apply,
    "turn-270": TURNS[2].apply,
    "mirror": MIRROR.apply,
    "flip": FLIP.apply,
    "transpose": TRANSPOSE.apply,
    "shift-right": shift(0, 1).apply,
    "shift-left": shift(0, -1).apply,
    "shift-down": shift(1, 0).apply,
    "shift-up": shift(-1, 0).apply,
    "copy-left": _copied_left,
    "copy-right": _under(MIRROR, _copied_left),
    "copy-top": _under(TRANSPOSE, _copied_left),
    "copy-bottom": _under(TURNS[2], _copied_left),
    "fall-down": _fallen,
    "fall-up": _under(FLIP, _fallen),
    "fall-right": _under(TRANSPOSE, _fallen),
    "fall-left": _under(TURNS[0], _fallen),
}
"""Families of a single rule."""
_COLOURS: dict[str, Maker] = {"swap": _ring(2), "cycle": _ring(3), "repaint": _repaint, "fill": _fill}
_COMPOSED = ("swap+mirror", "repaint+shift-right", "fill+copy-left")
FAMILIES = (*_FIXED, *_COLOURS, *_COMPOSED)
"""Names of all families; a `+` composes a colour rule with a fixed one."""


def kind_of(family: str) -> Kind:
    """Return the subject of a family's rules."""
    return "both" if "+" in family else "colours" if family in _COLOURS else "places"


def draw_rule(rng: random.Random, family: str) -> Rule:
    """Return a random rule of a family."""
    if family in _FIXED:
        return Rule(family, "", _FIXED[family])
    colours, _, then = family.partition("+")
    parameters, recoloured = _COLOURS[colours](rng)
    after = _FIXED.get(then)
    return Rule(family, parameters, recoloured if after is None else lambda grid: after(recoloured(grid)))


def draw_grid(rng: random.Random, background: float) -> Grid:
    """Return a random grid; each cell is background with probability `background`."""
    return tuple(
        tuple(0 if rng.random() < background else rng.randrange(1, COLOURS) for _ in range(SIDE)) for _ in range(SIDE)
    )


def draw_task(rng: random.Random, rule: Rule, name: str, *, demonstrations: int, tests: int, source: str) -> GridTask:
    """Return a task of distinct grids.

    The demonstrations contain every colour, so that its mapping can be inferred, and the rule changes half of them.
    """
    background = rng.choice(BACKGROUNDS)
    while True:
        grids: dict[Grid, None] = {}
        while len(grids) < demonstrations + tests:
            grids[draw_grid(rng, background)] = None
        shown, asked = list(grids)[:demonstrations], list(grids)[demonstrations:]
        colours = {cell for grid in shown for row in grid for cell in row}
        if colours >= set(range(1, COLOURS)) and 2 * sum(rule.apply(grid) != grid for grid in shown) >= demonstrations:
            break
    return GridTask(
        id=name,
        demonstrations=tuple(GridPair(input=grid, output=rule.apply(grid)) for grid in shown),
        tests=tuple(GridTest(input=grid, output=rule.apply(grid)) for grid in asked),
        source=source,
        family=rule.family,
    )


def draw_tasks(
    side: str, families: Sequence[str], count: int, seed: int, *, demonstrations: int = 4, tests: int
) -> tuple[GridTask, ...]:
    """Return `count` tasks, the families in turn; a larger count extends a smaller one.

    `side`, such as `train`, is part of ids and seeds. A task has at least 2 demonstrations and 1 test.
    """
    tasks = []
    for number in range(count):
        rng = random.Random(f"micro-grids:{side}:{seed}:{number}")
        rule = draw_rule(rng, families[number % len(families)])
        source = f"micro-grids, seed {seed}, {side} task {number}: {rule.family} {rule.parameters}".rstrip()
        name = f"{side}-{seed}-{number:04d}"
        tasks.append(draw_task(rng, rule, name, demonstrations=demonstrations, tests=tests, source=source))
    return tuple(tasks)


def steps_of(choice: Mapping[str, Any], demonstrations: int) -> int:
    """Return an upper bound of a specification's optimizer steps; duplicate examples are trained on once."""
    return -(-most_examples(augmentations_of(choice), demonstrations) // _BATCH) * int(choice["epochs"])


def draw_spec(rng: random.Random, demonstrations: int, budget: int | None) -> dict[str, Any]:
    """Return a uniformly random specification within a budget of steps; None is unlimited."""
    while True:
        choice = {name: rng.choice(values) for name, values in SPACE.items()}
        if budget is None or steps_of(choice, demonstrations) <= budget:
            return choice


class MicrogridsData(GridData):
    """Tasks of the micro-grids; the test split includes unseen families of rules."""

    type: Literal["microgrids"] = "microgrids"
    train_documents: int = Field(default=132, ge=1, le=100_000)
    """Training tasks, in [1, 100000]; families alternate."""
    development_documents: int = Field(default=22, ge=0, le=10_000)
    """Development tasks, in [0, 10000]."""
    test_documents: int = Field(default=112, ge=1, le=10_000)
    """Test tasks, in [1, 10000]."""

    def draw(self) -> Split:
        """Return the tasks."""

        def side(name: str, families: tuple[str, ...], count: int) -> tuple[KnowledgeTask, ...]:
            tests = REWARDED_TESTS + COMPARED_TESTS
            drawn = draw_tasks(name, families, count, self.split_seed, demonstrations=DEMONSTRATIONS, tests=tests)
            return tuple(as_task(task, self.views, REWARDED_TESTS) for task in drawn)

        return Split(
            side("train", ADAPTED, self.train_documents),
            side("development", ADAPTED, self.development_documents),
            side("test", TESTED, self.test_documents),
        )
