"""Transformations of grids: named functions that can be chained.

Applied to inputs and outputs alike, a transformation keeps a rule where the two commute and changes it where they do
not: which of them help depends on the task, and that is what a teacher chooses.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from evaluation.grids.grids import COLOURS, Grid


@dataclass(frozen=True, slots=True)
class Transformation:
    """A function of grids; equal names do the same."""

    name: str
    apply: Callable[[Grid], Grid] = field(compare=False)


@dataclass(frozen=True, slots=True)
class Orientation(Transformation):
    """One of the eight symmetries of the square."""

    undo: Callable[[Grid], Grid] = field(compare=False)


def _mirrored(grid: Grid) -> Grid:
    return tuple(row[::-1] for row in grid)


def _turned(grid: Grid, turns: int) -> Grid:
    for _ in range(turns % 4):
        grid = tuple(zip(*grid, strict=True))[::-1]
    return grid


def _orientation(turns: int, mirrored: bool) -> Orientation:
    """Return what mirrors left to right or not, then turns counterclockwise by quarters."""
    name = "-".join(["mirror"] * mirrored + [f"turn-{90 * turns}"] * (turns > 0)) or "as-it-is"
    if mirrored:  # a reflection, which undoes itself
        return Orientation(name, *[lambda grid: _turned(_mirrored(grid), turns)] * 2)
    return Orientation(name, lambda grid: _turned(grid, turns), lambda grid: _turned(grid, -turns))


def shift(rows: int, columns: int) -> Transformation:
    """Return what moves all cells down and right, around the edges."""

    def apply(grid: Grid) -> Grid:
        height, width = len(grid), len(grid[0])
        return tuple(
            tuple(grid[(i - rows) % height][(j - columns) % width] for j in range(width)) for i in range(height)
        )

    return Transformation(f"shift-{rows}-{columns}", apply)


def recolouring(colours: Sequence[int]) -> Transformation:
    """Return what replaces the colours 0 to 9 by these."""
    name = "colours-" + "".join(map(str, colours))
    return Transformation(name, lambda grid: tuple(tuple(colours[cell] for cell in row) for row in grid))


def enlargement(rows: int, columns: int) -> Transformation:
    """Return what makes each cell a block of so many rows and columns."""
    return Transformation(
        f"enlarge-{rows}-{columns}",
        lambda grid: tuple(tuple(cell for cell in row for _ in range(columns)) for row in grid for _ in range(rows)),
    )


def tiling(rows: int, columns: int, *, mirrored: bool = False) -> Transformation:
    """Return what repeats a grid side by side, each second copy mirrored where wanted, so that edges meet."""
    step = -1 if mirrored else 1

    def apply(grid: Grid) -> Grid:
        band = [sum((row[:: step**k] for k in range(columns)), ()) for row in grid]
        return tuple(row for k in range(rows) for row in band[:: step**k])

    return Transformation(f"{'mirror-' if mirrored else ''}tile-{rows}-{columns}", apply)


def chain(*steps: Transformation) -> Transformation:
    """Return several transformations, one after another."""

    def apply(grid: Grid) -> Grid:
        for step in steps:
            grid = step.apply(grid)
        return grid

    return Transformation("+".join(step.name for step in steps), apply)


ORIENTATIONS = tuple(_orientation(turns, mirrored) for mirrored in (False, True) for turns in range(4))
"""All eight, the first of which changes nothing."""
AS_IT_IS, TURNS = ORIENTATIONS[0], ORIENTATIONS[1:4]
MIRROR, TRANSPOSE, FLIP = ORIENTATIONS[4:7]
"""Left to right; rows become columns; top to bottom."""


def random_recolouring(rng: random.Random, *, keep: Collection[int] = (0,)) -> Transformation:
    """Return a random permutation of the colours that are not to be kept."""
    free = [colour for colour in range(COLOURS) if colour not in keep]
    becomes = dict(zip(free, rng.sample(free, len(free)), strict=True))
    return recolouring([becomes.get(colour, colour) for colour in range(COLOURS)])


def random_shift(rng: random.Random) -> Transformation:
    """Return a random shift by up to 5 rows and columns."""
    return shift(rng.randint(0, 5), rng.randint(0, 5))
