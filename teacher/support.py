"""Whether a training line says only numbers, dates and names that its passage has.

A line is `supported` if each of them occurs in the span that it cites, and `inferred` otherwise, with those that do
not. This finds what a writer adds or gets wrong by its items alone; no model is asked. Limits:

- Items are looked for one by one. A line that gives one thing's number or name to another is `supported`, and so is a
  name put together from the words of several ("Emil Hartmann" of "Otto Hartmann and his son Emil").
- A number counts with its unit where both sides have one that is known here (percent, currencies, usual measures). A
  separator with three digits behind may be of thousands or decimal: `1,639` equals `1.639` and `1639`.
- The scale of a caption ("in thousands of euros") may be of any number without unit in the same span.
- A date without a year may be of any year in the span.
- Number words are known in English, from two to ninety-nine; names of months in English, German, French and Spanish.
- The first word of a sentence is taken for a name unless it is a function word, or has an ending of ordinary English
  words (-s, -ing, -ed, -ly, -tion ...) and no other name follows it. In languages that capitalise every noun, every
  noun has to occur.
- A claim without such an item ("the reason was greed") is `supported`, whatever it says.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Literal, NamedTuple

from evaluation.common.text import blank
from evaluation.sources.tables import MONEY, SCALES, by_word

_MONTHS = {
    name: number
    for names in (
        "january february march april may june july august september october november december",
        "jan feb mar apr may jun jul aug sep oct nov dec",
        "januar februar märz april mai juni juli august september oktober november dezember",
        "janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
        "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre",
        "jänner febr mrz apr mai juni juli aug sept okt nov dez",
    )
    for number, name in enumerate(names.split(), start=1)
}
_M = rf"(?P<m>{'|'.join(sorted(_MONTHS, key=len, reverse=True))})\b\.?"
_D = r"(?P<d>[0-3]?\d)(?:st|nd|rd|th|\.)?(?!\d|[.,]\d)"
_Y = r"(?P<y>[12]\d{3})\b"
_DATES = [
    re.compile(rf"(?<![\w.-]){pattern}", re.IGNORECASE)
    for pattern in (
        rf"{_Y}-(?P<m>[01]\d)-(?P<d>[0-3]\d)\b",
        rf"(?P<d>[0-3]?\d)\.(?P<m>[01]?\d)\.{_Y}",
        rf"{_D} (?:of |de )?{_M}(?:,? (?:of |de )?{_Y})?",
        rf"{_M} {_D}(?:,? {_Y})?",
        rf"{_M},? (?:of |de )?{_Y}",
    )
]
_NUMBER_WORDS = """
    one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
    nineteen twenty thirty forty fifty sixty seventy eighty ninety
