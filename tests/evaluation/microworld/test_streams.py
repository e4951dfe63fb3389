"""The infinite streams of the pretraining."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.microworld import pretraining, world
from evaluation.microworld.pretraining import Role
from evaluation.microworld.texts import (
    EDIT_HEADINGS,
    MIXTURES,
    LineKind,
    Text,
    bound_values,
    classify_line,
    repeated_words,
    student_lines,
    student_readings,
    teacher_edits,
)

SEEDS = st.integers(min_value=0, max_value=2**31)

STREAMS: dict[str, Callable[[int], Iterator[Text]]] = {
    "repeated words": repeated_words,
    "student lines": student_lines,
    "student readings": student_readings,
    "student bound values": lambda seed: bound_values(seed, "context", largest=4, attributes=2),
    "teacher bound values": lambda seed: bound_values(seed, "teacher", largest=4, attributes=2),
    "teacher clean edits": lambda seed: teacher_edits(seed, clean=True),
    "teacher edits": lambda seed: teacher_edits(seed, clean=False),
}
TEXTS = {"student lines": 3000, "student readings": 1000, "teacher clean edits": 500, "teacher edits": 1000}
"""Number of texts searched, by stream with questions."""


@lru_cache(maxsize=8)
def drawn(stream: str) -> tuple[Text, ...]:
    return tuple(itertools.islice(STREAMS[stream](11), TEXTS.get(stream, 500)))


def pattern_of(form: str) -> re.Pattern[str]:
    whole = re.escape(form).replace(r"\{name\}", r"(?P<name>\w+ \w+)")
    return re.compile(whole.replace(r"\{value\}", r"(?P<value>\w+)"))


def forms_found(texts: Iterable[str], forms: Iterable[str]) -> list[str]:
    """Return those of `forms` that occur, filled in, anywhere in `texts`."""
    whole = "\n".join(texts)
    return [form for form in forms if pattern_of(form).search(whole)]


def question_forms(phrasing: str) -> list[str]:
    place = world.PHRASINGS.index(phrasing)
    return [words.questions[place] for kind in world.ENTITY_KINDS for words in world.ATTRIBUTES[kind].values()]


def passage_forms() -> list[str]:
    return [form for kind in world.ENTITY_KINDS for words in world.ATTRIBUTES[kind].values() for form in words.passage]


def names_in(text: str) -> set[str]:
    words = re.findall(r"\w+", text)
    pairs = set(itertools.pairwise(words))
    return {
        f"{first} {second}"
        for first, second in pairs
        if any(first in parts[0] and second in parts[1] for parts in world.NAME_PARTS.values())
    }


def sheet_of(passage: str) -> world.Sheet:
    """Return the facts that the passage's sentences tell."""
    facts = [
        (kind, world.Fact(kind, attribute, match["name"], match["value"]))
        for kind in world.ENTITY_KINDS
        for attribute, words in world.ATTRIBUTES[kind].items()
        for form in words.passage
        for match in pattern_of(form).finditer(passage)
    ]
    (kind,) = {kind for kind, _ in facts}
    return world.Sheet(kind, tuple(fact for _, fact in facts))


@pytest.mark.parametrize("stream", list(TEXTS))
def test_no_stream_asks_in_the_unseen_phrasing_and_teachers_not_in_the_held_out_one_either(stream: str) -> None:
    """The student's side also shows that the search finds what is there."""
    texts, held_out = [given + learned for given, learned in drawn(stream)], question_forms("held-out")
    assert forms_found(texts, question_forms("unseen")) == []
    assert forms_found(texts, held_out) == (held_out if stream.startswith("student") else [])


def test_teacher_edits_use_both_asked_phrasings() -> None:
    learned = [text.learned for text in drawn("teacher edits")]
    for phrasing in ("asked-1", "asked-2"):
        assert forms_found(learned, question_forms(phrasing)) == question_forms(phrasing)


def test_student_sees_passage_sentences_in_passages_only() -> None:
    assert forms_found((given + learned for given, learned in drawn("student lines")), passage_forms()) == []
    assert forms_found((text.learned for text in drawn("student readings")), passage_forms()) == []
    assert forms_found((text.given for text in drawn("student readings")), passage_forms()) == passage_forms()


@pytest.mark.parametrize(
    ("stream", "pool"),
    [
        ("student lines", "known"),
        ("student readings", "context"),
        ("student bound values", "context"),
        ("teacher bound values", "teacher"),
        ("teacher edits", "teacher"),
        ("teacher clean edits", "teacher"),
    ],
)
def test_streams_name_entities_of_their_pool_only(stream: str, pool: world.Pool) -> None:
    allowed = {name for kind in world.ENTITY_KINDS for name in world.name_pools()[kind, pool]}
    named = set().union(*(names_in(given + learned) for given, learned in drawn(stream)))
    assert named <= allowed
    assert len(named) > len(allowed) / 2


def test_known_facts_are_one_value_for_every_attribute_of_every_known_name() -> None:
    questioned, prose_only = world.known_facts()
    expected = {
        (name, a)
        for kind in world.ENTITY_KINDS
        for name in world.name_pools()[kind, "known"]
        for a in world.ATTRIBUTES[kind]
    }
    facts = [*questioned, *prose_only]
    assert sorted((fact.name, fact.attribute) for fact in facts) == sorted(expected)
    assert all(fact.value in world.VALUES[fact.words.values] for fact in facts)
    assert not {fact.name for fact in questioned} & {fact.name for fact in prose_only}


