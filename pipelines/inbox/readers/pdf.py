"""PDF by PDFium: paragraphs in reading order, rows of tables and values of forms, without what nobody sees."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import itertools
import logging
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from evaluation.common.text import clean_text
from pipelines.inbox.readers.text import Block, Extract, Reader, UnreadableError, blocks_of, one_line

_SHORT_LINE, _LEAST_LINE, _PITCH = 0.75, 20, 1.4
"""A line shorter than this share of the page's long lines, or of fewer characters, ends a paragraph; one further below
than the usual distance of the page's lines times this starts one."""
_UNMAPPED, _KNOWN = 0.3, 0.6
"""A page with a larger share of characters without a Unicode value decodes only if this share of its words is known."""
_FEW_WORDS, _LANGUAGES = 8, ("en", "de", "fr", "es", "it", "pt", "nl", "ru")
_RUNNING = 0.4
"""Share of the pages, and at least three, whose first or last line is the same: a running header or footer."""
_MOST_PIXELS, _CONTRAST = 2000, 8
"""Of the longer side of a page's picture; least difference between pixels, of 255, where something is to be seen."""
_SPACES = frozenset({9, 10, 13, 32, 160})
_BREAK = "\x02"
"""PDFium's mark of a hyphen at the end of a line."""
_BROKEN = re.compile(rf"(\w+){_BREAK}(\w+)")
_ITEM = re.compile(r"(?:[•▪◦●‣·*–-]|\(?\d{1,3}[.)]|\(?[a-z]\))\s")
_BULLET = re.compile("[\ue000-\uf8ff]\\s*(?=\\S)")
"""A character of a symbol font."""
_HIDDEN = 0b100010
"""Flags of annotations that are not shown."""


class _Line(NamedTuple):
    """A line of words, or a row of cells separated by ` | `; lengths in points."""

    text: str
    page: int
    left: float
    right: float
    bottom: float
    height: float


class _Word(NamedTuple):
    """A word with the sides of its box; an empty one ends a line."""

    text: str
    left: float = 0.0
    bottom: float = 0.0
    right: float = 0.0
    top: float = 0.0
    seen: bool | None = None
    """None: nothing is drawn there, for whatever reason."""


def read_pdf(content: bytes) -> Extract:
    """Return the text of a PDF, also of an encrypted one with an empty user password; scans have none."""
    import pypdfium2

    logging.getLogger("pypdfium2").setLevel(logging.CRITICAL)
    try:
        with pypdfium2.PdfDocument(content) as document:
            return _extract(document, content)
    except pypdfium2.PdfiumError as error:
        if error.err_code == pypdfium2.raw.FPDF_ERR_PASSWORD:
            raise UnreadableError("is encrypted and needs a password; save it without one") from error
        if error.err_code == pypdfium2.raw.FPDF_ERR_SECURITY:
            raise UnreadableError("uses unsupported encryption; save it without") from error
        raise


def _extract(document: Any, content: bytes) -> Extract:
    document.init_forms()  # before any page is opened
    reader = functools.cache(functools.partial(_pypdf, content))
    total = f"{len(document)} page{'s' * (len(document) != 1)}"
    lines: list[_Line] = []
    values: dict[str, None] = {}
    counts: Counter[str] = Counter()
    bare: dict[str, list[str]] = {"no text": [], "text that does not decode": []}
    for number in range(len(document)):
        page = document[number]
        values |= dict.fromkeys(_values(page, document.formenv, counts))
        own, unmapped = _lines(page, number, counts)
        page.close()
        if unmapped > _UNMAPPED * sum(len(line.text) for line in own) and not _is_language(own):
            own = _read_otherwise(reader, number)
            if not _is_language(own):
                bare["text that does not decode"].append(str(number + 1))
                continue
        if own:
            lines += own
        else:
            bare["no text"].append(str(number + 1))
    if not lines and not values:
        if bare["text that does not decode"]:
            raise UnreadableError(f"has {total} of text that does not decode: its fonts lack Unicode values; use OCR")
        raise UnreadableError(f"has {total} and no text: it is a scan; give it a text layer (OCR) first")
    kept = list(_without_running(lines, len(document)))
    counts["running headers and footers"] = len(lines) - len(kept)
    blocks = [*_paragraphs(kept, _headings(document)), *map(Block, values)]
    notes = [f"left out: {count} {what}" for what, count in counts.items() if count]
    for what, pages in bare.items():
        listed = ", ".join(pages[:10]) + " and more" * (len(pages) > 10)
        why = ": blank or scanned" * (what == "no text")
        notes += [f"{what} on {len(pages)} of {total} ({listed}){why}"] if pages else []
    title = one_line(clean_text(document.get_metadata_value("Title")))
    return Extract(blocks_of(_whole_words(blocks)), title, notes=tuple(notes))


