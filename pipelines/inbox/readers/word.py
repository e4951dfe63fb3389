"""DOCX: headings, paragraphs, list items and tables in reading order."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from typing import Any

from pipelines.inbox.blocks import Block, Extract, UnreadableError, blocks_of, one_line, without_unfit

MOST_UNPACKED_BYTES = 500 * 2**20
"""Largest content of a DOCX file when unpacked, in bytes; more is no document but an attack or a film."""
_HEADING = re.compile(r"Heading ([1-9])")
_OLD_OFFICE = b"\xd0\xcf\x11\xe0"
"""What files of the old binary Office begin with, and encrypted ones of the new."""


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
            yield Block(_mark(style) + without_unfit(item.text) if item.text.strip() else "", _level(style))


def _rows(table: Any) -> Iterator[str]:
    """Yield the rows of a table, cells with a bar between them; a cell that spans several columns is told once."""
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


def _mark(style: str) -> str:
    return "- " if style.startswith("List") else ""
