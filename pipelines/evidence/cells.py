"""How figures are written: per cent and points with one decimal and their intervals, and Markdown tables of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from pipelines import report

NAMES = {
    "base": "base student, no update",
    "raw_passage": "raw passage",
    "null_edit": "self-edit that says nothing",
    "other_document": "trained teacher's self-edit for another document",
    "swapped_values": "trained teacher's self-edit, values swapped",
    "fixed_kind": "best fixed kind",
    "fixed_kind_equal_tokens": "best fixed kind at the trained teacher's tokens",
    "external_generator": "external generator",
    "untrained_teacher": "untrained teacher",
    "proxy_teacher": "teacher trained on the proxy reward",
    "trained_teacher": "**trained teacher**",
    "oracle": "all facts (oracle)",
}
"""Variants by name, in the order of tables."""

UNKNOWN = "–"


class HasEnds(Protocol):
    """A mean with its interval: a record, a statistic or a random-effects mean."""

    @property
    def mean(self) -> float:
        """The estimate."""

    @property
    def low(self) -> float:
        """Lower end."""

    @property
    def high(self) -> float:
        """Upper end."""


def in_order(names: Iterable[str]) -> list[str]:
    """Return the names of variants in the order of tables, unknown ones last."""
    places = {name: place for place, name in enumerate(NAMES)}
    return sorted(names, key=lambda name: (places.get(name, len(places)), name))


def variant(name: str) -> str:
    """Return what people call a variant."""
    return NAMES.get(name, name.replace("_", " "))


def gain_name(key: str) -> str:
    """Return what people call a difference such as `trained_minus_untrained`."""
    return key.replace("_minus_", " − ").replace("_", " ")


def percent(value: float | None) -> str:
    """Return a share in per cent with one decimal; a dash where it is unknown."""
    return UNKNOWN if value is None else f"{round(100 * value, 1) + 0.0:.1f}"


def points(value: float | None) -> str:
    """Return a difference in points with its sign; what rounds to zero has a plus."""
    return UNKNOWN if value is None else report.points(value)


def share(found: HasEnds | None) -> str:
    """Return a share in per cent with its interval in brackets."""
    return UNKNOWN if found is None else f"{percent(found.mean)} [{percent(found.low)}, {percent(found.high)}]"


def difference(found: HasEnds | None) -> str:
    """Return a difference in points with its interval in brackets."""
    return UNKNOWN if found is None else f"{points(found.mean)} [{points(found.low)}, {points(found.high)}]"


def plain(value: float | None, digits: int = 2) -> str:
    """Return a number with so many decimals; a dash where it is unknown."""
    return UNKNOWN if value is None else f"{round(value, digits) + 0.0:,.{digits}f}"


def p_value(value: float | None) -> str:
    """Return a p-value with three decimals."""
    return UNKNOWN if value is None else report.p_value(value)


def reading(found: HasEnds | None) -> str:
    """Return what an interval shows of a difference."""
    if found is None:
        return UNKNOWN
    return "above 0" if found.low > 0.0 else "below 0" if found.high < 0.0 else "within noise"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int = 1) -> str:
    """Return a Markdown table.

    Args:
        heads: Of the columns.
        rows: Cells, as many as heads.
        texts: Columns from the left that hold text; the others are set to the right.
    """
    rule = ["---" if place < texts else "---:" for place in range(len(heads))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, rule, *rows))


def folded(summary: str, text: str) -> str:
    """Return text that GitHub shows on a click."""
    return f"<details>\n<summary>{summary}</summary>\n\n{text}\n\n</details>"
