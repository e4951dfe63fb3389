"""Grid tasks as in ARC (arXiv 1911.01547): data, text format, voting, and transformations.

Teachers and students read and write the same text: one line of digits per row. A transformation applied to inputs and
outputs alike preserves a rule if the two commute.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, Field, StrictInt

from evaluation.common.data import Frozen

COLOURS = 10
"""Cells are 0 to 9; 0 is the background."""
LONGEST_SIDE = 30
INPUT, OUTPUT = "Input:", "Output:"
ATTEMPTS = 2
"""Attempts per test input, one of which must be correct (ARC Prize rules)."""

Grid: TypeAlias = tuple[tuple[int, ...], ...]
"""Rows of cells, H x W."""


def grid_mistakes(rows: Grid) -> Iterator[str]:
    """Yield every violation of the form of a grid."""
    widths = sorted({len(row) for row in rows})
    if len(widths) > 1:
        yield f"rows of {', '.join(map(str, widths))} cells, allowed are rows of equal length"
    sides = len(rows), max(widths, default=0)
    if not all(1 <= side <= LONGEST_SIDE for side in sides):
        yield f"{sides[0]} x {sides[1]} cells, allowed are 1 to {LONGEST_SIDE} each way"
    wrong = sorted({cell for row in rows for cell in row if not 0 <= cell < COLOURS})
    if wrong:
        yield f"the colours {', '.join(map(str, wrong))}, allowed are 0 to {COLOURS - 1}"


def _checked(rows: Grid) -> Grid:
    if mistakes := list(grid_mistakes(rows)):
        raise ValueError("got " + "; ".join(mistakes))
    return rows


CheckedGrid = Annotated[tuple[tuple[StrictInt, ...], ...], AfterValidator(_checked)]
"""A rectangular grid with 1 to 30 rows and columns and colours 0 to 9."""


class GridPair(Frozen):
    """A grid and its output under the rule."""

    input: CheckedGrid
    output: CheckedGrid


class GridTest(Frozen):
    """A test input."""

    input: CheckedGrid
    output: CheckedGrid | None = None
    """The gold output; None if unknown."""


class GridTask(Frozen):
    """Infer a rule from demonstrations and apply it to test inputs."""

    id: str = Field(min_length=1)
    """Unique within a data set."""
    demonstrations: tuple[GridPair, ...] = Field(min_length=1)
    tests: tuple[GridTest, ...] = Field(min_length=1)
    """Hidden from the teacher and from training."""
    source: str = ""
    family: str = ""
    """Family of the rule, if known; for splits and tables."""


def write_grid(grid: Grid) -> str:
    """Return the rows as lines of digits, without a final line break."""
    return "\n".join("".join(map(str, row)) for row in grid)


def read_grid(text: str) -> Grid | None:
    """Return the valid grid at the start of a text, or None; white space is ignored, a line without digits ends it."""
    rows: list[tuple[int, ...]] = []
    for line in text.splitlines():
        packed = "".join(line.split())
        if packed.isascii() and packed.isdigit():
            rows.append(tuple(map(int, packed)))
        elif rows or packed:
            break
    grid = tuple(rows)
    return grid if grid and not any(grid_mistakes(grid)) else None


def write_pairs(pairs: Sequence[GridPair]) -> str:
    """Return demonstrations as text, inputs and outputs under their headings."""
    return "\n".join(f"{INPUT}\n{write_grid(p.input)}\n{OUTPUT}\n{write_grid(p.output)}" for p in pairs)


_ROWS = r"((?:[0-9]+\n)*[0-9]+)"
_PAIR = re.compile(rf"^{INPUT}\n{_ROWS}\n{OUTPUT}\n{_ROWS}$", re.MULTILINE)
_OUTPUT = re.compile(rf"^{OUTPUT}\n{_ROWS}$", re.MULTILINE)


def read_pairs(text: str) -> tuple[GridPair, ...]:
    """Parse the text of `write_pairs`."""

    def grid(rows: str) -> Grid:
        return tuple(tuple(map(int, row)) for row in rows.split("\n"))

    return tuple(GridPair(input=grid(one), output=grid(other)) for one, other in _PAIR.findall(text))


def output_spans(text: str) -> tuple[tuple[int, int], ...]:
    """Return the character spans (start, end) of the outputs in a text."""
    return tuple(match.span(1) for match in _OUTPUT.finditer(text))


def write_query(pairs: Sequence[GridPair], grid: Grid) -> str:
    """Return demonstrations and an input, ending where its output starts."""
    shown = f"{write_pairs(pairs)}\n" if pairs else ""
    return f"{shown}{INPUT}\n{write_grid(grid)}\n{OUTPUT}\n"


def vote(predictions: Sequence[Grid | None]) -> tuple[Grid, ...]:
    """Return the `ATTEMPTS` most frequent predictions (after arXiv 2411.07279); ties go to the earlier one."""
    counts = Counter(grid for grid in predictions if grid is not None)
    return tuple(grid for grid, _ in counts.most_common(ATTEMPTS))


@dataclass(frozen=True, slots=True)
class Transformation:
    """A named function of grids, identified by its name."""

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
    """Return an optional left-right mirroring followed by counterclockwise quarter turns."""
    name = "-".join(["mirror"] * mirrored + [f"turn-{90 * turns}"] * (turns > 0)) or "as-it-is"
    if mirrored:  # a reflection, which undoes itself
        return Orientation(name, *[lambda grid: _turned(_mirrored(grid), turns)] * 2)
    return Orientation(name, lambda grid: _turned(grid, turns), lambda grid: _turned(grid, -turns))


def shift(rows: int, columns: int) -> Transformation:
    """Return the cyclic shift down and right."""

    def apply(grid: Grid) -> Grid:
        height, width = len(grid), len(grid[0])
        return tuple(
            tuple(grid[(i - rows) % height][(j - columns) % width] for j in range(width)) for i in range(height)
        )

    return Transformation(f"shift-{rows}-{columns}", apply)


def recolouring(colours: Sequence[int]) -> Transformation:
    """Return the mapping of the colours 0 to 9 to `colours`."""
    name = "colours-" + "".join(map(str, colours))
    return Transformation(name, lambda grid: tuple(tuple(colours[cell] for cell in row) for row in grid))


def enlargement(rows: int, columns: int) -> Transformation:
    """Return the enlargement of each cell to a block of rows x columns."""
    return Transformation(
        f"enlarge-{rows}-{columns}",
        lambda grid: tuple(tuple(cell for cell in row for _ in range(columns)) for row in grid for _ in range(rows)),
    )


def tiling(rows: int, columns: int, *, mirrored: bool = False) -> Transformation:
    """Return the tiling with rows x columns copies; `mirrored` reflects every second one."""
    step = -1 if mirrored else 1

    def apply(grid: Grid) -> Grid:
        band = [sum((row[:: step**k] for k in range(columns)), ()) for row in grid]
        return tuple(row for k in range(rows) for row in band[:: step**k])

    return Transformation(f"{'mirror-' if mirrored else ''}tile-{rows}-{columns}", apply)


def chain(*steps: Transformation) -> Transformation:
    """Return the composition of transformations, the first one applied first."""

    def apply(grid: Grid) -> Grid:
        for step in steps:
            grid = step.apply(grid)
        return grid

    return Transformation("+".join(step.name for step in steps), apply)


ORIENTATIONS = tuple(_orientation(turns, mirrored) for mirrored in (False, True) for turns in range(4))
"""All eight, the identity first."""
IDENTITY, TURNS = ORIENTATIONS[0], ORIENTATIONS[1:4]
MIRROR, TRANSPOSE, FLIP = ORIENTATIONS[4:7]
"""Left to right, transpose, top to bottom."""


def random_recolouring(rng: random.Random, *, keep: Collection[int] = (0,)) -> Transformation:
    """Return a random permutation of the colours not in `keep`."""
    free = [colour for colour in range(COLOURS) if colour not in keep]
    becomes = dict(zip(free, rng.sample(free, len(free)), strict=True))
    return recolouring([becomes.get(colour, colour) for colour in range(COLOURS)])


def random_shift(rng: random.Random) -> Transformation:
    """Return a random shift by 0 to 5 rows and columns."""
    return shift(rng.randint(0, 5), rng.randint(0, 5))
