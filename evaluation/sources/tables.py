"""The values of a table as lines, `company, item, period: value unit`, each with the place of its row.

Tables are lines of cells between bars, as Markdown has them and as the readers of files write them. Header rows give
periods and units; titles above, the first header cell, and labels give further units. Values are kept as printed, a
number in parentheses as a negative one, without marks of footnotes. A line is `uncertain` wherever one of its parts
rests on a guess: a row with fewer cells than columns, a column without a period, a number without a unit, a row without
a label, a number of shares among amounts of money. Cells without a number give no line.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Statement(NamedTuple):
    """A value of a table as a line."""

    text: str
    """`company, item, period: value unit`."""
    start: int
    """Where the table's row begins in the document's text, in characters."""
    end: int
    uncertain: bool = False
    """Whether company, item, period or unit may be wrong; such a line is not to be trained on unmarked."""


class Row(NamedTuple):
    """A line of a table; one without bars, such as a caption or a group's name, has one cell."""

    start: int
    end: int
    cells: tuple[str, ...]
    gap: str = ""
    """White space before it."""


class _Table(NamedTuple):
    captions: list[str]
    """Lines above, the nearest last."""
    header: list[Row]
    body: list[Row]


class _Column(NamedTuple):
    name: str
    """Period, or what else the header says."""
    unit: str
    certain: bool
    bare: str = ""
    """The name without the period of the table's caption, where it has that one."""


class _Value(NamedTuple):
    text: str
    unit: str
    """Written in the cell; empty for none."""
    certain: bool


_LINE = re.compile(r"[^\n]*\S[^\n]*")
_BAR = re.compile(r"\s*(?<!\\)\|\s*")
_RULE = re.compile(r"[\s|:-]*-{2,}[\s|:-]*")
_LONGEST_LABEL, _GAP = 120, 2
"""Characters of a line inside a table, and such lines in a row."""
_HEADER_ROWS = 6
"""At most."""
_CAPTIONS, LONGEST_CAPTION = 3, 160
"""Lines above a table that are read for units and periods, and their characters."""
_CONTINUED = re.compile(r"\(?\b(?:continued|cont\.|cont'd|fortsetzung|suite)\)?", re.IGNORECASE)
_PERIOD = re.compile(
    r"\b(?:19|20)\d{2}\b(?:[/–-]\d{2,4}\b)?|\b(?:FY|CY)\s?'?\d{2}(?:\d{2})?\b|\b(?:Q[1-4]|H[12]|9M)\b|\b[1-4]Q\b|'\d{2}\b"
)
_YEAR = re.compile(r"(?:19|20)\d{2}")
_FOOTNOTE = re.compile(
    r"(?:\s*(?:[¹²³⁴⁵⁶⁷⁸⁹⁰⁽⁾*†‡]+|\[\w{1,2}\]|\^\(?[\w*†‡]\)?)|(?<=[\w%)])\s\(\d\)|(?<=[a-zä-ü]{2})\d)+\Z"
)
_BARE_FOOTNOTE = re.compile(r"\s*\d\)\Z")
_NOTE = re.compile(r"\s*\((?:see )?notes? [\d., and]+\)", re.IGNORECASE)
_NOTE_COLUMN = re.compile(r"(?:notes?|note ref\.?|anhang|anm\.?|ziffer|page)\.?", re.IGNORECASE)
_NOTE_NUMBER = re.compile(r"\(?\d{1,2}(?:\.\d{1,2})?\)?(?:,\s?\d{1,2})*")
_UNIT_COLUMN = re.compile(r"units?|einheit|unité", re.IGNORECASE)
_CHANGE = re.compile(r"\bchange|\bvar(?:iance|\.)?\b|veränderung|Δ|\+/[-–]|\bgrowth", re.IGNORECASE)
_DIGITS = r"\d{1,3}(?:[,.'’ \u202f\u00a0]\d{3})+(?:[.,]\d+)?|\d+(?:[.,]\d+)?"


