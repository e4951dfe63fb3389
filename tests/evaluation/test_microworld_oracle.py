from __future__ import annotations

import itertools
import random
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.microworld.lines import LineKind, classify_line
from evaluation.microworld.oracle import oracle_lines, sheet_swaps
from evaluation.microworld.templates import ATTRIBUTES, FILLERS, OPENINGS, PHRASINGS, Attribute
from evaluation.microworld.vocabulary import ENTITY_KINDS, NAME_PARTS, VALUES, EntityKind
from evaluation.microworld.world import ENTITIES_PER_DOCUMENT, Fact, Sheet, draw_documents, draw_sheet, name_pools

DOCUMENTS = draw_documents("development", 12, 0)
EVERY_VALUE = {value for values in VALUES.values() for value in values}


@st.composite
def sheets(draw: st.DrawFn, entities: int = ENTITIES_PER_DOCUMENT) -> Sheet:
    kind = draw(st.sampled_from(ENTITY_KINDS))
    rng = random.Random(draw(st.integers(0, 2**31)))
    names = tuple(rng.sample(name_pools()[kind, "test"], entities))
    return draw_sheet(rng, names, kind, attributes=draw(st.integers(1, 4)))


def value_swaps(sheet: Sheet) -> dict[str, str]:
    """Return the swaps of single values, without the endings that stand for themselves."""
    return {value: other for value, other in sheet_swaps(sheet).items() if value in EVERY_VALUE}


def sentences(words: Attribute) -> list[str]:
    return [*words.passage, *words.statements, words.anonymous, *words.questions]


@pytest.mark.parametrize("sheet", [d.sheet for d in DOCUMENTS[:3]], ids=[d.sheet.kind for d in DOCUMENTS[:3]])
def test_oracle_lines_tell_every_fact_as_a_question_and_as_a_statement(sheet: Sheet) -> None:
    told: Counter[tuple[LineKind, str | None, str | None, str | None]] = Counter()
    for text, answer in oracle_lines(sheet):
        told[classify_line(text if answer is None else f"Question: {text} Answer: {answer}", sheet)] += 1
    kinds = (LineKind.QUESTION, LineKind.STATEMENT)
    assert told == Counter((kind, f.attribute, f.name, f.value) for f in sheet.facts for kind in kinds)


def test_oracle_questions_are_asked_by_rewards_and_not_by_comparisons() -> None:
    for task, sheet in DOCUMENTS:
        asked = {(text, answer) for text, answer in oracle_lines(sheet) if answer is not None}
        assert asked == {(q.question, q.answer) for q in task.questions if q.phrasing == PHRASINGS[0]}
        assert not asked & {(q.question, q.answer) for q in task.comparison_questions}


@settings(deadline=None)
@given(sheet=sheets())
def test_every_name_gets_anothers_value_of_the_same_attribute(sheet: Sheet) -> None:
    swaps = value_swaps(sheet)
    assert swaps.keys() == {fact.value for fact in sheet.facts}
    assert sorted(swaps.values()) == sorted(swaps)
    for fact in sheet.facts:
        others = {f.value for f in sheet.facts if f.attribute == fact.attribute and f.name != fact.name}
        assert swaps[fact.value] in others


@settings(deadline=None)
@given(sheet=sheets())
def test_as_many_swaps_as_there_are_entities_lead_back(sheet: Sheet) -> None:
    swaps = sheet_swaps(sheet)
    for value in swaps:
        path = [value]
        for _ in range(ENTITIES_PER_DOCUMENT):
            path.append(swaps[path[-1]])
        assert path[-1] == value
        if value in EVERY_VALUE:
            assert len(set(path)) == ENTITIES_PER_DOCUMENT


@given(sheet=sheets(entities=1))
def test_the_values_of_a_single_entity_have_no_swap(sheet: Sheet) -> None:
    assert sheet_swaps(sheet) == {}


@pytest.mark.parametrize("kind", ENTITY_KINDS)
def test_no_value_can_occur_under_two_attributes(kind: EntityKind) -> None:
    classes = [set(VALUES[words.values]) for words in ATTRIBUTES[kind].values()]
    assert len(classes) == 4
    assert all(not a & b for a, b in itertools.combinations(classes, 2))


def test_no_sentence_or_name_holds_a_value_but_one_question_at_its_end() -> None:
    told = [s for kind in ENTITY_KINDS for words in ATTRIBUTES[kind].values() for s in sentences(words)]
    told += [*FILLERS, *(opening for openings in OPENINGS.values() for opening in openings)]
    told += [word for parts in NAME_PARTS.values() for words in parts for word in words]
    found = [(s, word) for s in told for word in re.findall(r"\w+", s) if word.casefold() in EVERY_VALUE]
    assert found == [("What mark does {name} bear?", "bear")]


@pytest.mark.parametrize("animals", [("bear", "fox", "swan", "wolf"), ("badger", "fox", "swan", "wolf")])
def test_a_verb_that_is_also_a_value_stands_for_itself(animals: tuple[str, ...]) -> None:
    names = name_pools()["product", "test"][: len(animals)]
    facts = tuple(Fact("product", "mark", name, animal) for name, animal in zip(names, animals, strict=True))
    swaps = sheet_swaps(Sheet("product", facts))
    expected = dict(zip(animals, animals[1:] + animals[:1], strict=True))
    assert swaps == (expected | {"bear?": "bear?"} if "bear" in animals else expected)
