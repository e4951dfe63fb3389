"""How figures read wherever people see them: percent, points, p-values, counts, durations, tables, wrapped text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from evaluation.statistics import Interval

WIDTH = 80
"""Columns that sentences are wrapped to; commands and paths are never broken."""

UNKNOWN = "-"
"""Shown for a figure that is not known."""

_BLANK = "    \n"
_LINE_UNDER_HEAD = 2 * _BLANK + " -- \n" + 5 * _BLANK


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is 1."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share in [0, 1] in percent, without the sign."""
    return UNKNOWN if share is None else f"{100 * share:.{digits}f}"


def percent_interval(interval: Interval | None) -> str:
    """Return a share with its interval in percent: `32.4 [25.5, 40.3]`."""
    if interval is None:
        return UNKNOWN
    return f"{percent(interval.mean)} [{percent(interval.low)}, {percent(interval.high)}]"


def points(difference: float | None) -> str:
    """Return a difference in points with its sign; what rounds to zero has a plus."""
    return UNKNOWN if difference is None else f"{round(100 * difference, 1) + 0.0:+.1f}"


def points_interval(interval: Interval | None) -> str:
    """Return a difference with its interval in points: `+18.3 [+10.2, +26.4]`."""
    if interval is None:
        return UNKNOWN
    return f"{points(interval.mean)} [{points(interval.low)}, {points(interval.high)}]"


def p_value(value: float) -> str:
    """Return a p-value to three decimals."""
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def tokens(number: float | None) -> str:
    """Return a mean number of tokens, rounded."""
    return UNKNOWN if number is None else f"{number:,.0f}"


def duration(seconds: float) -> str:
    """Return a time in seconds, or in minutes from 10 minutes on."""
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"


def plain_table(title: str, caption: str = "", heads: Sequence[str] = ()) -> Table:
    """Return an empty table without vertical lines, which cost columns; further columns can be added to `heads`."""
    from rich import box
    from rich.table import Table

    return Table(
        *heads,
        title=title,
        caption=caption,
        title_justify="left",
        caption_justify="left",
        box=box.Box(_LINE_UNDER_HEAD, ascii=True),
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table whose first column is text and whose others are figures."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, ["---", *("---:" for _ in heads[1:])], *rows))


def wrapped(text: str, first: str = "  ", rest: str = "  ") -> list[str]:
    """Return `text` in lines that begin with `first` and `rest`, wrapped to `WIDTH` columns; no word is broken."""
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )
