"""Readers turn the bytes of a file into text blocks; one is added by importing it here (docs/extending.md).

Parsing libraries are imported when a file needs them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, TypeAlias

from pipelines.inbox.readers.html import HTML as HTML
from pipelines.inbox.readers.html import MAIL as MAIL
from pipelines.inbox.readers.html import MHTML as MHTML
from pipelines.inbox.readers.markdown import MARKDOWN as MARKDOWN
from pipelines.inbox.readers.office import BOOK as BOOK
from pipelines.inbox.readers.office import SLIDES as SLIDES
from pipelines.inbox.readers.office import WORD as WORD
from pipelines.inbox.readers.pdf import PDF as PDF
from pipelines.inbox.readers.text import CSV as CSV
from pipelines.inbox.readers.text import PLAIN as PLAIN
from pipelines.inbox.readers.text import SHEETS as SHEETS
from pipelines.inbox.readers.text import Extract, Reader, UnreadableError, one_line

_READERS = [each for each in tuple(vars().values()) if isinstance(each, Reader)]


def _guarded(reader: Reader) -> Callable[[bytes], Extract]:
    """Return a reader's function that raises nothing but UnreadableError, whatever its libraries raise."""

    @functools.wraps(reader.read)
    def read(content: bytes) -> Extract:
        try:
            return reader.read(content)
        except UnreadableError:
            raise
        except ModuleNotFoundError as error:
            raise UnreadableError(
                f"needs the Python package {error.name}: install Preceptor with all it needs"
            ) from error
        except Exception as error:  # damaged files make libraries raise anything
            cause = one_line(str(error)) or type(error).__name__
            raise UnreadableError(f"is not a readable {reader.format.upper()} file: {cause}") from error

    return read


READERS: Mapping[str, Callable[[bytes], Extract]] = MappingProxyType({each.format: _guarded(each) for each in _READERS})
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