def by_word(groups: str) -> dict[str, str]:
    """Return the first word of its group for each word; semicolons stand between the groups."""
    return {word.lower(): group[0] for group in map(str.split, groups.split(";")) for word in group}


MONEY = by_word(
    "euros € eur euro; dollars $ dollar; pounds £ gbp pound; yen ¥ jpy; CHF; SEK; NOK; DKK; PLN; INR; CAD; AUD"
)
MONEY |= dict.fromkeys(("usd", "us$", "us dollars", "u.s. dollars"), "US dollars")
SCALES = by_word(
    "thousand thousands tausend k '000 ’000 000 000s tsd; million millions millionen m mn mio;"
    "billion billions milliarden bn mrd"
)
_CURRENCY, _SCALE = ("|".join(sorted(map(re.escape, words), key=len, reverse=True)) for words in (MONEY, SCALES))
_AMOUNT = re.compile(
    rf"(?<!\w)(?:(?P<c1>{_CURRENCY})\s?(?:in )?(?P<s1>{_SCALE})(?!\w)"
    rf"|(?<!\d\s)(?P<s2>{_SCALE})\.?\s?(?:of )?(?P<c2>{_CURRENCY})(?!\w)|(?P<t>T)(?P<c3>EUR|€|CHF|USD)(?!\w)"
    rf"|(?<!\d\s)(?P<s4>thousands|millions|billions)(?!\w)"
    rf"|(?:(?<=in )|(?<=\())(?P<c5>{_CURRENCY})(?=[,.)]|\Z)|\A(?P<c6>{_CURRENCY})\Z)",
    re.IGNORECASE,
)
_PLAIN_UNIT = re.compile(
    r"(?:(?<=\()|(?<=, )|(?<=\bin )|\A)(%|percent|per cent|percentage points|pp|bps|basis points|[kMGT]Wh?|k?t|tonnes"
    r"|kg|km|m²|m2|m³|m3|hl|l|litres|FTEs?|headcount|number|persons|people|units|pieces|hours|days|months|years|boe"
    r"|barrels|k?t ?CO2e?|times|x)\)?\s*\Z"
)
_VALUE = re.compile(
    rf"(?P<open>\()?\s?(?P<sign>[-−–+])?\s?(?:(?P<before>{_CURRENCY})\s?)?(?P<open2>\()?(?P<digits>{_DIGITS})"
    rf"\s?(?P<percent>%|x(?!\w))?\)?\s?(?P<percent2>%)?(?:\s?(?P<unit>(?:(?:{_SCALE})\b\.?\s?)?(?:{_CURRENCY})?|[a-zA-Z]+))?",
    re.IGNORECASE,
)
_PER_SHARE = re.compile(r"\bper (?:\w+ )?share|\bje aktie|\bEPS\b", re.IGNORECASE)
_NO_AMOUNT = re.compile(
    r"\b(?:margin|ratio|rate|return on|yield|quota|quote|\w*marge|index|score|factor|spread|price|per|number of"
    r"|employees|headcount|FTEs?|workforce|staff|shares|customers|users|members|visitors|passengers|stores|sites|offices"
    r"|branches|countries|units|vehicles|volumes?|age|days|years|mitarbeiter\w*|aktien|anzahl)\b",
    re.IGNORECASE,
)
"""Items that have no unit among amounts of money, or one of their own."""
_PEOPLE = re.compile(r"\b(?:number of (?:employees|staff)|headcount|FTEs?)\b", re.IGNORECASE)
_TOTAL = re.compile(r"\b(?:total|sub-?total|sum|summe|gesamt\w*|net \w+)\b", re.IGNORECASE)
_OF_WHICH = re.compile(r"(?:of which|thereof|including|davon|dont|basic|diluted|current|non-current)\b", re.IGNORECASE)
_WRAPS = re.compile(r"(?:\b(?:of|to|and|the|for|in|from|by|on|at|with|or)|[,&-])\Z", re.IGNORECASE)
_REPORT = re.compile(
    r"\b(?:(?:annual|integrated|interim|half-?year(?:ly)?|quarterly|financial|sustainability|consolidated|management)\s+)*"
    r"(?:reports?|financial statements?|accounts|geschäftsbericht|jahresabschluss|(?:FY ?)?(?:19|20)\d{2})\b",
    re.IGNORECASE,
)


