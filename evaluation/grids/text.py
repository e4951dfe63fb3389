"""Grids as text, the same for teachers, for students' training and for their answers: rows of digits, one a line."""

from __future__ import annotations

import re
from collections.abc import Sequence

from evaluation.grids.tasks import Grid, GridPair, grid_mistakes

INPUT, OUTPUT = "Input:", "Output:"
_OUTPUT = re.compile(rf"^{OUTPUT}\n((?:[0-9]+\n)*[0-9]+)$", re.MULTILINE)


def write_grid(grid: Grid) -> str:
    """Return the rows as digits, a line each, without a line break at the end."""
    return "\n".join("".join(map(str, row)) for row in grid)


def read_grid(text: str) -> Grid | None:
    """Return the grid that a text begins with, or None where it begins with none that is allowed.

    White space within rows is passed over; the first line that is not of digits, after the first that is, ends it.
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


def output_spans(text: str) -> list[tuple[int, int]]:
    """Return where the outputs of demonstrations are in a text: first character, and the one after the last."""
    return [match.span(1) for match in _OUTPUT.finditer(text)]


def write_query(pairs: Sequence[GridPair], grid: Grid) -> str:
    """Return demonstrations and an input, up to where its output starts."""
    shown = [*([write_pairs(pairs)] if pairs else []), f"{INPUT}\n{write_grid(grid)}\n{OUTPUT}\n"]
    return "\n".join(shown)
