"""Readers: from the bytes of a file to its text in blocks. The libraries are imported when a file needs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import PurePath
from types import MappingProxyType
from typing import Literal, TypeAlias

from pipelines.inbox.blocks import Extract
from pipelines.inbox.readers.html import read_html
from pipelines.inbox.readers.markdown import read_markdown
from pipelines.inbox.readers.pdf import read_pdf
from pipelines.inbox.readers.plain import read_plain
from pipelines.inbox.readers.word import read_word

Format: TypeAlias = Literal["jsonl", "json", "markdown", "html", "text", "pdf", "docx"]
"""What a file is read as."""

SUFFIXES: Mapping[str, Format] = MappingProxyType(
    {
        ".jsonl": "jsonl",
        ".ndjson": "jsonl",
        ".json": "json",
        ".md": "markdown",
        ".markdown": "markdown",
        ".html": "html",
        ".htm": "html",
        ".xhtml": "html",
        ".txt": "text",
        ".text": "text",
        ".pdf": "pdf",
        ".docx": "docx",
    }
)
"""Formats by the end of a file's name, in lower case."""

READERS: Mapping[Format, Callable[[bytes], Extract]] = MappingProxyType(
    {"markdown": read_markdown, "html": read_html, "text": read_plain, "pdf": read_pdf, "docx": read_word}
)
"""Readers of the formats that hold one document; rows of JSON are read by `pipelines.inbox.rows`."""


def format_of(name: str) -> Format | None:
    """Return what a file is by its name, or None where the name does not tell."""
    return SUFFIXES.get(PurePath(name).suffix.lower())