def table_runs(text: str) -> Iterator[list[Row]]:
    """Yield the rows of each table with the short lines between them; blank lines and ends of pages do not end one."""
    run: list[Row] = []
    gap: list[Row] = []
    end = 0
    for match in itertools.chain(_LINE.finditer(text), [None]):
        row = Row(match.start(), match.end(), _cells(match[0]), text[end : match.start()]) if match else None
        end = match.end() if match else end
        if row and run and _RULE.fullmatch(text[row.start : row.end]):
            continue
        if row and len(row.cells) > 1:
            run += [*gap, row]
            gap = []
        elif row and run and len(gap) < _GAP and _is_label(row.cells[0]):
            gap.append(row)
        else:
            if sum(len(each.cells) > 1 for each in run) > 1:
                yield run
            run, gap = [], []


def _cells(line: str) -> tuple[str, ...]:
    line = line.strip()
    if " | " not in line and not line.startswith("|"):
        return (line,)
    closed = line.startswith("|") and line.endswith("|") and len(line) > 1
    cells = tuple(cell.strip(" *_") for cell in _BAR.split(line[1:-1] if closed else line))
    return cells if any(cells[1:]) else cells[:1]


def _is_label(line: str) -> bool:
    return len(line) <= _LONGEST_LABEL and (bool(_CONTINUED.search(line)) or not re.search(r"^#|[.!?;]\Z", line))


def header_of(run: Sequence[Row]) -> list[Row]:
    """Return the rows above the first row with a value: header, and captions between; none where there are too many."""
    found = list(itertools.takewhile(lambda row: len(row.cells) == 1 or _is_header(row, [], []), run))
    return found if len(found) <= _HEADER_ROWS else []


def statements(text: str, title: str, offset: int) -> Iterator[Statement]:
    """Yield the values in the tables of a text that begins at `offset` of a document with a title."""
    company = _REPORT.split(title.partition(" > ")[0])[0].strip(" -–:,&") or title
    found = [
        statement
        for run in table_runs(text)
        for table in _tables(run, captions_above(text[: run[0].start]))
        for statement in _of_table(table, company, offset)
    ]
    values = Counter(text.rpartition(": ")[0] for text in {each.text for each in found})
    for each in found:  # what has several values is not told apart by its name
        yield each._replace(uncertain=each.uncertain or values[each.text.rpartition(": ")[0]] > 1)


def captions_above(text: str) -> list[str]:
    """Return the short lines at the end of a text that may be captions of a table below it."""
    lines = [line.strip("#* ") for line in text[-1_000:].splitlines() if line.strip()][-_CAPTIONS:]
    return [line for line in lines if len(line) <= LONGEST_CAPTION]


