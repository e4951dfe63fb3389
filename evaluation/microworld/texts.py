"""Texts of the micro-world: lines of self-edits and their classification, and infinite pretraining streams.

The student is pretrained on prose and questions about `known` entities and on reading comprehension about `context`
entities, the teacher on passages about `teacher` entities followed by an edit; the facts of the latter two are drawn
anew for each text.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from evaluation.microworld import world


class LineKind(StrEnum):
    """Kind of an edit line, relative to its document's sheet.

    True fact, name first; question with its true answer; sentence form of the passage; value of another entity; value
    of no entity; true without a name; no content; no sentence of the world or no entity of the passage.
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
"""Kinds from which a student learns an answer."""
ALTERED = (LineKind.SWAPPED, LineKind.WRONG)
MIXTURES: dict[str, dict[str, float]] = {
    "implications": {
        "statement": 0.13, "question": 0.08, "copy": 0.18, "anonymous": 0.15, "filler": 0.14, "swapped": 0.17,
        "wrong": 0.15,
    },
    "rewrite": {"statement": 0.36, "copy": 0.36, "swapped": 0.16, "wrong": 0.12},
    "self-qa": {"question": 0.64, "swapped": 0.20, "wrong": 0.16},
}  # fmt: skip
"""Shares of the kinds in the teacher's pretraining, by the instruction in its prompt; altered kinds take the forms of
its true ones. Questions start low, because sharpening (`pretraining.TEACHER_SHARPNESS`) raises their share."""
EDIT_HEADINGS = {
    "implications": "Implications:",
    "rewrite": "Rewritten passages:",
    "self-qa": "Questions and answers:",
}
"""Instruction at the end of the teacher's prompt, by mixture."""
LINES_PER_EDIT = (4, 9)
"""Minimum and maximum lines of an edit in the teacher's pretraining."""


def write_line(rng: random.Random, sheet: world.Sheet, mixture: str, *, clean: bool = False) -> str:
    """Return an edit line drawn from `MIXTURES[mixture]`; `clean` restricts it to true kinds with a name."""
    shares = MIXTURES[mixture]
    if clean:
        shares = {kind: share for kind, share in shares.items() if kind in ("statement", "question", "copy")}
    kind = rng.choices(list(shares), list(shares.values()))[0]
    if kind == "filler":
        return rng.choice(world.FILLERS)
    fact = rng.choice(sheet.facts)
    if kind == "anonymous":
        return fact.words.anonymous.format(value=fact.value)
    form = kind
    if kind in ALTERED:
        others = {f.value for f in sheet.facts if f.attribute == fact.attribute} - {fact.value}
        absent = sorted(set(world.VALUES[fact.words.values]) - others - {fact.value})
        fact = fact._replace(value=rng.choice(sorted(others) if kind == "swapped" else absent))
        form = rng.choice([name for name in ("statement", "question") if name in shares])
    if form == "question":
        question = rng.choice(fact.words.questions[:2]).format(name=fact.name)
        return f"Question: {question} Answer: {fact.value}"
    templates = fact.words.passage if form == "copy" else fact.words.statements
    return rng.choice(templates).format(name=fact.name, value=fact.value)


def write_edit(
    rng: random.Random,
    sheet: world.Sheet,
    mixture: str,
    *,
    clean: bool = False,
    length: tuple[int, int] = LINES_PER_EDIT,
) -> str:
    """Return an edit of the teacher's pretraining: independent lines, their number drawn from the range `length`."""
    lines = [write_line(rng, sheet, mixture, clean=clean) for _ in range(rng.randint(*length))]
    return "\n".join(f"- {line}" for line in lines)


class ClassifiedLine(NamedTuple):
    """A line's kind and the fact that it states, if any."""

    kind: LineKind
    attribute: str | None = None
    name: str | None = None
    value: str | None = None


@lru_cache(maxsize=8)
def _patterns(entity_kind: world.EntityKind) -> tuple[tuple[re.Pattern[str], LineKind, str], ...]:
    """Return the regular expression, kind of line and attribute of each sentence form."""
    patterns = []
    for attribute, words in world.ATTRIBUTES[entity_kind].items():
        forms = [(form, LineKind.STATEMENT) for form in words.statements]
        forms += [(form, LineKind.COPY) for form in words.passage]
        forms += [(f"Question: {q} Answer: {{value}}", LineKind.QUESTION) for q in words.questions]
        forms.append((words.anonymous, LineKind.ANONYMOUS))
        for form, kind in forms:
            regex = re.escape(form).replace(r"\{name\}", r"(?P<name>\S+ \S+)").replace(r"\{value\}", r"(?P<value>\S+)")
            patterns.append((re.compile(regex), kind, attribute))
    return tuple(patterns)


def classify_line(line: str, sheet: world.Sheet) -> ClassifiedLine:
    """Classify an edit line without its list marker; a pair is written "Question: ... Answer: ..."."""
    text = " ".join(line.split())
    if text in world.FILLERS:
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


