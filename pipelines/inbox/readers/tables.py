"""Tables (CSV, TSV, Excel, OpenDocument): each row is a line that names the column of each value."""

from __future__ import annotations

import csv
import datetime
import io
import re
from collections.abc import Iterable, Iterator, Sequence

from evaluation.common.text import clean_text
from pipelines.inbox.readers.text import Block, Extract, Reader, UnreadableError, blocks_of, one_line, text_of

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