def _tables(run: Sequence[Row], captions: list[str]) -> Iterator[_Table]:
    """Yield the tables of a run: one more begins at a header of other columns; a repeated header is left out.

    Where rows follow each other without blank lines, one more also begins after a blank line, unless a page ends there
    or a line says that the table is continued.
    """
    table = _Table(captions, [], [])
    in_blocks = any("\n\n" not in row.gap for row in run[1:] if len(row.cells) > 1)
    for row in run:
        has_values = any(len(each.cells) > 1 for each in table.body)
        ends = in_blocks and has_values and len(row.cells) > 1 and "\n\n" in row.gap
        if ends and not _CONTINUED.search(table.body[-1].cells[0]):
            yield table
            table, has_values = _Table([], [], []), False
        if len(row.cells) == 1:
            is_caption = not table.header or (not has_values and bool(_unit_in(row.cells[0])))
            table.captions.append(row.cells[0]) if is_caption else table.body.append(row)
        elif (not has_values and len(table.header) == _HEADER_ROWS) or not _is_header(row, table.header, table.body):
            table.body.append(row)
        elif not has_values:
            table.header.append(row)
        else:
            above = list(itertools.takewhile(lambda each: len(each.cells) == 1, reversed(table.body)))[::-1]
            del table.body[len(table.body) - len(above) :]
            if row.cells not in [each.cells for each in table.header]:
                yield table
                table = _Table([each.cells[0] for each in above] or table.captions, [row], [])
    yield table


def _is_header(row: Row, header: Sequence[Row], body: Sequence[Row]) -> bool:
    first, *cells = row.cells
    periods = [bool(_PERIOD.search(cell)) for cell in cells if cell]
    if not periods or any(_value(cell) and not _YEAR.fullmatch(_clean(cell)) for cell in row.cells):
        return False
    if any(len(each.cells) > 1 for each in body):
        return any(periods) and (not first or _heads(first))
    years = all(_YEAR.fullmatch(_clean(cell)) for cell in cells if cell)
    dated = any(_PERIOD.search(cell) for each in header for cell in each.cells)
    return not (years and dated and first and not _heads(first))


def _heads(cell: str) -> bool:
    """Return whether the first cell of a row is of a header: a period, a unit, or the name of the notes' column."""
    return bool(_PERIOD.search(cell) or _unit_in(cell) or _NOTE_COLUMN.fullmatch(cell))


def _clean(text: str) -> str:
    """Return a cell without marks of footnotes."""
    text = _BARE_FOOTNOTE.sub("", text) if text.count(")") > text.count("(") else text
    return _FOOTNOTE.sub("", text).strip()


def _value(cell: str, thousands: str = "") -> _Value | None:
    """Return the number in a cell; None without one. `thousands` is the separator of thousands of the table."""
    text = _clean(cell)
    match = _VALUE.fullmatch(text)
    if not match:
        begins = re.match(r"[(\s]*[-−–+$€£]?\s?\d", text) and not _PERIOD.search(text)
        return _Value(cell, "", certain=False) if begins else None
    digits = match["digits"]
    negative = match["open"] or match["open2"] or (match["sign"] and match["sign"] != "+")
    closed = text.count("(") == text.count(")")
    percent = match["percent"] or match["percent2"]
    unit = percent or _unit_in(f"{match['before'] or ''} {match['unit'] or ''}".strip()) or match["unit"] or ""
    broken = thousands and re.search(rf"{re.escape(thousands)}(?!\d{{3}}(?!\d))", digits)
    return _Value(("-" if negative else "") + digits, unit, certain=closed and not broken)


def _unit_in(text: str) -> str:
    """Return the unit that a caption, a header cell or a label speaks of, such as `thousand euros`; empty for none."""
    if match := _AMOUNT.search(text):
        words = [(name, word.casefold()) for name, word in match.groupdict().items() if word]
        scales = [SCALES.get(word, "thousand") for name, word in words if name[0] in "st"]
        return " ".join([*scales, *(MONEY[word] for name, word in words if name[0] == "c")])
    plain = _PLAIN_UNIT.search(text.strip())
    return re.sub("per ?cent$", "%", re.sub("number|headcount", "", plain[1])) if plain else ""


