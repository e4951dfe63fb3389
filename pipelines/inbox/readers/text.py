"""Text in blocks, as all readers return it, and the reader of plain text."""

from __future__ import annotations

import csv
import datetime
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from evaluation.common.text import clean_text, decode_text
from evaluation.sources.sections import PAGE

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
    page: int = 0
    """On which it begins, from 1; 0 where the format has no pages."""


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
    cleaned = (block._replace(text=clean_text(block.text).strip()) for block in blocks)
    return tuple(block for block in cleaned if block.text)


def with_marks(blocks: Iterable[Block]) -> Iterator[Block]:
    """Yield blocks with headings as in Markdown and a line where a page begins (`evaluation.sources.sections`)."""
    page = 0
    for block in blocks:
        start = f"{PAGE}{block.page}\n" if block.page != page else ""
        heading = f"{'#' * block.level} {one_line(block.text)}" if block.level else block.text
        yield block._replace(text=start + heading)
        page = block.page


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


_NUMBER = re.compile(r"[-+]?[\d.,' ]*\d%?")
_YEAR = re.compile(r"(?:19|20)\d\d")
_MOST_CELLS = 5_000_000
"""Of a sheet, empty ones too."""


def rows_of(rows: Iterable[Sequence[object]]) -> Iterator[Block]:
    """Yield a block for each row: `column: value; column: value`, by the header above.

    The first row of several cells without a number, years apart, is a header; so is one after a blank row that fills
    other columns than the header before. Rows without a header have cells separated by ` | `.
    """
    header: dict[int, str] = {}
    unused, begins = "", True
    for row in rows:
        filled = {i: text for i, each in enumerate(row) if (text := one_line(clean_text(_shown(each))))}
        named = not any(_NUMBER.fullmatch(text) and not _YEAR.fullmatch(text) for text in filled.values())
        if begins and named and len(filled) > 1 and filled.keys() != header.keys():
            yield Block(unused)
            header, unused = filled, " | ".join(filled.values())
        elif filled:
            pairs = (
                f"{header[i]}: {text}" if i in header and header[i] != text else text for i, text in filled.items()
            )
            yield Block(("; " if header else " | ").join(pairs))
            unused = ""
        begins = not filled or (begins and len(filled) == 1)
    yield Block(unused)


def _shown(value: object) -> str:
    """Return a cell as a sheet shows it, without rounding."""
    if isinstance(value, float):
        return f"{value:.15g}"
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    return str(value).upper() if isinstance(value, bool) else str(value)


def read_csv(content: bytes) -> Extract:
    """Return the rows of a table with commas, semicolons, tabs or bars between its cells."""
    text = text_of(content)
    try:
        dialect: type[csv.Dialect] = csv.Sniffer().sniff(text[:65_536], ",;\t|")
    except csv.Error:  # one column
        dialect = csv.excel
    return Extract(blocks_of(rows_of(csv.reader(io.StringIO(text, newline=""), dialect))))


def read_sheets(content: bytes) -> Extract:
    """Return the rows of a workbook's visible sheets, each under its name if there are several."""
    from python_calamine import CalamineWorkbook, PasswordError, SheetTypeEnum, SheetVisibleEnum

    try:
        book = CalamineWorkbook.from_filelike(io.BytesIO(content))
    except PasswordError as error:
        raise UnreadableError("is encrypted; save it without a password") from error
    sheets = [each for each in book.sheets_metadata if each.typ == SheetTypeEnum.WorkSheet]
    shown = [each.name for each in sheets if each.visible == SheetVisibleEnum.Visible]
    blocks: list[Block] = []
    for name in shown:
        sheet = book.get_sheet_by_name(name)
        if sheet.height * sheet.width > _MOST_CELLS:
            size = f"{sheet.height} rows of {sheet.width} columns"
            raise UnreadableError(f"has {size} in sheet {name!r}, allowed are {_MOST_CELLS} cells")
        rows = sheet.to_python()
        top, left = sheet.start or (0, 0)
        for (first, column), (last, _) in sheet.merged_cell_ranges or ():
            for row in rows[first - top + 1 : last - top + 1]:
                row[column - left] = rows[first - top][column - left]
        found = blocks_of(rows_of(rows))
        blocks += [Block(name, 2), *found] if len(shown) > 1 and found else found
    counts = {"hidden sheets": len(sheets) - len(shown), "sheets with comments": content.count(b"xl/comments") // 2}
    notes = tuple(f"left out: {count} {what}" for what, count in counts.items() if count)
    return Extract(tuple(blocks), notes=notes)


CSV = Reader("csv", (".csv", ".tsv"), read_csv)
SHEETS = Reader("xlsx", (".xlsx", ".xlsm", ".xls", ".xlsb", ".ods"), read_sheets)
