"""The micro-world: names, documents, splits, and the words and sentences that they are made of."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.common.errors import InputError
from evaluation.microworld import world

SEEDS = st.integers(min_value=0, max_value=2**31)
POOLS = st.sampled_from(sorted(world.POOL_SHARES))
FEW_DOCUMENTS = 9


def small_data(seed: int) -> world.MicroworldData:
    return world.MicroworldData(train_documents=24, development_documents=6, test_documents=12, split_seed=seed)


def sentence_forms(words: world.Attribute) -> tuple[str, ...]:
    return (*words.passage, *words.statements, words.anonymous, *words.questions)


@pytest.mark.parametrize("kind", world.ENTITY_KINDS)
def test_name_pools_of_a_kind_are_disjoint_and_hold_all_names(kind: world.EntityKind) -> None:
    dealt = Counter(name for pool in world.POOL_SHARES for name in world.name_pools()[kind, pool])
    assert set(dealt) == {f"{first} {second}" for first, second in itertools.product(*world.NAME_PARTS[kind])}
    assert max(dealt.values()) == 1


@pytest.mark.parametrize("pool", list(world.POOL_SHARES))
def test_name_pools_sizes_follow_the_shares(pool: world.Pool) -> None:
    assert sum(world.POOL_SHARES.values()) == pytest.approx(1.0)
    for kind in world.ENTITY_KINDS:
        names = len(world.NAME_PARTS[kind][0]) * len(world.NAME_PARTS[kind][1])
        assert len(world.name_pools()[kind, pool]) == pytest.approx(
            world.POOL_SHARES[pool] * names, abs=len(world.POOL_SHARES)
        )


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, pool=POOLS)
def test_draw_documents_entities_share_no_word_occur_once_and_are_told_of(seed: int, pool: world.Pool) -> None:
    seen: set[str] = set()
    for task, sheet in world.draw_documents(pool, FEW_DOCUMENTS, seed):
        words = [word for name in task.document.entities for word in name.split()]
        assert len(words) == len(set(words)) == 2 * world.ENTITIES_PER_DOCUMENT
        assert not seen & set(task.document.entities)
        assert set(task.document.entities) <= set(world.name_pools()[sheet.kind, pool])
        seen |= set(task.document.entities)
        assert len(sheet.facts) == 8
        assert set(sheet.names) == set(task.document.entities)
        for fact in sheet.facts:
            stated = [form.format(name=fact.name, value=fact.value) for form in fact.words.passage]
            assert sum(sentence in task.document.text for sentence in stated) == 1
            same_attribute = [f.value for f in sheet.facts if f.attribute == fact.attribute]
            assert len(set(same_attribute)) == len(same_attribute) == world.ENTITIES_PER_DOCUMENT
        assert set(task.questions) == {world.ask(f, p) for f in sheet.facts for p in world.PHRASINGS[:2]}
        assert set(task.held_out_questions) == {world.ask(f, p) for f in sheet.facts for p in world.PHRASINGS[2:]}
        assert {q.phrasing for q in task.questions} == {"asked-1", "asked-2"}
        assert {q.phrasing for q in task.held_out_questions} == {"held-out", "unseen"}


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS)
def test_microworld_split_sides_never_share_an_entity(seed: int) -> None:
    sides = [
        {name for task in side for name in task.document.entities} for side in world.microworld_split(small_data(seed))
    ]
    assert [len(side) for side in sides] == [4 * 24, 4 * 6, 4 * 12]
    pretrained: set[str] = set()
    for kind, pool in itertools.product(world.ENTITY_KINDS, ("known", "context", "teacher")):
        pretrained |= set(world.name_pools()[kind, pool])  # type: ignore[index]
    for one, other in itertools.combinations([*sides, pretrained], 2):
        assert not one & other


@pytest.mark.parametrize("side", ["train", "development", "test"])
def test_microworld_data_largest_request_can_be_served(side: world.Pool) -> None:
    bounds = world.MicroworldData.model_fields[f"{side}_documents"].metadata
    largest = next(bound.le for bound in bounds if hasattr(bound, "le"))
    for seed in range(3):
        assert len(world.draw_documents(side, largest, seed)) == largest


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, pool=POOLS)
def test_draw_documents_depends_on_the_seed_and_on_nothing_else(seed: int, pool: world.Pool) -> None:
    drawn = world.draw_documents(pool, 3, seed)
    world.draw_documents.cache_clear()
    assert world.draw_documents(pool, 3, seed) == drawn
    assert world.draw_documents(pool, 6, seed)[:3] == drawn
    others = world.draw_documents(pool, 3, seed + 1)
    assert not {d.task.document.text for d in drawn} & {d.task.document.text for d in others}


def test_draw_documents_too_many_says_how_many_there_are() -> None:
    with pytest.raises(InputError, match=r"pool 'development' has names for (\d+) documents, got .* 4000") as caught:
        world.draw_documents("development", 4000, 0)
    enough = int(re.findall(r"for (\d+) documents", str(caught.value))[0])
    assert len(world.draw_documents("development", enough, 0)) == enough


def test_take_names_leaves_names_that_share_a_word() -> None:
    names = ["Bram Dahl", "Adela Voss", "Adela Abend"]
    assert world.take_names(names, 2) == ("Adela Abend", "Bram Dahl")
    assert names == ["Adela Voss"]


def test_take_names_too_few_takes_none() -> None:
    names = ["Adela Voss", "Adela Abend"]
    with pytest.raises(ValueError, match="only 1 of 2"):
        world.take_names(names, 2)
    assert names == ["Adela Voss", "Adela Abend"]


def test_microworld_sheets_hold_every_answer_of_the_split() -> None:
    sheets = world.microworld_sheets(small_data(5))
    tasks = list(itertools.chain(*world.microworld_split(small_data(5))))
    assert set(sheets) == {task.id for task in tasks}
    assert len(sheets) == len({task.document.digest for task in tasks}) == len(tasks)
    for task in tasks:
        answers = Counter(fact.value for fact in sheets[task.id].facts)
        assert Counter(q.answer for q in task.questions) == Counter({v: 2 * n for v, n in answers.items()})


def test_values_belong_to_one_class_and_are_no_names() -> None:
    values = Counter(value for values in world.VALUES.values() for value in values)
    assert max(values.values()) == 1
    assert min(map(len, world.VALUES.values())) >= 24
    assert not [value for value in values if not re.fullmatch(r"[A-Za-z]+", value)]
    parts = Counter(part for parts in world.NAME_PARTS.values() for part in itertools.chain(*parts))
    assert max(parts.values()) == 1
    assert not set(parts) & set(values)


def test_values_behind_an_article_begin_with_a_consonant() -> None:
    attributes = [words for kind in world.ENTITY_KINDS for words in world.ATTRIBUTES[kind].values()]
    forms = [(words.values, form) for words in attributes for form in sentence_forms(words)]
    behind = {values for values, form in forms if re.search(r"\ba \{value\}", form)}
    assert behind == {"trade", "instrument", "animal"}
    assert not [value for name in behind for value in world.VALUES[name] if value[0].lower() in "aeiou"]
    assert not [form for _, form in forms if re.search(r"\ban \{value\}", form)]


@pytest.mark.parametrize("kind", world.ENTITY_KINDS)
def test_templates_of_a_kind_have_their_slots_and_cannot_be_mistaken_for_another(kind: world.EntityKind) -> None:
    """Filled in, a form matches its own pattern and none of the other sets' or attributes' patterns."""
    forms = [form for words in world.ATTRIBUTES[kind].values() for form in sentence_forms(words)]
    for written, read in itertools.product(forms, forms):
        pattern = re.escape(read).replace(r"\{name\}", r"\S+ \S+").replace(r"\{value\}", r"\S+")
        matches = re.fullmatch(pattern, written.format(name="Bram Dahl", value="grey")) is not None
        assert matches == (written == read)
    for words in world.ATTRIBUTES[kind].values():
        for form in (*words.passage, *words.statements):
            assert form.count("{name}") == form.count("{value}") == 1
        assert (words.anonymous.count("{name}"), words.anonymous.count("{value}")) == (0, 1)
        assert len(words.questions) == len(world.PHRASINGS)
        assert all(q.count("{name}") == 1 and "{value}" not in q and q.endswith("?") for q in words.questions)
        assert words.values in world.VALUES
