"""PDF: the text of its pages in paragraphs; headings where the file's outline names a line of a page."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from pipelines.inbox.blocks import Block, Extract, UnreadableError, blocks_of, one_line, without_unfit

_SHORT_LINE = 0.75
"""A line shorter than this share of the page's longest ends its paragraph: headings, list items, last lines."""
_SOFT_HYPHEN = "\u00ad"
_MOST_LISTED = 10
"""Page numbers that a note lists."""


def read_pdf(content: bytes) -> Extract:
    """Return the text of a PDF; one that opens without a password is read even where it is marked as encrypted.

    Raises:
        UnreadableError: It needs a password, has no text (a scan), or is not a PDF that can be read.
    """
    import logging

    from pypdf import PdfReader
    from pypdf.errors import DependencyError, FileNotDecryptedError

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it warns of every flaw that it repairs
    try:
        reader = PdfReader(io.BytesIO(content))
        if reader.is_encrypted and not reader.decrypt(""):
            raise UnreadableError("is encrypted and needs a password; save it without one")
        texts = [without_unfit(page.extract_text()) for page in reader.pages]
        title = reader.metadata.title if reader.metadata else None
    except UnreadableError:
        raise
    except (FileNotDecryptedError, DependencyError) as error:
        raise UnreadableError(f"is encrypted in a way that cannot be opened ({error}); save it without") from error
    except Exception as error:  # a damaged file raises anything, down to RecursionError and struct.error
        cause = one_line(str(error)) or type(error).__name__
        raise UnreadableError(f"is not a PDF that can be read: {cause}") from error
    empty = [str(number) for number, text in enumerate(texts, start=1) if not text.strip()]
    if len(empty) == len(texts):
        count = "page" if len(texts) == 1 else "pages"
        raise UnreadableError(f"has {len(texts)} {count} and no text: it is a scan; give it a text layer (OCR) first")
    headings = _headings(reader)
    blocks = [block for i, text in enumerate(texts) for block in _page(text, headings.get(i, {}))]
    listed = ", ".join(empty[:_MOST_LISTED]) + (" and more" if len(empty) > _MOST_LISTED else "")
    notes = (f"no text on {len(empty)} of {len(texts)} pages ({listed}): blank or scanned",) if empty else ()
    return Extract(blocks_of(blocks), one_line(without_unfit(str(title or ""))), notes=notes)


def _headings(reader: Any) -> dict[int, dict[str, int]]:
    """Return the levels of the outline's entries by page (from 0) and text; none where the outline is damaged."""
    found: dict[int, dict[str, int]] = {}

    def take(entries: Any, level: int) -> None:
        for entry in entries:
            if isinstance(entry, list):
                take(entry, level + 1)
            elif (page := reader.get_destination_page_number(entry)) is not None:
                found.setdefault(page, {})[one_line(without_unfit(str(entry.title)))] = min(level, 6)

    try:
        take(reader.outline, 1)
    except Exception:  # as above; an outline is a help, not the text
        return {}
    return found


def _page(text: str, headings: dict[str, int]) -> Iterator[Block]:
    """Yield the paragraphs of a page: lines that were broken for the page's width are joined again."""
    lines = [line.rstrip() for line in text.splitlines()]
    width = max((len(line) for line in lines), default=0)
    held = ""
    for line in lines:
        level = headings.get(one_line(line), 0)
        if level or not line.strip():
            yield Block(held)
            held = ""
            yield Block(line, level)
            continue
        held = held[:-1] + line.lstrip() if held.endswith(_SOFT_HYPHEN) else f"{held} {line.strip()}"
        if len(line) < _SHORT_LINE * width:
            yield Block(held)
            held = ""
    yield Block(held)
