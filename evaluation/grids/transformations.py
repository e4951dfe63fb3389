"""Transformations of grids, as data: each can be applied, undone, named and chained.

A transformation that is applied to inputs and outputs alike keeps a rule where the two commute, and makes another rule
of it where they do not: which of them help depends on the task, and that is what a teacher chooses.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from evaluation.grids.tasks import COLOURS, Grid


class Transformation(Protocol):
    """Something that can be done to any grid and undone."""

    @property
    def name(self) -> str:
        """What it is called; equal names do the same."""

    def apply(self, grid: Grid) -> Grid:
        """Return the grid transformed."""

    def undo(self, grid: Grid) -> Grid:
        """Return the grid that `apply` made this one of; of a grid that it cannot have made, any grid or an error.

        Raises:
            ValueError: `apply` makes no grid of this shape.
        """


def _of(array: NDArray[np.int64]) -> Grid:
    return tuple(map(tuple, array.tolist()))


@dataclass(frozen=True, slots=True)
class Orientation:
    """One of the eight symmetries of the square: mirrored left to right or not, then turned counterclockwise."""

    turns: int = 0
    """Quarter turns, in [0, 3]."""
    mirrored: bool = False

    @property
    def name(self) -> str:
        """Such as `mirror-turn-90`."""
        parts = [*(["mirror"] if self.mirrored else []), *([f"turn-{90 * self.turns}"] if self.turns else [])]
        return "-".join(parts) or "as-it-is"

    def apply(self, grid: Grid) -> Grid:
        """Return the grid mirrored and turned."""
        array = np.array(grid)
        return _of(np.rot90(np.fliplr(array) if self.mirrored else array, self.turns))

    def undo(self, grid: Grid) -> Grid:
        """Return the grid turned back and mirrored back."""
        array = np.rot90(np.array(grid), -self.turns)
        return _of(np.fliplr(array) if self.mirrored else array)


@dataclass(frozen=True, slots=True)
class Shift:
    """All cells moved by so many rows down and columns right; what leaves on one side comes in on the other."""

    rows: int
    columns: int

    @property
    def name(self) -> str:
        """Such as `shift-1-2`."""
        return f"shift-{self.rows}-{self.columns}"

    def apply(self, grid: Grid) -> Grid:
        """Return the grid shifted."""
        return _of(np.roll(np.array(grid), (self.rows, self.columns), (0, 1)))

    def undo(self, grid: Grid) -> Grid:
        """Return the grid shifted back."""
        return _of(np.roll(np.array(grid), (-self.rows, -self.columns), (0, 1)))


@dataclass(frozen=True, slots=True)
class Recolouring:
    """Each colour replaced by another one, no two by the same."""

    colours: tuple[int, ...]
    """What 0, 1, ... 9 become: a permutation."""

    def __post_init__(self) -> None:
        if sorted(self.colours) != list(range(COLOURS)):
            raise ValueError(f"recolouring: got {self.colours}, allowed is each colour from 0 to {COLOURS - 1} once")

    @property
    def name(self) -> str:
        """Such as `colours-0213456789`."""
        return "colours-" + "".join(map(str, self.colours))

    def apply(self, grid: Grid) -> Grid:
        """Return the grid in its new colours."""
        return tuple(tuple(self.colours[cell] for cell in row) for row in grid)

    def undo(self, grid: Grid) -> Grid:
        """Return the grid in its old colours."""
        back = {new: old for old, new in enumerate(self.colours)}
        return tuple(tuple(back[cell] for cell in row) for row in grid)


@dataclass(frozen=True, slots=True)
class Enlargement:
    """Each cell made a block of so many rows and columns."""

    rows: int
    columns: int

    @property
    def name(self) -> str:
        """Such as `enlarge-2-2`."""
        return f"enlarge-{self.rows}-{self.columns}"

    def apply(self, grid: Grid) -> Grid:
        """Return the grid enlarged."""
        return _of(np.array(grid).repeat(self.rows, axis=0).repeat(self.columns, axis=1))

    def undo(self, grid: Grid) -> Grid:
        """Return the grid with one cell for each block, the first one."""
        _check_divides(self, grid, self.rows, self.columns)
        return tuple(row[:: self.columns] for row in grid[:: self.rows])


@dataclass(frozen=True, slots=True)
class Tiling:
    """The grid repeated side by side; each second copy mirrored where wanted, so that edges meet."""

    rows: int
    columns: int
    mirrored: bool = False

    @property
    def name(self) -> str:
        """Such as `tile-1-2` or `mirror-tile-1-2`."""
        return f"{'mirror-' if self.mirrored else ''}tile-{self.rows}-{self.columns}"

    def apply(self, grid: Grid) -> Grid:
        """Return the grid repeated."""
        array = np.array(grid)

        def copy(row: int, column: int) -> NDArray[np.int64]:
            turned = array[::-1] if self.mirrored and row % 2 else array
            return turned[:, ::-1] if self.mirrored and column % 2 else turned

        return _of(np.block([[copy(row, column) for column in range(self.columns)] for row in range(self.rows)]))

    def undo(self, grid: Grid) -> Grid:
        """Return the first copy."""
        _check_divides(self, grid, self.rows, self.columns)
        height, width = len(grid) // self.rows, len(grid[0]) // self.columns
        return tuple(row[:width] for row in grid[:height])


@dataclass(frozen=True, slots=True)
class Chain:
    """Several transformations, one after another."""

    steps: tuple[Transformation, ...]

    @property
    def name(self) -> str:
        """The names of the steps in their order."""
        return "+".join(step.name for step in self.steps) or Orientation().name

    def apply(self, grid: Grid) -> Grid:
        """Return the grid after all steps."""
        for step in self.steps:
            grid = step.apply(grid)
        return grid

    def undo(self, grid: Grid) -> Grid:
        """Return the grid before all steps."""
        for step in reversed(self.steps):
            grid = step.undo(grid)
        return grid


AS_IT_IS = Orientation()
"""Changes nothing."""
MIRROR = Orientation(mirrored=True)
"""Left to right."""
FLIP = Orientation(turns=2, mirrored=True)
"""Top to bottom."""
TRANSPOSE = Orientation(turns=1, mirrored=True)
"""Rows become columns."""
TURNS = tuple(Orientation(turns=turns) for turns in (1, 2, 3))
ORIENTATIONS = tuple(Orientation(turns, mirrored) for mirrored in (False, True) for turns in range(4))
"""All eight, the first of which changes nothing."""


def random_recolouring(rng: random.Random, *, keep: Collection[int] = (0,)) -> Recolouring:
    """Return a random permutation of the colours that are not to be kept.

    Args:
        rng: Makes the choice.
        keep: Colours that stay: usually the background.
    """
    free = [colour for colour in range(COLOURS) if colour not in keep]
    shuffled = rng.sample(free, len(free))
    becomes = dict(zip(free, shuffled, strict=True))
    return Recolouring(tuple(becomes.get(colour, colour) for colour in range(COLOURS)))


def random_shift(rng: random.Random, *, longest: int = 5) -> Shift:
    """Return a random shift by up to `longest` rows and columns."""
    return Shift(rng.randint(0, longest), rng.randint(0, longest))


def distinct(transformations: Sequence[Transformation]) -> list[Transformation]:
    """Return the transformations without repeats of a name, in the order given."""
    first: dict[str, Transformation] = {}
    for transformation in transformations:
        first.setdefault(transformation.name, transformation)
    return list(first.values())


def _check_divides(transformation: Transformation, grid: Grid, rows: int, columns: int) -> None:
    if len(grid) % rows or len(grid[0]) % columns:
        raise ValueError(f"{transformation.name}: makes no grid of {len(grid)} x {len(grid[0])} cells")