"""
_SPELT_VALUES = dict(zip(_NUMBER_WORDS.split(), [*range(1, 20), *range(20, 100, 10)], strict=True))
_TO_9, _TO_19, _TENS = ("|".join([*_SPELT_VALUES][part]) for part in (slice(9), slice(1, 19), slice(19, None)))
_SPELT = re.compile(rf"\b(?:(?:{_TENS})(?:[- ](?:{_TO_9}))?|{_TO_19})\b", re.IGNORECASE)
_ORDINALS = ("first", "second", "third", "fourth")
_QUARTER = re.compile(rf"\b({'|'.join(_ORDINALS)})[ -]quarter\b(?: of)?", re.IGNORECASE)
_YEAR = re.compile(r"[12]\d{3}")
_POWERS = {"thousand": 3, "million": 6, "billion": 9}
_SCALES = {word: Decimal(10) ** _POWERS[scale] for word, scale in SCALES.items() if word.isalpha()}
_UNITS = by_word(
    "% percent prozent pct; km kilometre kilometer; m metre meter; cm centimetre centimeter; mm millimetre millimeter;"
    "kg kilogram kilogramm; g gram gramm; t tonne; l litre liter; w watt; v volt; second s; minute min; hour h; day;"
    "week; month; year; °c celsius; ml; mw; kw; hz; khz; mhz; ghz; bar; nm; mi mile"
)
_UNITS |= {f"{word}s": unit for word, unit in _UNITS.items() if len(word) > 2} | {"per cent": "%"}
_UNITS |= {word: name.removeprefix("US ") for word, name in MONEY.items()}
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)])[-−–](?=[$€£\d])|\((?=[$€£]?\s?[\d.,]+\s?%?[\s|]{0,3}\)))?(?P<before>[$€£]\s?)?"
    r"(?P<digits>(?<!\d)\d{1,3}(?:[ \u00a0\u202f,.'’]\d{3})+(?!\d)(?:[.,]\d+)?|\d+(?:[.,]\d+)?)(?:st|nd|rd|th)?"
    rf"(?:[ -]?(?P<scale>{'|'.join(sorted(_SCALES, key=len, reverse=True))})\b\.?)?"
    r"(?:[ -]?(?P<unit>%|per cent|€|[$£]|°C|[^\W\d_]+))?",
    re.IGNORECASE,
)
_BETWEEN = re.compile(r"\s*(?:to|and|or|bis|und|à|,|[-–])\s*")
"""Between numbers that share the last one's scale and unit."""
_CODE = re.compile(r"\b[A-Za-z]+-?\d[\w-]*")
_WORD = re.compile(r"\b[^\W\d_][\w]*(?:['’.-](?=\w)[\w]+)*")
_START = re.compile(r"(?:[.!?:;…]\s|\n)[\s\"'“„«(*•-]*\Z")
_ABBREVIATED = re.compile(r"(?:\b(?:Dr|Mr|Mrs|Ms|St|Prof|No|Nr|vs|\w))\.\s\Z")
_LABELS = re.compile(r"\b(?:Question|Answer)\s?\d*:")
_ORDINARY = re.compile(r"(?:(?<!['’])s|ing|ed|ly|tion|ment|ness|ity|able|ful|less|ive)\Z")
_FUNCTION_WORDS = """
    a about according after all also although among an and another any are as at because before between both but by
    despite did do does during each earlier every finally first for from had has have he her his how however i if in
    instead into is it its later many moreover most no not of on one only or other over people per second she since so
    some such than that the their then there these they third this those to today under unlike until was we were what
    when where which while who whose why with within without would yes you your der die das ein eine einer eines im am
    auf bei für mit nach von vom zu zum zur aus und oder wie wer wo wann ist sind war waren wird es er sie seit le la
    les un une des du de en dans pour par avec sur et ou el los las una del al con por para
"""
"""Capitalised at the beginning of a sentence without being part of the name behind."""


class Support(NamedTuple):
    """What a passage says of a line."""

    verdict: Literal["supported", "inferred"]
    """`supported`: every number, date and name of the line occurs in the passage; else `inferred`."""
    missing: tuple[str, ...] = ()
    """Those that do not, as the line writes them."""


def support(line: str, span: str) -> Support:
    """Return whether every number, date and proper name of a line occurs in the span that it cites, title included."""
    text = "\n" + _QUARTER.sub(_quarter, _LABELS.sub("\n", line))
    known_dates, known_numbers, known_words = _items(span)
    dates = list(_dates(text))
    rest = blank(text, (place for place, _ in dates))
    numbers = list(_numbers(blank(rest, (code.span() for code in _CODE.finditer(rest)))))
    rest = blank(rest, (number.place for number in numbers))
    absent = [
        *(place for place, date in dates if not any(map(date.fits, known_dates))),
        *(number.place for number in numbers if not any(map(number.equals, known_numbers))),
        *(place for place, name in _names(text) if rest[place[0]].strip() and not _occurs(name, known_words)),
    ]
    missing = tuple(dict.fromkeys(text[start:end].strip() for start, end in sorted(absent)))
    return Support("inferred" if missing else "supported", missing)


@functools.lru_cache(maxsize=64)
def _items(span: str) -> tuple[list[_Date], list[_Number], frozenset[str]]:
    """Return dates, numbers and words of a span."""
    span = _QUARTER.sub(_quarter, span)
    numbers = list(_numbers(span))
    named = {word.casefold() for word in re.findall(r"[^\W\d_]+", blank(span, (number.place for number in numbers)))}
    scales = {scale for word, scale in _SCALES.items() if word in named}  # "in thousands of euros" above a table
    bare = [number for number in numbers if number.scale == 1 and not number.unit]
    scaled = [n._replace(values=frozenset(value * scale for value in n.values)) for n in bare for scale in scales]
    dates = [date for _, date in _dates(span)]
    years = {int(value) for number in bare for value in number.values if 1000 <= value < 2200 and value == int(value)}
    dated = [date._replace(year=year) for date in dates if date.year is None for year in years]
    return dates + dated, numbers + scaled, _word_forms(span)


def _quarter(match: re.Match[str]) -> str:
    return f"Q{_ORDINALS.index(match[1].casefold()) + 1}"


class _Date(NamedTuple):
    """A date, of which parts may be open."""

    year: int | None
    month: int
    day: int | None

    def fits(self, known: _Date) -> bool:
        """Return whether a known date says all that this one says."""
        return all(own is None or own == other for own, other in zip(self, known, strict=True))