def oracle_lines(sheet: world.Sheet) -> tuple[tuple[str, str | None], ...]:
    """Return two (text, answer) lines per fact: its question in the first phrasing, and a statement without answer."""
    facts = (
        (world.ask(f, world.PHRASINGS[0]), f.words.statements[0].format(name=f.name, value=f.value))
        for f in sheet.facts
    )
    return tuple(line for qa, statement in facts for line in ((qa.question, qa.answer), (statement, None)))


class Text(NamedTuple):
    """A pretraining text."""

    given: str
    """Context without loss; may be empty."""
    learned: str
    """Target."""


def repeated_words(seed: int) -> Iterator[Text]:
    """Yield lists of 4 to 16 random names and values, each list twice.

    They form induction heads (arXiv 2209.11895) within a few hundred steps; without these, neither model learned to
    copy unseen names or bind values to them within five million tokens.
    """
    rng = random.Random(f"repeated-words:{seed}")
    while True:
        listed = " ".join(rng.sample(world.WORDS, rng.randint(4, 16)))
        yield Text(listed, f" {listed}")


def student_lines(seed: int) -> Iterator[Text]:
    """Yield statements, and questions with answers, about known entities."""
    rng = random.Random(f"student-lines:{seed}")
    questioned, prose_only = world.known_facts()
    while True:
        if rng.random() < 0.3:
            fact = rng.choice(questioned)
            # The last phrasing is never trained on.
            question = rng.choice(fact.words.questions[:3]).format(name=fact.name)
            yield Text("", f"Question: {question}\nAnswer: {fact.value}")
        else:
            fact = rng.choice(questioned if rng.random() < 0.5 else prose_only)
            yield Text("", rng.choice(fact.words.statements).format(name=fact.name, value=fact.value))


def _invented_sheet(rng: random.Random, pool: world.Pool, entities: int, attributes: int) -> world.Sheet:
    """Return a sheet of newly drawn facts about random names of `pool`."""
    kind = rng.choice(world.ENTITY_KINDS)
    names = world.take_names(rng.sample(world.name_pools()[kind, pool], 4 * entities), entities)
    return world.draw_sheet(rng, names, kind, attributes=attributes)


def student_readings(seed: int, *, questions: int = 4) -> Iterator[Text]:
    """Yield reading exercises: a passage about one to four entities, then up to `questions` questions on it."""
    rng = random.Random(f"student-readings:{seed}:{world.ENTITIES_PER_DOCUMENT}:{questions}")
    while True:
        sheet = _invented_sheet(rng, "context", rng.randint(1, world.ENTITIES_PER_DOCUMENT), rng.randint(1, 2))
        asked = []
        for fact in rng.sample(sheet.facts, min(questions, len(sheet.facts))):
            question = rng.choice(fact.words.questions[:3]).format(name=fact.name)
            asked.append(f"Question: {question}\nAnswer: {fact.value}")
        yield Text(f"Passage: {world.write_passage(rng, sheet)}", "\n" + "\n".join(asked))


def bound_values(seed: int, pool: world.Pool, *, largest: int, attributes: int) -> Iterator[Text]:
    """Yield passages followed by their facts in another order, name before value.

    The shortest text from which look-up by name is learned: 100 steps with one attribute took accuracy from chance to
    0.96; 1,500 steps on whole edits did not. `largest` is the maximum number of entities; with `attributes` = 2 the
    class of the value follows the name.
    """
    rng = random.Random(f"bound-values:{seed}:{pool}:{largest}:{attributes}")
    while True:
        sheet = _invented_sheet(rng, pool, rng.randint(1, largest), rng.randint(1, attributes))
        shuffled = rng.sample(sheet.facts, len(sheet.facts))
        listed = (f"{f.name}{f' {f.words.values}' if attributes > 1 else ''} {f.value}." for f in shuffled)
        yield Text(world.write_passage(rng, sheet), " " + " ".join(listed))


def teacher_prompt(passage: str, mixture: str) -> str:
    """Return the micro teacher's prompt for a passage."""
    return f"Passage: {passage}\n{EDIT_HEADINGS[mixture]}\n"


def teacher_edits(seed: int, *, clean: bool, length: tuple[int, int] = LINES_PER_EDIT) -> Iterator[Text]:
    """Yield teacher prompts with edits; `clean` restricts the lines to true ones with a name."""
    rng = random.Random(f"teacher-edits:{seed}:{clean}:{world.ENTITIES_PER_DOCUMENT}:{length}")
    while True:
        entities = rng.randint(1, world.ENTITIES_PER_DOCUMENT) if clean else world.ENTITIES_PER_DOCUMENT
        sheet = _invented_sheet(rng, "teacher", entities, rng.randint(1, 2) if clean else 2)
        mixture = rng.choices(list(MIXTURES), [0.5, 0.25, 0.25])[0]
        passage = world.write_passage(rng, sheet)
        yield Text(teacher_prompt(passage, mixture), write_edit(rng, sheet, mixture, clean=clean, length=length))
