"""Readers turn the bytes of a file into text blocks; one is added by importing it here (docs/extending.md).

Parsing libraries are imported when a file needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, TypeAlias

from pipelines.inbox.readers.html import HTML as HTML
from pipelines.inbox.readers.html import MHTML as MHTML
from pipelines.inbox.readers.markdown import MARKDOWN as MARKDOWN
from pipelines.inbox.readers.office import PDF as PDF
from pipelines.inbox.readers.office import WORD as WORD
from pipelines.inbox.readers.text import PLAIN as PLAIN
from pipelines.inbox.readers.text import Extract, Reader

_READERS = [each for each in tuple(vars().values()) if isinstance(each, Reader)]
READERS: Mapping[str, Callable[[bytes], Extract]] = MappingProxyType({each.format: each.read for each in _READERS})
"""By format, for files that hold one document; `pipelines.inbox.intake` reads JSON rows."""

SUFFIXES: Mapping[str, str] = MappingProxyType(
    {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json"}
    | {suffix: each.format for each in _READERS for suffix in each.suffixes}
)
"""Formats by file name extension, in lower case."""

if TYPE_CHECKING:
    Format: TypeAlias = str
else:
    Format = Literal[tuple(dict.fromkeys(SUFFIXES.values()))]