def _columns(table: _Table) -> list[_Column] | None:
    """Return what the header says of each column of values; None without a header."""
    lengths = Counter(len(row.cells) for row in table.body if len(row.cells) > 1)
    if not table.header or not lengths:
        return None
    lowest = table.header[-1].cells
    width = lengths.most_common(1)[0][0]
    labelled = width != len(lowest) + 1 and not (_PERIOD.search(lowest[0]) or _NOTE_COLUMN.fullmatch(lowest[0]))
    count = len(lowest) - labelled
    names: list[list[str]] = [[] for _ in range(count)]
    certain = True
    for row in table.header:
        has_label = labelled and (len(row.cells) == len(lowest) or not row.cells[0])
        cells = list(row.cells[has_label:])
        if not labelled and not all(map(_unit_in, cells)) and _unit_in(cells[0]) and not _PERIOD.search(cells[0]):
            del cells[0]  # a corner without a column
        if len(cells) != count:
            cells = [cell for cell in cells if cell and not (_unit_in(cell) and not _PERIOD.search(cell))]
            repeats, rest = divmod(count, len(cells)) if cells else (0, 1)
            certain &= not rest and list(lowest[labelled:][:repeats]) * len(cells) == list(lowest[labelled:])
            cells = [cell for cell in cells for _ in range(repeats)] if not rest else [""] * count
        for i in range(1, count):  # a merged cell stands in the first of its columns
            if not cells[i] and row is not table.header[-1] and lowest[-count:][i]:
                cells[i] = cells[i - 1]
        for name, cell in zip(names, cells, strict=True):
            if cell and _clean(cell) not in name:
                name.append(_clean(cell))
    return [_column(name, table, certain) for name in names]


def _column(name: Sequence[str], table: _Table, certain: bool) -> _Column:
    units = {each: _unit_in(each) for each in name}
    kept = (each for each in name if not units[each] or _PERIOD.search(each))
    text = " ".join(_AMOUNT.sub("", each).strip(" ()[],") if units[each] else each for each in kept)
    unit = next(filter(None, reversed(units.values())), "")
    if _CHANGE.search(" ".join(name)):
        return _Column(" ".join(name), "%" if "%" in "".join(name) else "?", certain)
    if _PERIOD.search(text) or _NOTE_COLUMN.fullmatch(text) or _UNIT_COLUMN.fullmatch(text):
        return _Column(text, unit, certain)
    periods = {match[0] for caption in table.captions for match in _PERIOD.finditer(caption)}
    if len(periods) != 1 or not text:
        return _Column(text, unit, certain=False)
    return _Column(f"{text}, {periods.pop()}", unit, certain, text)


def _of_table(table: _Table, company: str, offset: int) -> Iterator[Statement]:
    columns = _columns(table)
    corner = table.header[0].cells[0] if table.header else ""
    unit = next(filter(None, map(_unit_in, (corner, *reversed(table.captions)))), "")
    cells = [cell for row in table.body for cell in row.cells[1:]]
    signs = {sign for cell in cells for sign in re.findall(r"[$€£¥]", cell)}
    if unit in SCALES.values() and len(signs) == 1:
        unit = f"{unit} {MONEY[signs.pop()]}"
    thousands = Counter(mark for cell in cells for mark in re.findall(r"\d([,.'’])\d{3}(?!\d)", cell)).most_common(1)
    except_shares = "except" in " ".join(table.captions)
    for row, item, group, item_certain in _labelled(table.body):
        placed = list(_placed(row, columns))
        own = _unit_in(item) or next((cell for cell, column in placed if _UNIT_COLUMN.fullmatch(column.name)), "")
        item = re.sub(r"\s*\([^()]*\)\Z", "", item) if _unit_in(item) else item
        for cell, column in placed:
            value = _value(cell, thousands[0][0] if thousands else "")
            if value is None:
                continue
            found, unit_certain = _unit_of(item, value.unit, own or _unit_in(group), column.unit, unit, except_shares)
            named = bool(company and item) and item_certain and column.certain
            sure = named and value.certain and unit_certain and not _YEAR.fullmatch(value.text)
            name = column.bare if column.bare and _PERIOD.search(item) else column.name
            place = ", ".join(filter(None, (company, item, name)))
            yield Statement(f"{place}: {value.text} {found}".strip(), row.start + offset, row.end + offset, not sure)


