"""Families of rules on small grids.

They are chosen to conflict in what a test-time training may show: a transformation helps where it commutes with the
rule and misleads where it does not. Colour rules commute with every orientation and with no permutation of colours,
geometric ones the other way round, and each of these with few orientations (`keeps`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

from evaluation.grids.tasks import COLOURS, Grid
from evaluation.grids.transformations import FLIP, MIRROR, ORIENTATIONS, TRANSPOSE, TURNS, Transformation

SIDE = 3
"""Rows and columns of every grid."""
USED_COLOURS = 10
"""Colours 0 to 9; 0 is the background. With five colours instead of nine too many cells of a grid are alike, and a
student took several times the steps to see where each of them goes."""

Kind = Literal["colours", "places", "both"]
"""What a rule is about."""
Apply = Callable[[Grid], Grid]


class Rule(NamedTuple):
    """One rule of a family."""

    family: str
    parameters: str
    """What tells it from the family's other rules; empty where there is one alone."""
    apply: Apply


def _moved(grid: Grid, rows: int, columns: int) -> Grid:
    """Return the grid shifted, with what leaves on one side coming in on the other."""
    down = [grid[(i - rows) % len(grid)] for i in range(len(grid))]
    return tuple(tuple(row[(j - columns) % len(row)] for j in range(len(row))) for row in down)


def _fallen(grid: Grid) -> Grid:
    """Return the grid with what is not background fallen down each column, in its order."""
    columns = []
    for column in zip(*grid, strict=True):
        solid = [cell for cell in column if cell]
        columns.append([0] * (len(column) - len(solid)) + solid)
    return tuple(zip(*columns, strict=True))


def _copied_left(grid: Grid) -> Grid:
    """Return the grid with its right side made the mirror image of its left side."""
    return tuple((*row[: (len(row) + 1) // 2], *row[: len(row) // 2][::-1]) for row in grid)


def _under(view: Transformation, apply: Apply) -> Apply:
    """Return a rule seen in another orientation."""
    return lambda grid: view.undo(apply(view.apply(grid)))


def _fixed(apply: Apply) -> Callable[[random.Random], tuple[str, Apply]]:
    return lambda rng: ("", apply)


def _becoming(becomes: dict[int, int]) -> tuple[str, Apply]:
    """Return the rule that replaces colours, as far as named, and its parameters such as `1>4,4>1`."""
    colours = [becomes.get(colour, colour) for colour in range(COLOURS)]

    def apply(grid: Grid) -> Grid:
        return tuple(tuple(colours[cell] for cell in row) for row in grid)

    return ",".join(f"{old}>{new}" for old, new in sorted(becomes.items())), apply


def _ring(length: int) -> Callable[[random.Random], tuple[str, Apply]]:
    """Return what draws a ring of colours, each of which becomes the next one."""

    def make(rng: random.Random) -> tuple[str, Apply]:
        ring = rng.sample(range(1, USED_COLOURS), length)
        return _becoming(dict(zip(ring, ring[1:] + ring[:1], strict=True)))

    return make


def _repaint(rng: random.Random) -> tuple[str, Apply]:
    old, new = rng.sample(range(1, USED_COLOURS), 2)
    return _becoming({old: new})


def _fill(rng: random.Random) -> tuple[str, Apply]:
    return _becoming({0: rng.randrange(1, USED_COLOURS)})


def _then(*families: str) -> Callable[[random.Random], tuple[str, Apply]]:
    def make(rng: random.Random) -> tuple[str, Apply]:
        made = [FAMILIES[family](rng) for family in families]

        def apply(grid: Grid) -> Grid:
            for _, step in made:
                grid = step(grid)
            return grid

        return "+".join(parameters for parameters, _ in made if parameters), apply

    return make


_MAKERS: dict[str, Callable[[random.Random], tuple[str, Apply]]] = {
    "turn-90": _fixed(TURNS[0].apply),
    "turn-180": _fixed(TURNS[1].apply),
    "turn-270": _fixed(TURNS[2].apply),
    "mirror": _fixed(MIRROR.apply),
    "flip": _fixed(FLIP.apply),
    "transpose": _fixed(TRANSPOSE.apply),
    "shift-right": _fixed(lambda grid: _moved(grid, 0, 1)),
    "shift-left": _fixed(lambda grid: _moved(grid, 0, -1)),
    "shift-down": _fixed(lambda grid: _moved(grid, 1, 0)),
    "shift-up": _fixed(lambda grid: _moved(grid, -1, 0)),
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
_MAKERS |= {f"{first}+{then}": _then(first, then) for first, then in _COMPOSED}

FAMILIES: Mapping[str, Callable[[random.Random], tuple[str, Apply]]] = MappingProxyType(_MAKERS)
"""By name, what draws the parameters of a rule and returns them with it; compositions have a `+` in their name."""


COLOUR_FAMILIES = ("swap", "cycle", "repaint", "fill")
"""Families whose rules say what colours become; all others say where cells go."""


def kind_of(family: str) -> Kind:
    """Return what the rules of a family are about; compositions here are of one rule of each kind."""
    parts = family.split("+")
    colours = sum(part in COLOUR_FAMILIES for part in parts)
    return "both" if 0 < colours < len(parts) else "colours" if colours else "places"


def draw_rule(rng: random.Random, family: str) -> Rule:
    """Return a random rule of a family."""
    parameters, apply = FAMILIES[family](rng)
    return Rule(family, parameters, apply)


def draw_grid(rng: random.Random, background: float) -> Grid:
    """Return a random grid, each cell background with the chance given and else one of the other colours."""
    return tuple(
        tuple(0 if rng.random() < background else rng.randrange(1, USED_COLOURS) for _ in range(SIDE))
        for _ in range(SIDE)
    )


def keeps(rule: Rule, transformation: Transformation, grids: Sequence[Grid]) -> bool:
    """Return whether a rule stays the same under a transformation of inputs and outputs, on all of some grids."""
    return all(transformation.apply(rule.apply(grid)) == rule.apply(transformation.apply(grid)) for grid in grids)


def kept_orientations(rule: Rule, grids: Sequence[Grid]) -> tuple[str, ...]:
    """Return the names of the orientations that keep a rule, the one that changes nothing among them."""
    return tuple(orientation.name for orientation in ORIENTATIONS if keeps(rule, orientation, grids))
