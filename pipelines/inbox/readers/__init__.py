"""Readers: from the bytes of a file to its text in blocks; an import here adds one (docs/extending.md).

A reader imports its library when a file needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import PurePath
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, TypeAlias

from pipelines.inbox.readers.markup import HTML as HTML
from pipelines.inbox.readers.markup import MARKDOWN as MARKDOWN
from pipelines.inbox.readers.office import PDF as PDF
from pipelines.inbox.readers.office import WORD as WORD
from pipelines.inbox.readers.text import PLAIN as PLAIN
from pipelines.inbox.readers.text import Extract, Reader

_READERS = [each for each in tuple(vars().values()) if isinstance(each, Reader)]
READERS: Mapping[str, Callable[[bytes], Extract]] = MappingProxyType({each.format: each.read for each in _READERS})
"""By format; those that hold one document. `pipelines.inbox.intake` reads rows of JSON."""

SUFFIXES: Mapping[str, str] = MappingProxyType(
    {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json"}
    | {suffix: each.format for each in _READERS for suffix in each.suffixes}
)
"""Formats by the end of a file's name, in lower case."""

if TYPE_CHECKING:
    Format: TypeAlias = str
else:
    Format = Literal[tuple(dict.fromkeys(SUFFIXES.values()))]


def format_of(name: str) -> Format | None:
    """Return the format by a file's name; None where its end is unknown."""
    return SUFFIXES.get(PurePath(name).suffix.lower())