def _lines(page: Any, number: int, counts: Counter[str]) -> tuple[list[_Line], int]:
    """Return the lines of a page in the order of the file, and how many characters have no Unicode value."""
    page.set_rotation(0)  # boxes of characters are in these coordinates
    words, unmapped = _words(page)
    blank = not any(word.seen for word in words)  # then its fonts are broken here
    lines: list[_Line] = []
    held: list[_Word] = []
    for word in (*words, _Word("")):
        if word.text and (word.seen or (blank and word.seen is None)):
            held.append(word)
        elif word.text:
            counts["characters that nobody sees"] += len(word.text)
        elif held:
            height = statistics.median(each.top - each.bottom for each in held)
            text = held[0].text
            for before, each in itertools.pairwise(held):  # a gap as wide as a line is high parts two cells
                text += (" | " if each.left - before.right > height else " ") + each.text
            left, bottom = held[0].left, held[-1].bottom
            if lines and abs(lines[-1].bottom - bottom) < height / 4 and left - lines[-1].right > height:
                begun = lines.pop()  # of one row, which PDFium divides at a wide gap
                text, left = f"{begun.text} | {text}", begun.left
            lines.append(_Line(text, number, left, held[-1].right, bottom, height))
            held = []
    return lines, unmapped


def _words(page: Any) -> tuple[list[_Word], int]:
    """Return the words of a page, and how many characters have no Unicode value."""
    from pypdfium2 import raw

    text, box, unmapped = page.get_textpage(), raw.FS_RECTF(), 0
    words: list[_Word] = []
    count = text.count_chars()
    is_drawn = _drawn(page, text) if count else None
    codes: list[int] = []
    sides = [0.0] * 4
    for i in range(count + 1):
        code = raw.FPDFText_GetUnicode(text, i) if i < count else 10
        if code not in _SPACES:
            raw.FPDFText_GetLooseCharBox(text, i, box)
            if not codes:
                sides = [box.left, box.bottom, box.right, box.top]
            elif code != ord(_BREAK):
                sides = [*map(min, sides, (box.left, box.bottom)), *map(max, sides[2:], (box.right, box.top))]
            codes.append(min(code, 0xFFFD) if code > 0x10FFFF else code)
            unmapped += raw.FPDFText_HasUnicodeMapError(text, i) == 1 or 0xE000 <= code <= 0xF8FF
        if codes and is_drawn and (code in _SPACES or code == ord(_BREAK)):
            word = "".join(map(chr, codes)).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            left, bottom, right, top = sides
            words.append(_Word(word, left, bottom, right, top, is_drawn(i - 1, sides)))
            codes = []
        if code in (10, 13, ord(_BREAK)):
            words.append(_Word(""))
    text.close()
    return words, unmapped


