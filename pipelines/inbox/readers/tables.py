"""Tables as text: a row a line, every value in its column, the header again where a long table is divided."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pipelines.inbox.readers.text import Block

_MOST_CHARACTERS = 2_000
"""Of a block of a table; a longer one is divided between rows."""


class Cell(NamedTuple):
    """A cell of a table."""

    text: str
    rows: int
    """Rows that it spans; 0 for all that follow."""
    columns: int
    heads: bool
    """Whether it is a header."""


def table_blocks(rows: Sequence[Sequence[Cell]]) -> Iterator[Block]:
    """Yield a table: cells separated by ` | `, a cell that spans rows or columns repeated in each."""
    lines = [" | ".join(line) if any(line) else "" for line in _grid(rows)]
    heads = [*itertools.takewhile(lambda i: rows[i] and all(cell.heads for cell in rows[i]), range(len(rows)))]
    header = [lines[i] for i in heads if lines[i]]
    held, size = list(header), 0
    for line in filter(None, lines[len(heads) :]):
        if size and size + len(line) > _MOST_CHARACTERS:
            yield Block("\n".join(held))
            held, size = list(header), 0
        held.append(line)
        size += len(line) + 1
    yield Block("\n".join(held))


def _grid(rows: Sequence[Sequence[Cell]]) -> Iterator[list[str]]:
    """Yield the rows with a text for each column."""
    widest = max((len(row) for row in rows), default=0)
    spanning: dict[int, tuple[str, int]] = {}  # by column: a text from above, and for how many rows more
    for row in rows:
        if len(row) == 1 and row[0].columns >= widest > 1 and not spanning:
            yield [row[0].text]
            continue
        line: list[str] = []
        due = max(spanning, default=-1)
        for cell in (*row, None):
            while len(line) in spanning or (cell is None and len(line) <= due):
                text, more = spanning.pop(len(line), ("", 0))
                if more > 1:
                    spanning[len(line)] = (text, more - 1)
                line.append(text)
            for _ in range(min(cell.columns, widest) or 1 if cell else 0):
                if cell and cell.rows != 1:
                    spanning[len(line)] = (cell.text, cell.rows - 1 if cell.rows else len(rows))
                line.append(cell.text if cell else "")
        yield line