class _Number(NamedTuple):
    """A number with its possible values."""

    place: tuple[int, int]
    """Where it stands, with scale and unit."""
    values: frozenset[Decimal]
    """Scaled; without sign."""
    negative: bool = False
    scale: Decimal = Decimal(1)
    unit: str = ""
    """Empty where none is known."""

    def equals(self, known: _Number) -> bool:
        """Return whether a known number is this one; a positive one is also found in a negative one."""
        units = {self.unit, known.unit} - {""}
        return bool(self.values & known.values) and len(units) < 2 and known.negative >= self.negative


def _dates(text: str) -> Iterator[tuple[tuple[int, int], _Date]]:
    """Yield place and value of each date that has a month and a day or a year."""
    for pattern in _DATES:
        for match in pattern.finditer(text):
            parts = match.groupdict()
            month = parts["m"].casefold()
            year, day = (int(value) if (value := parts.get(name)) else None for name in ("y", "d"))
            yield match.span(), _Date(year, int(month) if month.isdecimal() else _MONTHS[month], day)
        text = blank(text, (match.span() for match in pattern.finditer(text)))


def _numbers(text: str) -> Iterator[_Number]:
    """Yield the numbers of a text; those of a range or a list share the last one's scale and unit."""
    for match in _SPELT.finditer(text):
        value = sum(_SPELT_VALUES[word] for word in re.split("[- ]", match[0].casefold()))
        yield _Number(match.span(), frozenset({Decimal(value)}))
    following: _Number | None = None
    for match in reversed(list(_NUMBER.finditer(text))):
        scale, unit = (match["scale"] or "").casefold(), (match["unit"] or "").casefold()
        if scale == "m" and not match["before"] and unit not in ("€", "£", "$"):  # metres
            scale, unit = "", "m"
        known = _UNITS.get(unit, "")
        unit = _UNITS.get((match["before"] or "").strip(), known)
        factor = _SCALES.get(scale, Decimal(1))
        end = match.end() if known else match.end("scale") if scale else match.end("digits")
        shares = (
            following and _BETWEEN.fullmatch(text[end : following.place[0]]) and len({unit, following.unit, ""}) < 3
        )
        if following and shares and not scale and not _YEAR.fullmatch(match["digits"]):
            unit, factor = unit or following.unit, following.scale
        values = frozenset(value * factor for value in _values(match["digits"]))
        following = _Number((match.start(), end), values, match["sign"] is not None, factor, unit)
        yield following


def _values(digits: str) -> Iterator[Decimal]:
    """Yield the values that digits with separators may have."""
    plain = re.sub(r"[ \u00a0\u202f'’]", "", digits)
    separators = re.findall(r"[.,]", plain)
    *groups, last = re.split(r"[.,]", plain)
    if len(set(separators)) < 2 and all(len(group) == 3 for group in (*groups, last)[1:]):
        yield Decimal("".join((*groups, last)))
    if len(separators) == 1 or len(set(separators)) > 1:
        yield Decimal("".join(groups) + "." + last)


def _names(text: str) -> Iterator[tuple[tuple[int, int], str]]:
    """Yield place and text of each capitalised word that is part of a name."""
    function_words = frozenset(_FUNCTION_WORDS.split())
    for match in _WORD.finditer(text):
        word = match[0]
        acronym = len(word) > 1 and word.isupper()
        if not word[0].isupper() or (word.casefold() in function_words and not acronym):
            continue
        before = text[max(0, match.start() - 8) : match.start()]
        if not acronym and _START.search(before) and not _ABBREVIATED.search(before):
            after = text[match.end() : match.end() + 2]
            if not (after[:1] == " " and after[1:].isupper()) and _ORDINARY.search(word):
                continue
        yield match.span(), word


def _word_forms(text: str) -> frozenset[str]:
    whole = [word.casefold() for word in re.findall(r"\w+(?:['’.-]\w+)*", text)]
    words = {part for word in whole for part in (word, *re.split(r"['’.-]", word))}
    return frozenset(words | set(map(_stem, words)))


def _occurs(name: str, words: frozenset[str]) -> bool:
    return _stem(name) in words or all(_stem(part) in words for part in re.split(r"[.-]", name))


def _stem(word: str) -> str:
    """Return a word case-folded, without the ending of a possessive or plural."""
    return re.sub(r"(?<=\w\w)(?:['’]s|s['’]?|['’])\Z", "", word.casefold())
