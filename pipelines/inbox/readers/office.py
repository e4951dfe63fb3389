"""PDF and DOCX: paragraphs, headings, lists and tables in reading order."""

from __future__ import annotations

import io
import itertools
import re
import zipfile
from collections.abc import Iterator
from typing import Any

from pipelines.inbox.readers.text import Block, Extract, Reader, UnreadableError, blocks_of, one_line, valid_unicode

_SHORT_LINE = 0.75
"""A line shorter than this share of the page's longest ends its paragraph."""
_SOFT_HYPHEN = "\u00ad"
_MAX_LISTED_PAGES = 10
MAX_UNPACKED_BYTES = 500 * 2**20
"""Of a DOCX file; a larger one is a decompression bomb or full of media."""
_HEADING = re.compile(r"Heading ([1-9])")
_OLD_OFFICE = b"\xd0\xcf\x11\xe0"
"""Magic number of OLE files: legacy Office formats and encrypted new ones."""


def read_pdf(content: bytes) -> Extract:
    """Return the text of a PDF, also of an encrypted one with an empty user password; scans have none."""
    import logging

    from pypdf import PdfReader
    from pypdf.errors import DependencyError, FileNotDecryptedError

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it warns of every defect that it repairs
    try:
        reader = PdfReader(io.BytesIO(content))
        if reader.is_encrypted and not reader.decrypt(""):
            raise UnreadableError("is encrypted and needs a password; save it without one")
        texts = [valid_unicode(page.extract_text()) for page in reader.pages]
        title = reader.metadata.title if reader.metadata else None
    except UnreadableError:
        raise
    except (FileNotDecryptedError, DependencyError) as error:
        raise UnreadableError(f"uses unsupported encryption ({error}); save it without") from error
    except Exception as error:  # damaged files raise anything, such as RecursionError or struct.error
        cause = one_line(str(error)) or type(error).__name__
        raise UnreadableError(f"is not a readable PDF: {cause}") from error
    empty = [str(number) for number, text in enumerate(texts, start=1) if not text.strip()]
    if len(empty) == len(texts):
        count = f"{len(texts)} page{'s' * (len(texts) != 1)}"
        raise UnreadableError(f"has {count} and no text: it is a scan; give it a text layer (OCR) first")
    headings = _headings(reader)
    blocks = [block for i, text in enumerate(texts) for block in _page(text, headings.get(i, {}))]
    listed = ", ".join(empty[:_MAX_LISTED_PAGES]) + (" and more" if len(empty) > _MAX_LISTED_PAGES else "")
    notes = (f"no text on {len(empty)} of {len(texts)} pages ({listed}): blank or scanned",) if empty else ()
    return Extract(blocks_of(blocks), one_line(valid_unicode(str(title or ""))), notes=notes)


def _headings(reader: Any) -> dict[int, dict[str, int]]:
    """Return the levels of the outline's entries by page (from 0) and text; empty if the outline is damaged."""
    found: dict[int, dict[str, int]] = {}

    def take(entries: Any, level: int) -> None:
        for entry in entries:
            if isinstance(entry, list):
                take(entry, level + 1)
            elif (page := reader.get_destination_page_number(entry)) is not None:
                found.setdefault(page, {})[one_line(valid_unicode(str(entry.title)))] = min(level, 6)

    try:
        take(reader.outline, 1)
    except Exception:  # as above; the outline is optional
        return {}
    return found


def _page(text: str, headings: dict[str, int]) -> Iterator[Block]:
    """Yield a page's paragraphs with wrapped lines joined."""
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
    """Return the body text of a DOCX file, without headers, footers, comments and tracked deletions."""
    from docx import Document

    if content.startswith(_OLD_OFFICE):
        raise UnreadableError("is a legacy .doc file or encrypted; save it as .docx without a password")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            size = sum(item.file_size for item in archive.infolist())
        if size > MAX_UNPACKED_BYTES:
            raise UnreadableError(
                f"unpacks to {size / 2**20:.0f} MiB, allowed are {MAX_UNPACKED_BYTES // 2**20}; is it a document?"
            )
        document = Document(io.BytesIO(content))
        _unwrap(document.element.body)
        blocks = blocks_of(_blocks(document))
        title = document.core_properties.title
    except UnreadableError:
        raise
    except Exception as error:  # from zipfile, lxml or python-docx
        cause = one_line(str(error)) or type(error).__name__
        raise UnreadableError(f"is not a readable DOCX file: {cause}") from error
    return Extract(blocks, one_line(title or ""))


def _unwrap(body: Any) -> None:
    """Inline content controls and tracked insertions, which python-docx skips; remove tables of contents."""
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
    """Yield the blocks of a document or table cell."""
    from docx.table import Table

    for item in container.iter_inner_content():
        if isinstance(item, Table):
            yield Block("\n".join(_rows(item)))
        else:
            style = item.style.name if item.style is not None else ""
            mark = "- " if style.startswith("List") else ""
            yield Block(mark + valid_unicode(item.text) if item.text.strip() else "", _level(style))


def _rows(table: Any) -> Iterator[str]:
    """Yield a table's rows, cells separated by ` | `; a merged cell appears once."""
    for row in table.rows:
        distinct = (next(cells) for _, cells in itertools.groupby(row.cells, key=lambda cell: cell._tc))
        texts = [one_line(" ".join(block.text for block in _blocks(cell))) for cell in distinct]
        if any(texts):
            yield " | ".join(texts)


def _level(style: str) -> int:
    """Return a style's heading level, 0 for none."""
    if style == "Title":
        return 1
    found = _HEADING.fullmatch(style)
    return min(int(found.group(1)), 6) if found else 0


PDF = Reader("pdf", (".pdf",), read_pdf)
WORD = Reader("docx", (".docx",), read_word)
