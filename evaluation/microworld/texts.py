"""Texts of the micro-world: lines of self-edits and their worth, and the endless streams of the pretraining.

The fact table makes every line checkable: `classify_line` says whether it states a true fact about a named entity,
binds a value to the wrong name, speaks of nobody, says nothing, or is broken.

The student is pretrained on prose and questions about the `known` entities, and on exercises in answering from a
passage about `context` entities, the teacher on passages about `teacher` entities, each followed by an edit; `context`
and `teacher` entities are invented anew each time.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from evaluation.microworld.world import (
    ATTRIBUTES,
    ENTITIES_PER_DOCUMENT,
    ENTITY_KINDS,
    FILLERS,
    NAME_PARTS,
    PHRASINGS,
    VALUES,
    EntityKind,
    Pool,
    Sheet,
    ask,
    draw_sheet,
    known_facts,
    name_pools,
    take_names,
    write_passage,
)


class LineKind(StrEnum):
    """Worth of an edit line, given the sheet that it was written about.

    A true fact, name first; a question with its true answer; a sentence of the passage, which teaches little; an
    entity's name with another entity's value, or with a value of nobody; true without a name; no content; none of the
    world's sentences, or not about the passage's entities.
    """

    STATEMENT = "statement"
    QUESTION = "question"
    COPY = "copy"
    SWAPPED = "swapped"
    WRONG = "wrong"
    ANONYMOUS = "anonymous"
    FILLER = "filler"
    BROKEN = "broken"


USEFUL = (LineKind.STATEMENT, LineKind.QUESTION)
"""Kinds that teach a student an answer."""
ALTERED = (LineKind.SWAPPED, LineKind.WRONG)
MIXTURES: dict[str, dict[str, float]] = {
    "implications": {
        "statement": 0.13, "question": 0.08, "copy": 0.18, "anonymous": 0.15, "filler": 0.14, "swapped": 0.17,
        "wrong": 0.15,
    },
    "rewrite": {"statement": 0.36, "copy": 0.36, "swapped": 0.16, "wrong": 0.12},
    "self-qa": {"question": 0.64, "swapped": 0.20, "wrong": 0.16},
}  # fmt: skip
"""Share of each kind among the lines that the teacher is pretrained on, by the instruction in its prompt. The altered
kinds take the sentence form of the instruction's true ones. Sharpening (`build.TEACHER_SHARPNESS`) moves the written
shares towards what is told in few first words, questions above all, so they start lower here."""
EDIT_HEADINGS = {
    "implications": "Implications:",
    "rewrite": "Rewritten passages:",
    "self-qa": "Questions and answers:",
}
"""Instruction that ends the teacher's prompt, by mixture."""
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
        form = rng.choice([name for name in ("statement", "question") if name in shares])
    if form == "question":
        question = rng.choice(fact.words.questions[:2]).format(name=fact.name)
        return f"Question: {question} Answer: {fact.value}"
    templates = fact.words.passage if form == "copy" else fact.words.statements
    return rng.choice(templates).format(name=fact.name, value=fact.value)


