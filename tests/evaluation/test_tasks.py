from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from evaluation.common.errors import InputError
from evaluation.tasks import Document, KnowledgeTask, Question, Split, split_tasks


def make_task(name: str, text: str = "", title: str = "", entities: tuple[str, ...] = ()) -> KnowledgeTask:
    document = Document(id=name, text=text or f"Text of {name}.", title=title, entities=entities)
    return KnowledgeTask(document=document, questions=(Question(question=f"What is {name}?", answer=name),))


def sides(split: Split) -> dict[str, tuple[KnowledgeTask, ...]]:
    return {"train": split.train, "development": split.development, "test": split.test}


@st.composite
def task_lists(draw: st.DrawFn) -> list[KnowledgeTask]:
    """Tasks of which some have the same document and some share entities."""
    count = draw(st.integers(3, 30))
    texts = draw(st.lists(st.integers(0, 40), min_size=count, max_size=count))
    entities = draw(st.lists(st.sets(st.sampled_from("abcdefgh"), max_size=2), min_size=count, max_size=count))
    return [
        make_task(f"d{i}", text=f"Text {text}.", entities=tuple(sorted(names)))
        for i, (text, names) in enumerate(zip(texts, entities, strict=True))
    ]


@given(task_lists(), st.integers(0, 6), st.integers(1, 6), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_split_of_any_tasks_is_exact_disjoint_and_seeded_or_refused(
    tasks: list[KnowledgeTask], development: int, test: int, seed: int
) -> None:
    try:
        split = split_tasks(tasks, development=development, test=test, seed=seed)
    except InputError:
        assume(False)
        raise
    assert split_tasks(tasks, development=development, test=test, seed=seed) == split
    assert (len(split.development), len(split.test)) == (development, test)
    everything = [task.id for side in sides(split).values() for task in side]
    assert sorted(everything) == sorted(task.id for task in tasks)
    for left, right in combinations(sides(split).values(), 2):
        assert {task.document.digest for task in left}.isdisjoint(task.document.digest for task in right)
        assert {name for task in left for name in task.document.entities}.isdisjoint(
            name for task in right for name in task.document.entities
        )


def test_split_with_other_seeds_differs() -> None:
    tasks = [make_task(f"d{i}") for i in range(30)]
    tests = {tuple(t.id for t in split_tasks(tasks, development=5, test=5, seed=seed).test) for seed in range(10)}
    assert len(tests) == 10


def test_split_keeps_a_chain_of_shared_entities_together() -> None:
    chain = [make_task(f"c{i}", entities=(f"e{i}", f"e{i + 1}")) for i in range(4)]
    others = [make_task(f"o{i}") for i in range(8)]
    for seed in range(20):
        split = split_tasks([*chain, *others], development=3, test=3, seed=seed)
        homes = {name for name, side in sides(split).items() for task in side if task.id.startswith("c")}
        assert homes == {"train"}  # four that stay together fit into neither side of three


def test_split_with_too_few_documents_names_the_numbers_and_the_settings() -> None:
    with pytest.raises(InputError, match=r"got 3 documents, need at least 4 .*data\.test_documents"):
        split_tasks([make_task(f"d{i}") for i in range(3)], development=1, test=2, seed=0)


def test_split_whose_groups_do_not_fit_is_refused() -> None:
    tasks = [make_task(f"d{i}", entities=("one",)) for i in range(10)]
    with pytest.raises(InputError, match="only 0 of 2 test documents"):
        split_tasks(tasks, development=0, test=2, seed=0)


def test_document_digest_covers_title_and_text_alone() -> None:
    document = Document(id="a", text="Text.", title="Title")
    same = Document(id="b", text="Text.", title="Title", source="elsewhere", entities=("x",))
    assert document.digest == same.digest
    others = [Document(id="a", text="Text", title="Title"), Document(id="a", text="Text.", title="")]
    assert len({document.digest, *(other.digest for other in others)}) == 3
    # Moving characters between title and text must not collide.
    assert Document(id="a", title="ab", text="c").digest != Document(id="a", title="a", text="bc").digest


DOCUMENT = Document(id="a", text="Text.")
ONE, TWO = Question(question="One?", answer="1"), Question(question="Two?", answer="2")


def test_task_digest_covers_document_questions_and_their_role() -> None:
    variants = [
        KnowledgeTask(document=DOCUMENT, questions=(ONE, TWO)),
        KnowledgeTask(document=DOCUMENT, questions=(TWO, ONE)),
        KnowledgeTask(document=DOCUMENT, questions=(ONE,), held_out_questions=(TWO,)),
        KnowledgeTask(document=DOCUMENT, questions=(ONE,)),
        KnowledgeTask(document=DOCUMENT, questions=(Question(question="One?", answer="one"),)),
        KnowledgeTask(document=Document(id="a", text="Text"), questions=(ONE,)),
    ]
    assert len({task.digest for task in variants}) == len(variants)


def test_task_comparison_questions_are_the_held_out_ones_where_there_are_any() -> None:
    assert KnowledgeTask(document=DOCUMENT, questions=(ONE,)).comparison_questions == (ONE,)
    both = KnowledgeTask(document=DOCUMENT, questions=(ONE,), held_out_questions=(TWO,))
    assert both.comparison_questions == (TWO,)


@pytest.mark.parametrize("blank", ["", " ", "\n\t", "\u2003"])
def test_question_refuses_blank_strings(blank: str) -> None:
    with pytest.raises(ValidationError):
        Question(question=blank, answer="1")
    with pytest.raises(ValidationError):
        Question(question="One?", answer=blank)
