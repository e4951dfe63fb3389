"""Operations on the text of one line: white space, sentence ends, bold marks, list markers, digit loops."""

from __future__ import annotations

import itertools
import re
from typing import NamedTuple

_INVISIBLE = "\ufeff\u200b\u200c\u200d\u2060"
_TERMINATED = re.compile(r"[.!?…。！？][\"'”’»)\]*_]{0,3}\Z")
_STAR_RUN = re.compile(r"(?<![\w*])\*{2,}+|(?<!\*)\*{2,}+(?!\w)")
_MARKER = re.compile(
    r"[-*+][ \t\xa0]+|[•‣◦▪●·∙]\s?|[–—>][ \t\xa0]+|#{1,6}\s+"
    r"|\((?P<n1>\d{1,3})\)\s?|(?P<n2>\d{1,3})[.)]{1,2}(?:\s+|(?=[^\W\d_]|[\"“*(]))|(?P<n3>\d{1,3}):\s+"
    r"|\([a-h]\)\s|[a-h](?:\)\s|\.\s(?=[A-Z]))|\([ivx]{1,4}\)\s|[ivx]{1,4}[.)]\s"
)
_LABEL = re.compile(
    r"(?i:(?:(?:rewritten|rephrased|reworded|revised|alternative|paraphrased)\s)?"
    r"(?:passage|version|implication|rewrite|rewriting|rephrasing|paraphrase|statement|variation|alternative|option))"
    r"\s?#?(?P<n>\d{1,3})\s?(?:[:.)]|[-–—](?=\s)|\Z)\s*"
)


def count_lines(text: str) -> int:
    """Return the number of lines of `text`, as `str.splitlines` sees them, with more than white space."""
    return sum(bool(line.strip()) for line in text.splitlines())


def strip_space(text: str) -> str:
    """Return `text` without white space and invisible joiners at both ends."""
    return text.strip().strip(_INVISIBLE).strip()


def is_terminated(text: str) -> bool:
    """Say whether `text` ends like a finished sentence."""
    return _TERMINATED.search(text, max(0, len(text) - 4)) is not None


def has_letter(text: str) -> bool:
    """Say whether any character of `text` is a letter of any script."""
    return any(character.isalpha() for character in text)


def normalise(text: str) -> str:
    """Return what duplicates have in common: words and marks, case-folded, without spaces around or a final stop."""
    return " ".join(text.casefold().split()).rstrip(" .!;,:")


def is_digit_loop(text: str) -> bool:
    """Say whether `text` holds at least six numbers, no letter, and nearly all steps between them are 0 or 1."""
    if has_letter(text):
        return False
    digits = [int(run[-9:]) for run in re.findall(r"[0-9]+", text)]
    if len(digits) < 6:
        return False
    steps = [b - a for a, b in itertools.pairwise(digits)]
    return sum(step in (0, 1) for step in steps) >= 0.8 * len(steps)


def remove_bold(text: str) -> str:
    """Return `text` without the asterisks of bold marks; those between two word characters (2**3) stay."""
    return _STAR_RUN.sub("", text)


def label_numbers(match: re.Match[str]) -> tuple[int, ...]:
    """Return the numbers among the groups of a marker or a label."""
    return tuple(int(value) for value in match.groupdict().values() if value)


class Stripped(NamedTuple):
    """A line without its list markers."""

    text: str
    numbers: tuple[int, ...]
    """The first four at most."""
    marked: bool
    """At least one marker was there; a label such as "Version 2:" counts."""


def strip_markers(text: str) -> Stripped:
    """Return `text` without leading list markers, however nested: bullets, numbers, letters, "Passage 3:" labels."""
    numbers: list[int] = []
    position, marked = 0, False
    while match := _MARKER.match(text, position) or _LABEL.match(text, position):
        position, marked = match.end(), True
        numbers += label_numbers(match)
    return Stripped(strip_space(text[position:]), tuple(numbers[:4]), marked)
