"""What readers make of a file: its text in blocks, with headings told apart, and what it says of itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

_BLANK_LINES = re.compile(r"\n[ \t\f\v]*(?:\n[ \t\f\v]*)+")
_UNFIT = re.compile("[\0\ud800-\udfff]")


class UnreadableError(ValueError):
    """A file or line cannot be taken; the message is the reason alone, for the caller to put a place in front."""


class Block(NamedTuple):
    """A paragraph, or a heading."""

    text: str
    """Not blank."""
    level: int = 0
    """0 for a paragraph, 1 to 6 for a heading, 1 the highest."""


class Extract(NamedTuple):
    """The content of a file."""

    blocks: tuple[Block, ...]
    """In reading order."""
    title: str = ""
    """As the file itself gives it; empty where it gives none."""
    fields: Mapping[str, Any] = MappingProxyType({})
    """Fields of a document that the file gives beside its text, as raw values."""
    notes: tuple[str, ...] = ()
    """What a person should know, such as pages without text."""

    @property
    def first_heading(self) -> str:
        """The first heading of the highest level, on one line; empty where there is none."""
        highest = min((block.level for block in self.blocks if block.level), default=0)
        return next((one_line(block.text) for block in self.blocks if highest and block.level == highest), "")


def paragraphs(text: str) -> tuple[Block, ...]:
    """Return the paragraphs of a plain text, which blank lines divide."""
    return blocks_of(Block(part) for part in _BLANK_LINES.split(text))


def blocks_of(blocks: Iterable[Block]) -> tuple[Block, ...]:
    """Return the blocks without blank ones and without white space around them."""
    return tuple(Block(block.text.strip(), block.level) for block in blocks if block.text.strip())


def joined(blocks: Sequence[Block]) -> str:
    """Return the text of blocks, with an empty line between two of them."""
    return "\n\n".join(block.text for block in blocks)


def one_line(text: str) -> str:
    """Return a text with each run of white space as one space."""
    return " ".join(text.split())


def cut(text: str, most: int) -> str:
    """Return a text as it is, or its first characters and an ellipsis where it is longer than `most` characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def without_unfit(text: str) -> str:
    """Return a text that was drawn from a binary file, with what is no Unicode text replaced by U+FFFD."""
    return _UNFIT.sub("\ufffd", text)


def decoded(content: bytes) -> str:
    """Return the text of bytes in UTF-8, or in UTF-16 where they begin with its mark; line ends become LF.

    Raises:
        UnreadableError: They are neither.
    """
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UnreadableError(
            f"is not UTF-8: line {line} has the byte {content[error.start]:#04x}; convert it, "
            "for example with iconv -f WINDOWS-1252 -t UTF-8"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")