def test_student_lines_never_question_entities_of_prose_only() -> None:
    questioned, prose_only = ({fact.name for fact in side} for side in world.known_facts())
    asked = set().union(*(names_in(t.learned) for t in drawn("student lines") if t.learned.startswith("Question:")))
    stated = set().union(
        *(names_in(t.learned) for t in drawn("student lines") if not t.learned.startswith("Question:"))
    )
    assert asked == questioned
    assert stated == questioned | prose_only


def test_student_lines_tell_known_facts_only() -> None:
    known = {(fact.name, fact.value) for side in world.known_facts() for fact in side}
    for given_part, learned in drawn("student lines"):
        assert given_part == ""
        (name,) = names_in(learned)
        assert any(re.search(rf"\b{value}\b", learned) for about, value in known if about == name)


def test_student_readings_ask_what_their_passage_answers() -> None:
    for given_part, learned in drawn("student readings")[:200]:
        sheet = sheet_of(given_part.removeprefix("Passage: "))
        pairs = re.findall(r"\nQuestion: (.*)\nAnswer: (\w+)", learned)
        assert 1 <= len(pairs) <= 4
        assert "".join(f"\nQuestion: {q}\nAnswer: {a}" for q, a in pairs) == learned
        for question, answer in pairs:
            assert classify_line(f"Question: {question} Answer: {answer}", sheet).kind is LineKind.QUESTION


def test_teacher_clean_edits_are_true_about_their_passage() -> None:
    for text in itertools.islice(teacher_edits(3, clean=True, length=(8, 14)), 150):
        sheet = sheet_of(text.given)
        lines = text.learned.split("\n")
        assert len(sheet.names) <= 4
        assert 8 <= len(lines) <= 14
        kinds = {classify_line(line.removeprefix("- "), sheet).kind for line in lines}
        assert kinds <= {LineKind.STATEMENT, LineKind.QUESTION, LineKind.COPY}


def test_teacher_edits_mix_the_kinds_of_their_heading() -> None:
    """The prompt alone decides the mixture: each heading is followed by its own kinds, and by all of them."""
    seen: dict[str, set[str]] = {mixture: set() for mixture in MIXTURES}
    for given_part, learned in drawn("teacher edits")[:400]:
        sheet = sheet_of(given_part)
        (mixture,) = [m for m, heading in EDIT_HEADINGS.items() if given_part.endswith(f"\n{heading}\n")]
        assert given_part.startswith("Passage: ")
        seen[mixture] |= {classify_line(line[2:], sheet).kind.value for line in learned.split("\n")}
    assert seen == {mixture: set(shares) for mixture, shares in MIXTURES.items()}


@pytest.mark.parametrize("largest", [1, 4])
@pytest.mark.parametrize("attributes", [1, 2])
def test_bound_values_list_the_facts_of_their_passage(largest: int, attributes: int) -> None:
    sizes = set()
    for given_part, learned in itertools.islice(
        bound_values(2, "teacher", largest=largest, attributes=attributes), 100
    ):
        facts = sheet_of(given_part).facts
        stated = {f" {f.name} {f.words.values} {f.value}" if attributes > 1 else f" {f.name} {f.value}" for f in facts}
        assert sorted(learned.split(".")) == sorted(["", *stated])
        sizes.add((len({fact.name for fact in facts}), len({fact.attribute for fact in facts})))
    assert sizes == set(itertools.product(range(1, largest + 1), range(1, attributes + 1)))


@pytest.mark.parametrize("role", get_args(Role))
def test_recipes_train_on_no_unseen_phrasing_and_no_entity_of_a_run(role: Role) -> None:
    """Lists of repeated words aside, whose chance pairs of words can be anyone's name; they tell nothing."""
    phases = [phase for stage in pretraining.stages(role, 5) for phase in stage]
    texts = itertools.chain(*(itertools.islice(stream, 200) for phase in phases for stream, _ in phase.streams))
    telling = [given_part + learned for given_part, learned in texts if learned != f" {given_part}"]
    assert len(telling) >= 400
    assert forms_found(telling, question_forms("unseen")) == []
    pools: tuple[world.Pool, ...] = ("known", "context", "teacher")
    allowed = {name for kind in world.ENTITY_KINDS for pool in pools for name in world.name_pools()[kind, pool]}
    assert set().union(*map(names_in, telling)) <= allowed


def test_repeated_words_second_half_is_the_first() -> None:
    for given_part, learned in itertools.islice(repeated_words(0), 200):
        assert learned == f" {given_part}"
        assert 4 <= len(given_part.split()) == len(set(given_part.split())) <= 16


@pytest.mark.parametrize("stream", list(STREAMS))
@settings(max_examples=5, deadline=None)
@given(seed=SEEDS)
def test_streams_depend_on_the_seed_and_on_nothing_else(stream: str, seed: int) -> None:
    random.seed(seed)
    state = random.getstate()
    first, again, other = (list(itertools.islice(STREAMS[stream](s), 8)) for s in (seed, seed, seed + 1))
    assert first == again
    assert first != other
    assert random.getstate() == state