def _drawn(page: Any, text: Any) -> Callable[[int, Sequence[float]], bool | None]:
    """Return a function that says of a character and the box of its word whether a picture of the page shows it.

    It does if the pixels differ. Where they are equal, text that is transparent or has their colour is not seen. Other
    text may be covered, or drawn blank because its font is broken: None. Fonts outside the file may be missing here.
    """
    from pypdfium2 import raw

    left, bottom, right, top = page.get_bbox()
    scale = min(1.0, _MOST_PIXELS / max(right - left, top - bottom, 1.0))
    try:
        pixels = page.render(scale=scale, may_draw_forms=False, draw_annots=False).to_numpy()
    except ValueError:  # a page without area
        return lambda character, box: None

    def drawn(character: int, box: Sequence[float]) -> bool | None:
        sides = (box[0] - left, box[2] - left, top - box[3], top - box[1])
        x, right, y, below = (max(-1, min(int(each * scale // 1), _MOST_PIXELS)) for each in sides)
        under = pixels[max(y, 0) : below + 1, max(x, 0) : right + 1, :3]
        if not under.size:
            return False
        low, high = under.min((0, 1)), under.max((0, 1))
        if (high - low).max() >= _CONTRAST:
            return True
        item, colour = raw.FPDFText_GetTextObject(text, character), [ctypes.c_uint() for _ in range(4)]
        raw.FPDFText_GetFillColor(text, character, *colour)
        *own, alpha = (each.value for each in colour)
        if raw.FPDFTextObj_GetTextRenderMode(item) in (3, 7) or not alpha or max(abs(low[::-1] - own)) < _CONTRAST:
            return False
        return None if raw.FPDFFont_GetIsEmbedded(raw.FPDFTextObj_GetFont(item)) == 1 else True

    return drawn


@functools.cache
def _lexicon(language: str) -> Any:
    from spellchecker import SpellChecker

    return SpellChecker(language)


def _is_language(lines: Sequence[_Line]) -> bool:
    """Return whether most of the words, of three letters and more, are of one of the languages known here."""
    words = re.findall(r"[^\W\d_]{3,}", " ".join(line.text.casefold() for line in lines))
    known = (sum(word in _lexicon(each) for word in words) for each in _LANGUAGES)
    return len(words) >= _FEW_WORDS and any(count > _KNOWN * len(words) for count in known)


def _pypdf(content: bytes) -> Any:
    from pypdf import PdfReader

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    return PdfReader(io.BytesIO(content))


def _read_otherwise(reader: Callable[[], Any], number: int) -> list[_Line]:
    """Return the lines of a page as pypdf reads them, which knows more encodings of fonts; none if it fails."""
    with contextlib.suppress(Exception):  # it raises anything
        lines = reader().pages[number].extract_text().splitlines()
        return [_Line(line.strip(), number, 0, len(line), -i, 1) for i, line in enumerate(lines) if line.strip()]
    return []


def _values(page: Any, form: Any, counts: Counter[str]) -> Iterator[str]:
    """Yield the filled fields of a page's form, and what annotations write on the page; comments are counted."""
    from pypdfium2 import raw

    def text(function: Any, *arguments: Any) -> str:
        buffer = ctypes.create_string_buffer(function(*arguments, None, 0))
        function(*arguments, ctypes.cast(buffer, ctypes.POINTER(raw.FPDF_WCHAR)), len(buffer))
        return clean_text(buffer.raw[:-2].decode("utf-16-le", "replace")).strip()

    for i in range(raw.FPDFPage_GetAnnotCount(page)):
        note = raw.FPDFPage_GetAnnot(page, i)
        kind, hidden = raw.FPDFAnnot_GetSubtype(note), raw.FPDFAnnot_GetFlags(note) & _HIDDEN
        if kind == raw.FPDF_ANNOT_WIDGET and form and not hidden:
            value = text(raw.FPDFAnnot_GetFormFieldValue, form, note)
            names = (raw.FPDFAnnot_GetFormFieldAlternateName, raw.FPDFAnnot_GetFormFieldName)
            name = next(filter(None, (text(each, form, note) for each in names)), "")
            if value not in ("", "Off") and raw.FPDFAnnot_GetFormFieldType(form, note) != raw.FPDF_FORMFIELD_PUSHBUTTON:
                yield f"{name}: {value}" if name else value
        elif kind not in (raw.FPDF_ANNOT_WIDGET, raw.FPDF_ANNOT_LINK, raw.FPDF_ANNOT_POPUP):
            content = text(raw.FPDFAnnot_GetStringValue, note, b"Contents")
            if content and kind == raw.FPDF_ANNOT_FREETEXT and not hidden:
                yield content
            elif content:
                counts["comments"] += 1
        raw.FPDFPage_CloseAnnot(note)


def _without_running(lines: Sequence[_Line], pages: int) -> Iterator[_Line]:
    """Yield the lines without repetitions of running headers and footers, whose numbers may differ."""
    by_page: dict[int, list[_Line]] = {}
    for line in lines:
        by_page.setdefault(line.page, []).append(line)
    edges: dict[int, str] = {}
    for own in by_page.values():
        ordered = sorted(own, key=lambda line: line.bottom)
        edges |= {id(line): re.sub(r"\d+", "#", line.text) for line in (*ordered[:2], *ordered[-2:])}
    times = Counter(edges.values())
    shown: set[str] = set()
    for line in lines:
        key = edges.get(id(line), "")
        if times[key] < max(3, _RUNNING * pages) or (key not in shown and any(map(str.isalpha, key))):
            yield line
        shown.add(key)


def _headings(document: Any) -> dict[int, dict[str, int]]:
    """Return the levels of the outline's entries by page (from 0) and text."""
    found: dict[int, dict[str, int]] = {}
    for entry in document.get_toc():
        target = entry.get_dest()
        if target and (page := target.get_index()) is not None:
            found.setdefault(page, {})[one_line(clean_text(entry.get_title()))] = min(entry.level + 1, 6)
    return found


def _paragraphs(lines: list[_Line], headings: dict[int, dict[str, int]]) -> Iterator[Block]:
    """Yield paragraphs with wrapped lines joined; rows of tables and items of lists stay apart."""
    widths: dict[int, list[float]] = {}
    steps: dict[int, list[float]] = {}
    for before, line in zip(lines[:1] + lines, lines, strict=False):
        widths.setdefault(line.page, [0.0]).extend([line.right - line.left] if " | " not in line.text else [])
        step = before.bottom - line.bottom
        steps.setdefault(line.page, [line.height]).extend([step] if 0 < step < 3 * line.height else [])
    means = {page: statistics.fmean(own) for page, own in widths.items()}
    long = {page: statistics.median(each for each in own if each >= means[page]) for page, own in widths.items()}
    pitch = {page: _PITCH * statistics.median_high(own) for page, own in steps.items()}
    held, last, page = "", None, 0
    for line in lines:
        level = headings.get(line.page, {}).get(one_line(clean_text(line.text)), 0)
        joins = (
            last is not None
            and not level
            and (held.endswith(_BREAK) or _goes_on(last, line, long[last.page], pitch[line.page]))
        )
        if joins and held[-1] in "-\u2010\xad" + _BREAK and line.text[0].isalnum():
            held = held[:-1] + _BREAK + line.text
        elif joins:
            held += " " + line.text
        else:
            yield Block(held, page=page)
            held, page = "" if level else line.text, line.page + 1
        if level:
            yield Block(line.text, level, page)
        last = None if level else line
    yield Block(held, page=page)


def _goes_on(last: _Line, line: _Line, width: float, pitch: float) -> bool:
    """Return whether a line continues the paragraph of the one before."""
    return (
        " | " not in last.text + line.text
        and len(last.text) > _LEAST_LINE
        and last.right - last.left >= _SHORT_LINE * width
        and not _ITEM.match(line.text)
        and abs(line.height - last.height) < last.height / 4
        and (0 < last.bottom - line.bottom < pitch or line.text[0].islower())
    )


def _whole_words(blocks: Sequence[Block]) -> Iterator[Block]:
    """Yield the blocks with words joined that a line's end cut.

    The hyphen stays if the text has the word with it elsewhere, before a capital or a digit, and between two words that
    are none together ("well-known").
    """
    seen = {word for block in blocks for word in re.findall(r"\w+(?:-\w+)*", block.text.casefold())}
    known = _lexicon("en") if any(_BREAK in block.text for block in blocks) else ()

    def whole(match: re.Match[str]) -> str:
        first, second = match.groups()
        together, apart = (first + second).casefold(), f"{first}-{second}".casefold()
        compound = first in known and second in known and together not in known
        keeps = not second[0].islower() or (together not in seen and (apart in seen or compound))
        return f"{first}-{second}" if keeps else first + second

    for block in blocks:
        text = _BROKEN.sub(whole, block.text).replace(_BREAK, "-")
        yield block._replace(text=clean_text(_BULLET.sub("• ", text)))


PDF = Reader("pdf", (".pdf",), read_pdf)