def _unit_of(item: str, cell: str, label: str, column: str, table: str, except_shares: bool) -> tuple[str, bool]:
    """Return the unit of a value, by cell, label, column or table, and whether that is certain."""
    if cell in MONEY.values() and table and not label and not _PER_SHARE.search(item):
        return (table, True) if table.endswith(cell) else (cell, False)
    if cell or label or column not in ("", "?"):
        scaled = not cell and label in MONEY.values() and " " in table and not _PER_SHARE.search(item)
        return cell or label or column, not scaled
    currency = table.rpartition(" ")[2]
    is_money = currency in MONEY.values() or table in SCALES
    if _PER_SHARE.search(item) and is_money:
        return currency, except_shares
    if _NO_AMOUNT.search(item):
        return "", bool(_PEOPLE.search(item))
    return table, bool(table) and table not in SCALES.values() and column != "?"


def _labelled(body: Sequence[Row]) -> Iterator[tuple[Row, str, str, bool]]:
    """Yield the rows with values, the item of each, the group that it is in, and whether these are certain.

    An item has the name of its group, or of the row that it is a part of, where it means nothing without: it begins
    with a bullet or a small letter, or occurs twice. A label that is broken into two lines is joined.
    """
    times = Counter(_clean(row.cells[0]) for row in body)
    group, parent, pending, listed = "", "", "", False
    for row in body:
        written = _clean(_NOTE.sub("", row.cells[0])).rstrip(":")
        label = written.lstrip("-–—•· ")
        small, part = label != written or label[:1].islower(), bool(_OF_WHICH.match(label))
        if len(row.cells) == 1:
            group = pending = "" if _CONTINUED.search(label) else label
            listed = False
            continue
        if not label or _value(label):
            yield row, group, group, False
            group = ""
        elif small and pending and not part and (_WRAPS.search(pending) or re.match(r"(?:of|and|to|for)\b", label)):
            group, parent = "", f"{pending} {label}"
            yield row, parent, "", True
        elif small:
            above = group or parent
            certain = bool(pending or part or label != written) if group else bool(parent and part)
            yield row, f"{above}, {label}" if above else label, group, certain
            listed = bool(group)
        else:
            group, listed = "" if listed else group, False  # a group of parts ends where another item begins
            parent, twice = label, times[_clean(row.cells[0])] > 1
            item = f"{group}, {label}" if twice and group else label
            yield row, item, group, not ((twice and not group) or _unit_in(group))
        pending = ""
        if _TOTAL.search(label) and not small:
            group = ""


def _placed(row: Row, columns: Sequence[_Column] | None) -> Iterator[tuple[str, _Column]]:
    """Yield the cells of a row with their columns; of a cell that spans several, one."""
    cells = list(row.cells if _value(row.cells[0]) else row.cells[1:])
    for i, cell in enumerate(cells):  # signs in cells of their own
        if cell in (")", "%", ")%") and i:
            cells[i - 1], cells[i] = cells[i - 1] + cell, ""
        elif cell in ("$", "€", "£") and i + 1 < len(cells):
            cells[i], cells[i + 1] = "", f"{cell} {cells[i + 1]}" if cells[i + 1] else ""
    notes = [column for column in columns or () if _NOTE_COLUMN.fullmatch(column.name)]
    if columns and len(cells) == len(columns) - len(notes) and not _NOTE_NUMBER.fullmatch(cells[0]):
        columns = [column for column in columns if column not in notes]
    if not columns or len(cells) != len(columns):
        columns = [_Column("", "", certain=False)] * len(cells)
    before: tuple[str, _Column] | None = None
    for cell, column in zip(cells, columns, strict=True):
        if cell and column not in notes and (cell, column) != before:
            yield cell, column
        before = (cell, column)
