"""Lines of self-edits in the micro-world: how the teacher's pretraining writes them, and what a written line is worth.

The fact table makes every line checkable: `classify_line` says whether it states a true fact about a named entity,
binds a value to the wrong name, speaks of nobody, says nothing, or is broken.
"""

from __future__ import annotations

import random
import re
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from evaluation.microworld.templates import ATTRIBUTES, FILLERS
from evaluation.microworld.vocabulary import VALUES
from evaluation.microworld.world import Sheet


class LineKind(StrEnum):
    """What an edit line is, given the sheet that it was written about."""

    STATEMENT = "statement"
    """A true fact, name first."""
    QUESTION = "question"
    """A question with its true answer."""
    COPY = "copy"
    """A sentence of the passage: true, but it teaches little."""
    SWAPPED = "swapped"
    """An entity's name with another entity's value."""
    WRONG = "wrong"
    """An entity's name with a value that the passage does not give to anyone."""
    ANONYMOUS = "anonymous"
    """True, without a name."""
    FILLER = "filler"
    """Says nothing."""
    BROKEN = "broken"
    """None of the world's sentences, or not about the passage's entities."""


USEFUL = (LineKind.STATEMENT, LineKind.QUESTION)
"""Kinds that teach a student an answer."""

ALTERED = ("swapped", "wrong")

MIXTURES: dict[str, dict[str, float]] = {
    "implications": {
        "statement": 0.13,
        "question": 0.08,
        "copy": 0.18,
        "anonymous": 0.15,
        "filler": 0.14,
        "swapped": 0.17,
        "wrong": 0.15,
    },
    "rewrite": {"statement": 0.36, "copy": 0.36, "swapped": 0.16, "wrong": 0.12},
    "self-qa": {"question": 0.64, "swapped": 0.20, "wrong": 0.16},
}
"""Share of each kind among the lines that the teacher is pretrained on, by the instruction in its prompt. The altered
kinds take the sentence form of the instruction's true ones. Sharpening (`recipes.TEACHER_SHARPNESS`) moves the written
shares towards what is told in few first words, questions above all, so they start lower here."""

LINES_PER_EDIT = (4, 9)
"""Fewest and most lines of an edit in the teacher's pretraining."""


def write_line(rng: random.Random, sheet: Sheet, mixture: str, *, clean: bool = False) -> str:
    """Return one line of an edit, drawn from `MIXTURES[mixture]`; `clean` draws from the true, named kinds alone."""
    shares = MIXTURES[mixture]
    if clean:
        shares = {kind: share for kind, share in shares.items() if kind in ("statement", "question", "copy")}
    kind = rng.choices(list(shares), list(shares.values()))[0]
    if kind == "filler":
        return rng.choice(FILLERS)
    fact = rng.choice(sheet.facts)
    if kind == "anonymous":
        return fact.words.anonymous.format(value=fact.value)
    form = kind
    if kind in ALTERED:
        others = {f.value for f in sheet.facts if f.attribute == fact.attribute} - {fact.value}
        absent = sorted(set(VALUES[fact.words.values]) - others - {fact.value})
        fact = fact._replace(value=rng.choice(sorted(others) if kind == "swapped" else absent))
        forms = [name for name in ("statement", "question") if name in shares]
        form = rng.choice(forms)
    if form == "question":
        question = rng.choice(fact.words.questions[:2]).format(name=fact.name)
        return f"Question: {question} Answer: {fact.value}"
    templates = fact.words.passage if form == "copy" else fact.words.statements
    return rng.choice(templates).format(name=fact.name, value=fact.value)


def write_edit(
    rng: random.Random,
    sheet: Sheet,
    mixture: str,
    *,
    clean: bool = False,
    length: tuple[int, int] = LINES_PER_EDIT,
) -> str:
    """Return a whole edit as the teacher's pretraining has it: a list of independent lines, fewest and most given."""
    lines = [write_line(rng, sheet, mixture, clean=clean) for _ in range(rng.randint(*length))]
    return "\n".join(f"- {line}" for line in lines)


class ClassifiedLine(NamedTuple):
    """A line's kind, and the fact that it claims where it claims one."""

    kind: LineKind
    attribute: str | None = None
    name: str | None = None
    value: str | None = None


class _Pattern(NamedTuple):
    regex: re.Pattern[str]
    kind: LineKind
    attribute: str


@lru_cache(maxsize=8)
def _patterns(entity_kind: str) -> tuple[_Pattern, ...]:
    """Return one regular expression for each sentence form of a kind's attributes, names and values as groups."""
    patterns = []
    for attribute, words in ATTRIBUTES[entity_kind].items():  # type: ignore[index]
        forms = [(form, LineKind.STATEMENT) for form in words.statements]
        forms += [(form, LineKind.COPY) for form in words.passage]
        forms += [(f"Question: {q} Answer: {{value}}", LineKind.QUESTION) for q in words.questions]
        forms.append((words.anonymous, LineKind.ANONYMOUS))
        for form, kind in forms:
            regex = re.escape(form).replace(r"\{name\}", r"(?P<name>\S+ \S+)").replace(r"\{value\}", r"(?P<value>\S+)")
            patterns.append(_Pattern(re.compile(regex), kind, attribute))
    return tuple(patterns)


def classify_line(line: str, sheet: Sheet) -> ClassifiedLine:
    """Return what `line` is, given the facts of `sheet`.

    Args:
        line: One line of an edit without its list marker; a pair is written "Question: ... Answer: ...".
        sheet: The facts of the document that the edit is about.
    """
    text = " ".join(line.split())
    if text in FILLERS:
        return ClassifiedLine(LineKind.FILLER)
    for pattern in _patterns(sheet.kind):
        match = pattern.regex.fullmatch(text)
        if match is None:
            continue
        name, value = match.groupdict().get("name"), match["value"]
        told = [f for f in sheet.facts if f.attribute == pattern.attribute]
        if name is None:
            known = any(f.value == value for f in told)
            return ClassifiedLine(LineKind.ANONYMOUS if known else LineKind.WRONG, pattern.attribute, None, value)
        if name not in sheet.names:
            return ClassifiedLine(LineKind.BROKEN)
        if sheet.value_of(name, pattern.attribute) == value:
            return ClassifiedLine(pattern.kind, pattern.attribute, name, value)
        kind = LineKind.SWAPPED if any(f.value == value for f in told) else LineKind.WRONG
        return ClassifiedLine(kind, pattern.attribute, name, value)
    return ClassifiedLine(LineKind.BROKEN)
