"""Normalised answers: texts that say the same value become equal, texts that say another do not.

As in SQuAD (arXiv 1606.05250, `evaluate-v1.1.py`) case, punctuation and English articles do not count. Marks that carry
a value do: decimal points, signs, marks between digits (6:30, 3/4, 1884-1890), `%` and currency signs beside a number,
`C++`, `C#`, `A-`. Characters are unified before: full-width forms, digits of all scripts, dashes, quotes, accents.
"""

from __future__ import annotations

import re
import unicodedata

from evaluation.common.text import clean_text

_MONEY = "[$\xa2-\xa5\u20a0-\u20cf]"
_MARK = r"[!-/:-@\[-`{-~]"
_LETTER = r"[^\W\d_]"
_KEPT = re.compile(
    rf"((?<=\d){_MARK}+(?=\d)"  # 1.5, 6:30, 3/4, 2024-05-01
    rf"|(?<![^\W_])-(?={_MONEY}? ?\.?\d)|(?<=\d)--(?=\d)|(?<=\d )-(?= -?\d)"  # signs, ranges
    rf"|(?<=[^\W_])\++|(?<={_LETTER})\#(?!\w)|(?<=\b{_LETTER})-(?![\w-])|(?<=\b{_LETTER}{{2}})-(?![\w-])"  # C++, C#, A-
    r"|(?<!\S)\.(?=\d)|(?<=[-$])\.(?=\d)|[<>](?= ?-?\d)"  # .5, <5
    r"|(?<=\d)%|(?<=\d )%|\$(?= ?-?\.?\d)|(?<=\d)\$|(?<=\d )\$)"
    rf"|{_MARK}"
)
"""A mark with a value is in its group, every other ASCII mark is not."""
_GROUPED = re.compile(
    r"(?<![\d.,'])[1-9](?:\d{0,2}(?P<mark>[,' ])\d{3}(?:(?P=mark)\d{3})*(?!\d|(?P=mark)\d)|\d?(?:,\d\d)+,\d{3}(?!,?\d)"
    r"|\d{0,2}(?:\.\d{3}){2,}(?![.,]?\d)|\d{0,2}(?:\.\d{3})+,\d+(?![.,]?\d))"
)
"""1,250 and 1'250 and 1 250, 12,34,567, 1.250.000, 1.250,5."""
_FORMS = (
    (re.compile(r"(?<![\d.])\.(?=\d)"), "0."),
    (re.compile(r"(?<![\d.,])(\d+),(\d+)(?![.,]?\d)"), r"\1.\2"),  # a decimal comma
    (re.compile(r"(?<=\d)[,;](?=\d)"), " "),  # a list
    (re.compile(r"(?<=\d)~(?=-?\d)|(?<=\d) - (?=-?\d)"), "-"),  # a range
    (re.compile(rf"(?<![^\W_])-({_MONEY}) ?(?=\d)"), r"\1-"),
    (re.compile(rf"({_MONEY}|[<>]) (?=-?\d)"), r"\1"),
    (re.compile(rf"(?<![\d.])(-?\d[\d.]*+(?:-\d[\d.]*+)?) ?({_MONEY})(?!-?\d)"), r"\2\1"),
    (re.compile(r"(?<=\d) (?=[%\u2030\xb0])|(?<=\d) ?per ?cent\b"), lambda match: "%" if match[0].strip() else ""),
)
_MOST_PASSES = 8
_POWER = re.compile("([\u207a\u207b]?)([\xb2\xb3\xb9\u2070\u2074-\u2079]+)")


class _Characters(dict[int, str]):
    """What stands for each character, by code point, found when it is first met."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        kind, spelled = unicodedata.category(character), unicodedata.decomposition(character)
        if kind == "Nd":
            found = str(unicodedata.decimal(character))
        elif 0xFF00 <= code < 0xFFF0 or spelled.startswith("<sub>"):
            found = unicodedata.normalize("NFKC", character)
        elif spelled.startswith("<fraction>"):
            found = " " + unicodedata.normalize("NFKC", character).replace("\u2044", "/")
        elif code < 0x80 or kind[0] != "P":
            found = character
        else:  # any mark: it goes, unless it stands between digits
            found = "'" if kind in ("Pi", "Pf") else "-" if kind == "Pd" else "|"
        return self.setdefault(code, found)


_CHARACTERS = _Characters(
    dict.fromkeys([0x200C, 0x200D, *range(0xFE00, 0xFE10)], "")  # joiners, variants of emoji
    | {0x2D7: "-", 0x2043: "-", 0x2212: "-", 0x301C: "~", 0xFF5E: "~", 0x2044: "/", 0x2BC: "'"}
    | {0x3002: ".", 0xFF61: ".", 0x3001: ";", 0x60C: ",", 0x61B: ";", 0x66A: "%", 0x66B: ".", 0x66C: ","}
    | {0x2030: "\u2030", 0x131: "i"}
)


def normalize_answer(text: str) -> str:
    """Return an answer in the form in which equal values are equal; empty if it has only marks and articles.

    `a` at the end is no article: vitamin A.
    """
    return _settled(text, articles=False)


def without_marks(text: str) -> str:
    """Return a text with unified characters and case, and only marks that carry a value; articles stay."""
    return _settled(text, articles=True)


def _settled(text: str, *, articles: bool) -> str:
    for _ in range(_MOST_PASSES):  # what goes can bring others together
        before, text = text, _unified(text)
        if not articles:
            words = [word for word in text.split() if word not in ("an", "the")]
            text = " ".join(word for i, word in enumerate(words, 1) if word != "a" or i == len(words))
        if text == before:
            break
    return text


def _unified(text: str) -> str:
    text = re.sub(r"(?<=\d)[\u2014\u2015](?=\d)", "-", clean_text(text)).replace("\u2014", " ").replace("\u2015", " ")
    text = _POWER.sub(lambda match: f"^{'-' if match[1] == '⁻' else ''}{unicodedata.normalize('NFKC', match[2])}", text)
    text = unicodedata.normalize("NFD", text.translate(_CHARACTERS)).casefold().replace("i\u0307", "i")
    text = " ".join(unicodedata.normalize("NFC", text).split()).replace(" & ", " and ")
    text = " ".join(_KEPT.sub(r"\1", text).split())
    text = _GROUPED.sub(_ungrouped, text)
    for pattern, form in _FORMS:
        text = pattern.sub(form, text)
    return text


def _ungrouped(number: re.Match[str]) -> str:
    """Return a number without separators of thousands and with a decimal point."""
    if "." in number[0]:
        return number[0].replace(".", "").replace(",", ".")
    return re.sub(r"\D", "", number[0])
