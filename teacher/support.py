"""Whether a line says only numbers, dates and names that the passage has (a first, simple form)."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

_ITEM = re.compile(r"\d[\d.,]*\d|\d|\b[A-Z]\w+")


class Support(NamedTuple):
    """What a passage says of a line."""

    verdict: Literal["supported", "inferred"]
    """`supported`: every number, date and name of the line occurs in the passage; else `inferred`."""
    missing: tuple[str, ...] = ()
    """Those that do not, as the line writes them."""


def support(line: str, span: str) -> Support:
    """Return whether every number, date and proper name of a line occurs in the span that it cites."""
    missing = tuple(dict.fromkeys(item for item in _ITEM.findall(line) if item.casefold() not in span.casefold()))
    return Support("inferred" if missing else "supported", missing)
