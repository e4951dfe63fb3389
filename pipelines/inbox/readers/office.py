"""PDF and DOCX: paragraphs, headings, lists and tables in reading order."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from typing import Any

from pipelines.inbox.readers.text import Block, Extract, Reader, UnreadableError, blocks_of, one_line, without_unfit

_SHORT_LINE = 0.75
"""A line shorter than this share of the page's longest ends its paragraph: headings, list items, last lines."""
_SOFT_HYPHEN = "\u00ad"
_MOST_LISTED = 10
"""Page numbers that a note lists."""
MOST_UNPACKED_BYTES = 500 * 2**20
"""Largest content of a DOCX file when unpacked, in bytes; more is no document but an attack or a film."""
_HEADING = re.compile(r"Heading ([1-9])")
_OLD_OFFICE = b"\xd0\xcf\x11\xe0"
"""What files of the old binary Office begin with, and encrypted ones of the new."""


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


def read_word(content: bytes) -> Extract:
    """Return the text of a DOCX file; headers, footers, comments and what was deleted are left out.

    Raises:
        UnreadableError: It is encrypted, an old .doc, too large when unpacked, or not a DOCX file that can be read.
    """
    from docx import Document

    if content.startswith(_OLD_OFFICE):
        raise UnreadableError("is an old .doc file or encrypted; save it as .docx without a password")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            size = sum(item.file_size for item in archive.infolist())
        if size > MOST_UNPACKED_BYTES:
            raise UnreadableError(
                f"unpacks to {size / 2**20:.0f} MiB, allowed are {MOST_UNPACKED_BYTES // 2**20}; is it a document?"
            )
        document = Document(io.BytesIO(content))
        _unwrap(document.element.body)
        blocks = blocks_of(_blocks(document))
        title = document.core_properties.title
    except UnreadableError:
        raise
    except Exception as error:  # a damaged file raises what zipfile, lxml and the library happen to raise
        cause = one_line(str(error)) or type(error).__name__
        raise UnreadableError(f"is not a DOCX file that can be read: {cause}") from error
    return Extract(blocks, one_line(title or ""))


def _unwrap(body: Any) -> None:
    """Put what stands in content controls and insertions where they stand: the library passes over both.

    A table of contents is a content control as well; it says nothing that the headings do not, and is taken out.
    """
    from docx.oxml.ns import qn

    for name in ("w:sdt", "w:ins", "w:moveTo", "w:smartTag"):
        for wrapper in list(body.iter(qn(name))):
            inner = wrapper.find(qn("w:sdtContent")) if name == "w:sdt" else wrapper
            galleries = [item.get(qn("w:val")) for item in wrapper.iter(qn("w:docPartGallery"))]
            if inner is not None and "Table of Contents" not in galleries:
                for child in list(inner):
                    wrapper.addprevious(child)
            parent = wrapper.getparent()
            if parent is not None:
                parent.remove(wrapper)


def _blocks(container: Any) -> Iterator[Block]:
    """Yield the blocks of a document or of a table's cell."""
    from docx.table import Table

    for item in container.iter_inner_content():
        if isinstance(item, Table):
            yield Block("\n".join(_rows(item)))
        else:
            style = item.style.name if item.style is not None else ""
            mark = "- " if style.startswith("List") else ""
            yield Block(mark + without_unfit(item.text) if item.text.strip() else "", _level(style))


def _rows(table: Any) -> Iterator[str]:
    """Yield the rows of a table, cells with a bar between them; a cell that spans several columns comes once."""
    for row in table.rows:
        cells = []
        before = None
        for cell in row.cells:
            if cell._tc is not before:
                cells.append(one_line(" ".join(block.text for block in _blocks(cell))))
            before = cell._tc
        if any(cells):
            yield " | ".join(cells)


def _level(style: str) -> int:
    """Return the heading level of a style, 0 for none; a title stands above everything."""
    if style == "Title":
        return 1
    found = _HEADING.fullmatch(style)
    return min(int(found.group(1)), 6) if found else 0


PDF = Reader("pdf", (".pdf",), read_pdf)
WORD = Reader("docx", (".docx",), read_word)
