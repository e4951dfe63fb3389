"""Grid tasks as in ARC (arXiv 1911.01547): a rule shown by pairs of grids, to be applied to test inputs; as text, too.

Grids are written alike for teachers, for students' training and for their answers: rows of digits, one a line.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, Field, StrictInt

from evaluation.common.data import Frozen

COLOURS = 10
"""Cells are 0 to 9; 0 is the background."""
LONGEST_SIDE = 30
INPUT, OUTPUT = "Input:", "Output:"
ATTEMPTS = 2
"""Outputs that may be submitted for a test input; one of them must be right (ARC Prize rules)."""

Grid: TypeAlias = tuple[tuple[int, ...], ...]
"""Rows of cells, H x W."""


def grid_mistakes(rows: Grid) -> Iterator[str]:
    """Yield all that keeps rows from being a grid."""
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
"""A grid that is rectangular, with 1 to 30 rows and columns and colours 0 to 9."""


class GridPair(Frozen):
    """A grid and its output under the rule."""

    input: CheckedGrid
    output: CheckedGrid


class GridTest(Frozen):
    """A grid to apply the rule to."""

    input: CheckedGrid
    output: CheckedGrid | None = None
    """The gold output; None where it is unknown, so that the task cannot be scored."""


class GridTask(Frozen):
    """One adaptation problem: infer a rule from demonstrations and apply it."""

    id: str = Field(min_length=1)
    """Unique within a data set."""
    demonstrations: tuple[GridPair, ...] = Field(min_length=1)
    tests: tuple[GridTest, ...] = Field(min_length=1)
    """Never shown to the teacher and never trained on."""
    source: str = ""
    family: str = ""
    """Family of the rule where known; for splits and tables alone."""


def write_grid(grid: Grid) -> str:
    """Return the rows as digits, a line each, without a line break at the end."""
    return "\n".join("".join(map(str, row)) for row in grid)


def read_grid(text: str) -> Grid | None:
    """Return the grid that a text begins with, or None where it begins with none that is allowed.

    White space within rows is skipped; the first line that is not of digits, after the first that is, ends the grid.
    """
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
    """Return demonstrations, each as its input and its output under their headings."""
    return "\n".join(f"{INPUT}\n{write_grid(p.input)}\n{OUTPUT}\n{write_grid(p.output)}" for p in pairs)


_ROWS = r"((?:[0-9]+\n)*[0-9]+)"
_PAIR = re.compile(rf"^{INPUT}\n{_ROWS}\n{OUTPUT}\n{_ROWS}$", re.MULTILINE)
_OUTPUT = re.compile(rf"^{OUTPUT}\n{_ROWS}$", re.MULTILINE)


def read_pairs(text: str) -> tuple[GridPair, ...]:
    """Return the demonstrations that `write_pairs` wrote."""

    def grid(rows: str) -> Grid:
        return tuple(tuple(map(int, row)) for row in rows.split("\n"))

    return tuple(GridPair(input=grid(one), output=grid(other)) for one, other in _PAIR.findall(text))


def output_spans(text: str) -> tuple[tuple[int, int], ...]:
    """Return the spans of the demonstrations' outputs in a text: first character, and the one after the last."""
    return tuple(match.span(1) for match in _OUTPUT.finditer(text))


def write_query(pairs: Sequence[GridPair], grid: Grid) -> str:
    """Return demonstrations and an input, up to where its output starts."""
    shown = f"{write_pairs(pairs)}\n" if pairs else ""
    return f"{shown}{INPUT}\n{write_grid(grid)}\n{OUTPUT}\n"


def vote(predictions: Sequence[Grid | None]) -> tuple[Grid, ...]:
    """Return the outputs to submit, at most `ATTEMPTS`, the most frequent first (after arXiv 2411.07279).

    Args:
        predictions: One of each view, in order; None is an answer without a grid. Ties go to the earlier one.
    """
    counts = Counter(grid for grid in predictions if grid is not None)
    return tuple(grid for grid, _ in counts.most_common(ATTEMPTS))


def cell_accuracy(prediction: Grid | None, gold: Grid) -> float:
    """Return the share of the gold output's cells that a prediction has right, in [0, 1]; 0 for another shape."""
    if prediction is None or (len(prediction), len(prediction[0])) != (len(gold), len(gold[0])):
        return 0.0
    hits = sum(a == b for mine, own in zip(prediction, gold, strict=True) for a, b in zip(mine, own, strict=True))
    return hits / (len(gold) * len(gold[0]))