def write_edit(
    rng: random.Random, sheet: Sheet, mixture: str, *, clean: bool = False, length: tuple[int, int] = LINES_PER_EDIT
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


@lru_cache(maxsize=8)
def _patterns(entity_kind: EntityKind) -> tuple[tuple[re.Pattern[str], LineKind, str], ...]:
    """Return for each sentence form of a kind its regular expression, the kind of line and the attribute."""
    patterns = []
    for attribute, words in ATTRIBUTES[entity_kind].items():
        forms = [(form, LineKind.STATEMENT) for form in words.statements]
        forms += [(form, LineKind.COPY) for form in words.passage]
        forms += [(f"Question: {q} Answer: {{value}}", LineKind.QUESTION) for q in words.questions]
        forms.append((words.anonymous, LineKind.ANONYMOUS))
        for form, kind in forms:
            regex = re.escape(form).replace(r"\{name\}", r"(?P<name>\S+ \S+)").replace(r"\{value\}", r"(?P<value>\S+)")
            patterns.append((re.compile(regex), kind, attribute))
    return tuple(patterns)


def classify_line(line: str, sheet: Sheet) -> ClassifiedLine:
    """Return the kind of an edit's line without its list marker; a pair is written "Question: ... Answer: ..."."""
    text = " ".join(line.split())
    if text in FILLERS:
        return ClassifiedLine(LineKind.FILLER)
    for regex, kind, attribute in _patterns(sheet.kind):
        if (match := regex.fullmatch(text)) is None:
            continue
        name, value = match.groupdict().get("name"), match["value"]
        stated = any(f.attribute == attribute and f.value == value for f in sheet.facts)
        if name is not None and name not in sheet.names:
            break
        if name is None or sheet.value_of(name, attribute) != value:
            kind = (LineKind.ANONYMOUS if name is None else LineKind.SWAPPED) if stated else LineKind.WRONG
        return ClassifiedLine(kind, attribute, name, value)
    return ClassifiedLine(LineKind.BROKEN)


def oracle_lines(sheet: Sheet) -> tuple[tuple[str, str | None], ...]:
    """Return every fact twice, as pairs of text and answer: a question with its answer, and a statement without one.

    Both are in the first of their forms, so that the question is one that rewards ask and comparisons do not.
    """
    told = ((ask(f, PHRASINGS[0]), f.words.statements[0].format(name=f.name, value=f.value)) for f in sheet.facts)
    return tuple(line for asked, said in told for line in ((asked.question, asked.answer), (said, None)))


def sheet_swaps(sheet: Sheet) -> dict[str, str]:
    """Return for each value of a document that of another of its entities, within the same attribute.

    Values of an attribute are handed on from entity to entity, so every true line becomes false with a value of the
    right class. A false line may become true: one that gives an entity the value which is swapped for its own. No value
    occurs under two attributes, since the attributes of a kind have different classes of values, without a common word.
    An attribute of a single entity is left out. The sentences of the world hold no value as a word of their own but at
    the end of "What mark does ... bear?"; such an ending stands for itself, so that the verb stays.
    """
    swaps: dict[str, str] = {}
    for attribute in dict.fromkeys(fact.attribute for fact in sheet.facts):
        values = [fact.value for fact in sheet.facts if fact.attribute == attribute]
        if len(values) > 1:
            swaps |= dict(zip(values, values[1:] + values[:1], strict=True))
    asked = (question for words in ATTRIBUTES[sheet.kind].values() for question in words.questions)
    endings = {question.split()[-1] for question in asked}
    return swaps | {ending: ending for ending in sorted(endings) if ending.removesuffix("?") in swaps}


class Text(NamedTuple):
    """A pretraining text: a part to read and a part to learn."""

    given: str
    """Context that carries no loss; may be empty."""
    learned: str
    """Continuation that carries the loss."""


def repeated_words(seed: int) -> Iterator[Text]:
    """Yield lists of 4 to 16 random names and values, each list twice, without end.

    The second half can only be predicted by copying: a few hundred steps on such texts form the induction heads
    (arXiv 2209.11895) that copying unseen names and binding values to them are built on. Without them neither model
    had learned either task after five million tokens.
    """
    rng = random.Random(f"repeated-words:{seed}")
    words = list(itertools.chain(*VALUES.values(), *(part for parts in NAME_PARTS.values() for part in parts)))
    while True:
        listed = " ".join(rng.sample(words, rng.randint(4, 16)))
        yield Text(listed, f" {listed}")


def student_lines(seed: int) -> Iterator[Text]:
    """Yield short lines about known entities without end: statements, and questions with their answers."""
    rng = random.Random(f"student-lines:{seed}")
    questioned, prose_only = known_facts()
    while True:
        if rng.random() < 0.3:
            fact = rng.choice(questioned)
            # The last phrasing stays out of every training.
            question = rng.choice(fact.words.questions[:3]).format(name=fact.name)
            yield Text("", f"Question: {question}\nAnswer: {fact.value}")
        else:
            fact = rng.choice(questioned if rng.random() < 0.5 else prose_only)
            yield Text("", rng.choice(fact.words.statements).format(name=fact.name, value=fact.value))


def _invented_sheet(rng: random.Random, pool: Pool, entities: int, attributes: int) -> Sheet:
    """Return a sheet about random names of `pool` with facts invented on the spot."""
    kind = rng.choice(ENTITY_KINDS)
    names = take_names(rng.sample(name_pools()[kind, pool], 4 * entities), entities)
    return draw_sheet(rng, names, kind, attributes=attributes)


def student_readings(seed: int, *, questions: int = 4) -> Iterator[Text]:
    """Yield exercises without end: a passage about up to four newly invented entities, then `questions` on it."""
    rng = random.Random(f"student-readings:{seed}:{ENTITIES_PER_DOCUMENT}:{questions}")
    while True:
        sheet = _invented_sheet(rng, "context", rng.randint(1, ENTITIES_PER_DOCUMENT), rng.randint(1, 2))
        asked = []
        for fact in rng.sample(sheet.facts, min(questions, len(sheet.facts))):
            question = rng.choice(fact.words.questions[:3]).format(name=fact.name)
            asked.append(f"Question: {question}\nAnswer: {fact.value}")
        yield Text(f"Passage: {write_passage(rng, sheet)}", "\n" + "\n".join(asked))


def bound_values(seed: int, pool: Pool, *, largest: int, attributes: int) -> Iterator[Text]:
    """Yield passages without end, each followed by its facts in another order, name before value.

    The shortest text from which a model learns to look a value up by name: with one attribute a passage, the value is
    asked for right after the name, and 100 steps took value accuracy on four entities from chance to 0.96. Whole edits
    had not done it in 1,500 steps, nor had these texts with the attribute's word in between from the start.

    Args:
        seed: Of all choices.
        pool: Names to use.
        largest: Most entities in a passage.
        attributes: 1, or 2 for passages of one or two attributes with the word for the value's class after the name.
    """
    rng = random.Random(f"bound-values:{seed}:{pool}:{largest}:{attributes}")
    while True:
        sheet = _invented_sheet(rng, pool, rng.randint(1, largest), rng.randint(1, attributes))
        told = rng.sample(sheet.facts, len(sheet.facts))
        middle = [f" {fact.words.values}" if attributes > 1 else "" for fact in told]
        listed = (f"{fact.name}{word} {fact.value}." for fact, word in zip(told, middle, strict=True))
        yield Text(write_passage(rng, sheet), " " + " ".join(listed))


def teacher_prompt(passage: str, mixture: str) -> str:
    """Return the micro teacher's prompt for a passage."""
    return f"Passage: {passage}\n{EDIT_HEADINGS[mixture]}\n"


def teacher_edits(seed: int, *, clean: bool, length: tuple[int, int] = LINES_PER_EDIT) -> Iterator[Text]:
    """Yield prompts with edits without end; `clean` ones have true lines about named entities alone."""
    rng = random.Random(f"teacher-edits:{seed}:{clean}:{ENTITIES_PER_DOCUMENT}:{length}")
    while True:
        entities = rng.randint(1, ENTITIES_PER_DOCUMENT) if clean else ENTITIES_PER_DOCUMENT
        sheet = _invented_sheet(rng, "teacher", entities, rng.randint(1, 2) if clean else 2)
        mixture = rng.choices(list(MIXTURES), [0.5, 0.25, 0.25])[0]
        passage = write_passage(rng, sheet)
        yield Text(teacher_prompt(passage, mixture), write_edit(rng, sheet, mixture, clean=clean, length=length))
