"""The micro-grids: families of rules on small grids, tasks made of them, and the specifications tried on them.

The families conflict in what test-time training may show: a transformation helps where it commutes with the rule and
misleads where it does not. Colour rules commute with every orientation and with no permutation of colours, geometric
ones the other way round, and each of these with few orientations.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from evaluation.grids.augmentations import augmentations_of, most_examples
from evaluation.grids.grids import COLOURS, Grid, GridPair, GridTask, GridTest
from evaluation.grids.transformations import FLIP, MIRROR, TRANSPOSE, TURNS, Orientation, recolouring, shift

SIDE = 3
"""Rows and columns of every grid. All ten colours are used: with five instead of nine beside the background too many
cells of a grid are alike, and a student took several times the steps to see where each of them goes."""
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

SPACE: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "orientations": ("none", "mirror", "flip", "transpose", "turns", "all"),
        "colourings": (0, 8),
        "learning_rate": (0.01, 0.05),
        "epochs": (2, 4, 8),
    }
)
"""The specifications that the teacher writes, as values by field: few enough to try them all on a task."""
_BATCH = 4
"""Examples in an optimizer step of the students that the specifications are for."""

Kind = Literal["colours", "places", "both"]
"""Subject of a rule."""
Apply = Callable[[Grid], Grid]
Maker = Callable[[random.Random], tuple[str, Apply]]
"""Draws the parameters of a rule and returns them, as text, with the rule."""


class Rule(NamedTuple):
    """One rule of a family."""

    family: str
    parameters: str
    """Empty where the family has one rule alone."""
    apply: Apply


def _fallen(grid: Grid) -> Grid:
    """Return the grid with its cells fallen down each column, in their order, the background above them."""
    columns = []
    for column in zip(*grid, strict=True):
        solid = [cell for cell in column if cell]
        columns.append([0] * (len(column) - len(solid)) + solid)
    return tuple(zip(*columns, strict=True))


def _copied_left(grid: Grid) -> Grid:
    """Return the grid with its right side made the mirror image of its left side."""
    return tuple((*row[: (len(row) + 1) // 2], *row[: len(row) // 2][::-1]) for row in grid)


def _under(view: Orientation, apply: Apply) -> Apply:
    """Return a rule seen in another orientation."""
    return lambda grid: view.undo(apply(view.apply(grid)))


def _fixed(apply: Apply) -> Maker:
    return lambda rng: ("", apply)


def _becoming(becomes: Mapping[int, int]) -> tuple[str, Apply]:
    """Return the rule that replaces colours, as far as named, and its parameters such as `1>4,4>1`."""
    named = ",".join(f"{old}>{new}" for old, new in sorted(becomes.items()))
    return named, recolouring([becomes.get(colour, colour) for colour in range(COLOURS)]).apply


def _ring(length: int) -> Maker:
    """Return what draws a ring of colours, each of which becomes the next one."""

    def make(rng: random.Random) -> tuple[str, Apply]:
        ring = rng.sample(range(1, COLOURS), length)
        return _becoming(dict(zip(ring, ring[1:] + ring[:1], strict=True)))

    return make


def _repaint(rng: random.Random) -> tuple[str, Apply]:
    old, new = rng.sample(range(1, COLOURS), 2)
    return _becoming({old: new})


def _fill(rng: random.Random) -> tuple[str, Apply]:
    return _becoming({0: rng.randrange(1, COLOURS)})


def _then(first: Maker, second: Maker) -> Maker:
    def make(rng: random.Random) -> tuple[str, Apply]:
        (one, before), (other, after) = first(rng), second(rng)
        return "+".join(filter(None, (one, other))), lambda grid: after(before(grid))

    return make


_MAKERS: dict[str, Maker] = {
    "turn-90": _fixed(TURNS[0].apply),
    "turn-180": _fixed(TURNS[1].apply),
    "turn-270": _fixed(TURNS[2].apply),
    "mirror": _fixed(MIRROR.apply),
    "flip": _fixed(FLIP.apply),
    "transpose": _fixed(TRANSPOSE.apply),
    "shift-right": _fixed(shift(0, 1).apply),
    "shift-left": _fixed(shift(0, -1).apply),
    "shift-down": _fixed(shift(1, 0).apply),
    "shift-up": _fixed(shift(-1, 0).apply),
    "copy-left": _fixed(_copied_left),
    "copy-right": _fixed(_under(MIRROR, _copied_left)),
    "copy-top": _fixed(_under(TRANSPOSE, _copied_left)),
    "copy-bottom": _fixed(_under(TURNS[2], _copied_left)),
    "fall-down": _fixed(_fallen),
    "fall-up": _fixed(_under(FLIP, _fallen)),
    "fall-right": _fixed(_under(TRANSPOSE, _fallen)),
    "fall-left": _fixed(_under(TURNS[0], _fallen)),
    "swap": _ring(2),
    "cycle": _ring(3),
    "repaint": _repaint,
    "fill": _fill,
}
_COMPOSED = (("swap", "mirror"), ("repaint", "shift-right"), ("fill", "copy-left"))
FAMILIES: Mapping[str, Maker] = MappingProxyType(
    _MAKERS | {f"{first}+{then}": _then(_MAKERS[first], _MAKERS[then]) for first, then in _COMPOSED}
)
"""Makers of rules by name; compositions have a `+` in their name."""
COLOUR_FAMILIES = ("swap", "cycle", "repaint", "fill")
"""Families whose rules say what colours become; all others say where cells go."""


def kind_of(family: str) -> Kind:
    """Return the subject of the rules of a family; compositions here are of one rule of each kind."""
    parts = family.split("+")
    colours = sum(part in COLOUR_FAMILIES for part in parts)
    return "both" if 0 < colours < len(parts) else "colours" if colours else "places"


def draw_rule(rng: random.Random, family: str) -> Rule:
    """Return a random rule of a family."""
    return Rule(family, *FAMILIES[family](rng))


def draw_grid(rng: random.Random, background: float) -> Grid:
    """Return a random grid, each cell background with the chance given and else one of the other colours."""
    return tuple(
        tuple(0 if rng.random() < background else rng.randrange(1, COLOURS) for _ in range(SIDE)) for _ in range(SIDE)
    )


def draw_task(rng: random.Random, rule: Rule, name: str, *, demonstrations: int, tests: int, source: str) -> GridTask:
    """Return a task: a rule shown on some grids and asked for on others, no two of them alike.

    Every colour but the background occurs in the demonstrations, so that the rule's effect on it can be inferred, and
    at least half of the demonstrations are changed by the rule.
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
    return colours >= set(range(1, COLOURS)) and 2 * changed >= len(grids)


def draw_tasks(
    side: str, families: Sequence[str], count: int, seed: int, *, demonstrations: int = 4, tests: int
) -> tuple[GridTask, ...]:
    """Return `count` tasks, the families in turn; the first ones of a larger count are those of a smaller one.

    Args:
        side: Such as `train`: part of every id and of the seed.
        families: Names, in the order in which they take turns.
        count: Tasks.
        seed: Of all choices.
        demonstrations: Pairs shown in each, at least 2.
        tests: Pairs asked for in each, at least 1.
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
    """Return the optimizer steps that a specification asks for, at most: equal examples are trained on once."""
    return -(-most_examples(augmentations_of(choice), demonstrations) // _BATCH) * int(choice["epochs"])


def draw_spec(rng: random.Random, demonstrations: int, budget: int | None) -> dict[str, Any]:
    """Return a random specification within a budget of steps, all of them equally likely; None allows any."""
    while True:
        choice = {name: rng.choice(values) for name, values in SPACE.items()}
        if budget is None or steps_of(choice, demonstrations) <= budget:
            return choice
