"""Text in blocks, as all readers return it, and the reader of plain text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from evaluation.common.text import clean_text, decode_text

OLE = b"\xd0\xcf\x11\xe0"
"""Magic number of OLE files: Office formats of before, encrypted new ones, and Outlook's messages."""
_BLANK_LINES = re.compile(r"\n[ \t]*(?:\n[ \t]*)+")


class UnreadableError(ValueError):
    """A file or line is rejected; the message is the reason alone, and the caller adds the location."""


class Block(NamedTuple):
    """A paragraph or a heading."""

    text: str
    """Not blank."""
    level: int = 0
    """0 for a paragraph, 1 (highest) to 6 for a heading."""


class Extract(NamedTuple):
    """The content of a file."""

    blocks: tuple[Block, ...]
    """In reading order."""
    title: str = ""
    """From the file's own metadata; empty if it has none."""
    fields: Mapping[str, Any] = MappingProxyType({})
    """Further raw fields of an inbox row found in the file."""
    notes: tuple[str, ...] = ()
    """Warnings: pages without text, and what was left out, with its number of words."""


class Reader(NamedTuple):
    """A reader of files that hold one document."""

    format: str
    suffixes: tuple[str, ...]
    """File name extensions in lower case."""
    read: Callable[[bytes], Extract]
    """Raises UnreadableError for a file that it rejects, such as a damaged one."""


def read_plain(content: bytes) -> Extract:
    """Return the paragraphs of a text file."""
    return Extract(paragraphs(text_of(content)))


def paragraphs(text: str) -> tuple[Block, ...]:
    """Return the paragraphs of a plain text, which blank lines separate."""
    return blocks_of(map(Block, _BLANK_LINES.split(clean_text(text))))


def blocks_of(blocks: Iterable[Block]) -> tuple[Block, ...]:
    """Return the blocks, cleaned and stripped; blank ones are left out."""
    cleaned = ((clean_text(block.text).strip(), block.level) for block in blocks)
    return tuple(Block(text, level) for text, level in cleaned if text)


def one_line(text: str) -> str:
    """Return a text with its white space collapsed."""
    return " ".join(text.split())


def truncated(text: str, limit: int) -> str:
    """Return a text of at most `limit` characters, with an ellipsis if it was longer."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def text_of(content: bytes) -> str:
    """Return a file in a Unicode encoding as text; raises UnreadableError for any other."""
    try:
        return decode_text(content)
    except ValueError as error:
        raise UnreadableError(str(error)) from error


PLAIN = Reader("text", (".txt", ".text"), read_plain)
