from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from evaluation.common.checkpoints import MICRO_MODELS
from evaluation.common.errors import InputError
from evaluation.microworld.texts import LineKind, classify_line
from evaluation.microworld.world import ATTRIBUTES, Sheet, WorldDocument, draw_documents
from evaluation.tasks import KnowledgeTask, Question
from pipelines.records import Edit
from pipelines.train_teacher.edits import (
    NULL_LINE,
    ROTATION,
    at_budget,
    budgeted,
    null_edits,
    oracle_edits,
    other_documents_edits,
    written_line,
)
from teacher.parsing.parser import parse_self_edit
from teacher.rewards import RewardFailure
from teacher.self_edit import Implication, SelfEdit
from tests.pipelines.factories import make_edit, make_task

DOCUMENTS = draw_documents("development", 12, 0)
TASKS = [document.task for document in DOCUMENTS]
SHEETS = {document.task.id: document.sheet for document in DOCUMENTS}

WORDS = ["ab", "cd", "ef", "gh", "ij", "kl"]
SENTENCES = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)
LINES = st.builds(Implication, text=SENTENCES, answer=st.none() | st.sampled_from(WORDS))


def words_in(written: str) -> int:
    return len(written.split())


def edit_of(lines: Sequence[Implication], index: int = 0, document_id: str = "doc-0", spare: int = 0) -> Edit:
    """Return a self-edit of lines, and of tokens by `words_in` that the parser dropped or that ended it."""
    written = "".join(map(written_line, lines))
    edit = SelfEdit(implications=tuple(lines))
    tokens = words_in(written) + spare
    return make_edit(document_id, index, written, edit=edit, token_ids=(), completion_tokens=tokens)


def statements(*texts: str) -> tuple[Implication, ...]:
    return tuple(Implication(text=text) for text in texts)


def unparsed(index: int = 0, document_id: str = "doc-0") -> Edit:
    failed = {"rejection": "empty: no line", "failure": RewardFailure.PARSE_FAILED}
    return make_edit(document_id, index, "???", edit=None, token_ids=(1,) * 50, **failed)


def lines_of(edit: Edit) -> tuple[Implication, ...]:
    assert edit.edit is not None
    return edit.edit.implications


def kinds_of(edit: Edit, sheet: Sheet) -> list[LineKind]:
    return [classify_line(written_line(line).removeprefix("- "), sheet).kind for line in lines_of(edit)]


def task_with(answers: Sequence[str], held_out: Sequence[str] = ()) -> KnowledgeTask:
    asked = [Question(question=f"What is part {i}?", answer=text) for i, text in enumerate([*answers, *held_out])]
    here, later = tuple(asked[: len(answers)]), tuple(asked[len(answers) :])
    return make_task().model_copy(update={"questions": here, "held_out_questions": later})


# Controls of one's own making


def test_null_edits_say_nothing_of_any_document() -> None:
    edits = null_edits(TASKS)
    assert [edit.document_id for edit in edits] == [task.id for task in TASKS]
    for edit in edits:
        assert kinds_of(edit, SHEETS[edit.document_id]) == [LineKind.FILLER]
        assert (edit.index, edit.tokens, lines_of(edit)[0].text) == (0, 0, NULL_LINE)


def test_oracle_edits_tell_all_facts_and_read_back_as_written() -> None:
    edits = oracle_edits(TASKS, SHEETS)
    assert [edit.document_id for edit in edits] == [task.id for task in TASKS]
    for edit in edits:
        sheet = SHEETS[edit.document_id]
        assert kinds_of(edit, sheet) == [LineKind.QUESTION, LineKind.STATEMENT] * len(sheet.facts)
        assert parse_self_edit(edit.text, prompt="", finish_reason="stop").edit == edit.edit


# Other documents' self-edits


@given(count=st.integers(2, 20), samples=st.integers(1, 3), failed=st.sets(st.integers(0, 59)))
def test_every_document_gets_the_self_edits_of_one_other(count: int, samples: int, failed: set[int]) -> None:
    tasks = [make_task(f"doc-{i}") for i in range(count)]
    edits = [
        unparsed(s, f"doc-{i}")
        if i * samples + s in failed
        else edit_of(statements(f"about {i} by {s}"), s, f"doc-{i}")
        for i in range(count)
        for s in range(samples)
    ]
    given_away = other_documents_edits(edits, tasks)
    assert [(e.document_id, e.index) for e in given_away] == [(e.document_id, e.index) for e in edits]
    step = 1 if count == ROTATION else ROTATION % count
    for i in range(count):
        giver = (i + step) % count
        assert giver != i
        mine = given_away[i * samples : (i + 1) * samples]
        theirs = edits[giver * samples : (giver + 1) * samples]
        assert [e.model_copy(update={"document_id": f"doc-{giver}"}) for e in mine] == theirs


def test_the_other_document_of_the_microworld_is_of_the_same_kind_and_shares_no_name() -> None:
    moved = other_documents_edits(oracle_edits(TASKS, SHEETS), TASKS)
    for edit in moved:
        sheet = SHEETS[edit.document_id]
        assert not any(name in edit.text for name in sheet.names)
        assert any(name in edit.text for other in DOCUMENTS for name in other.sheet.names if other.sheet != sheet)
        told = {words.values for words in ATTRIBUTES[sheet.kind].values()}
        giver = next(other for other in DOCUMENTS if other.sheet.names[0] in edit.text)
        assert {fact.words.values for fact in giver.sheet.facts} <= told
        assert giver.sheet.kind == sheet.kind


def test_a_document_whose_giver_wrote_nothing_gets_nothing() -> None:
    tasks = [make_task(f"doc-{i}") for i in range(4)]
    moved = other_documents_edits([make_edit("doc-0"), make_edit("elsewhere")], tasks)
    assert [edit.document_id for edit in moved] == ["doc-1"]


@pytest.mark.parametrize("count", [0, 1])
def test_one_document_has_no_other(count: int) -> None:
    with pytest.raises(InputError, match=rf"got {count} documents.*need at least 2"):
        other_documents_edits([make_edit()], [make_task()] * count)


# Given lengths

Made = list[tuple[tuple[Implication, ...], int]]
EDITS = st.lists(
    st.tuples(st.lists(LINES, max_size=4), st.integers(0, 5)).map(lambda made: (tuple(made[0]), made[1])),
    min_size=1,
    max_size=4,
)


def records(made: Made) -> list[Edit]:
    return [edit_of(lines, i, spare=spare) if lines else unparsed(i) for i, (lines, spare) in enumerate(made)]


def key_of(line: Implication) -> str:
    return " ".join(written_line(line).casefold().split())


@given(made=EDITS, budget=st.integers(1, 60), seed=st.integers(0, 99))
def test_a_budget_is_never_exceeded_but_by_the_first_line(made: Made, budget: int, seed: int) -> None:
    edits = records(made)
    random.Random(seed).shuffle(edits)
    found = at_budget(edits, budget, words_in)
    told = [line for lines, _ in made for line in lines]
    if not told:
        assert (found.edit, found.tokens, found.failure) == (None, 0, RewardFailure.PARSE_FAILED)
        assert found.rejection
        return
    taken = lines_of(found)
    first = words_in(written_line(told[0]))
    assert found.text == "".join(map(written_line, taken))
    assert words_in(found.text) <= found.tokens <= max(budget, first)
    assert (found.document_id, found.index, found.token_ids) == ("doc-0", 0, ())
    distinct = list({key_of(line): line for line in reversed(told)}.values())[::-1]
    assert set(map(key_of, taken)) <= set(map(key_of, distinct))
    assert list(taken) == sorted({key_of(line): line for line in taken}.values(), key=told.index)
    assert taken[0] == told[0]


@given(made=EDITS, budgets=st.tuples(st.integers(1, 60), st.integers(1, 60)))
def test_a_larger_budget_takes_the_same_lines_and_goes_on(made: Made, budgets: tuple[int, int]) -> None:
    short, long = (at_budget(records(made), budget, words_in) for budget in sorted(budgets))
    assert long.text.startswith(short.text)
    assert long.tokens >= short.tokens


@given(made=EDITS)
def test_a_budget_for_all_takes_all_lines_once_and_counts_all_that_was_written(made: Made) -> None:
    edits = records(made)
    found = at_budget(edits, 10_000, words_in)
    told = {key_of(line): line for lines, _ in made for line in lines}
    if told:
        assert list(map(key_of, lines_of(found))) == list(told)
        assert found.tokens == sum(edit.tokens for edit in edits if edit.edit is not None)


@pytest.mark.parametrize(
    ("budget", "texts", "tokens"),
    [
        (1, ["ab cd ef"], 4),  # the first line, whatever its length
        (4, ["ab cd ef"], 4),
        (5, ["ab cd ef"], 5),  # the first self-edit's dropped tokens are cut, too
        (6, ["ab cd ef"], 6),
        (7, ["ab cd ef"], 6),  # "gh ij" takes 3
        (9, ["ab cd ef", "gh ij"], 9),
        (12, ["ab cd ef", "gh ij"], 9),  # the repeated line takes 4 and does not fit; "kl", which would, comes after it
        (13, ["ab cd ef", "gh ij"], 13),
        (15, ["ab cd ef", "gh ij", "kl"], 15),
    ],
)
def test_lines_are_taken_in_order_until_one_does_not_fit(budget: int, texts: list[str], tokens: int) -> None:
    edits = [
        edit_of(statements("gh ij", "AB  cd ef", "kl"), index=2),
        unparsed(index=1),
        edit_of(statements("ab cd ef"), index=0, spare=2),
    ]
    found = at_budget(edits, budget, words_in)
    assert [line.text for line in lines_of(found)] == texts
    assert found.tokens == tokens


def test_a_statement_and_a_pair_with_the_same_text_are_two_lines() -> None:
    lines = (Implication(text="Who?", answer="ab"), Implication(text="Who?", answer="cd"), Implication(text="Who?"))
    assert lines_of(at_budget([edit_of(lines)], 100, words_in)) == lines
    assert [written_line(line) for line in lines[1:]] == ["- Question: Who? Answer: cd\n", "- Who?\n"]


def test_each_document_has_its_budget_and_keeps_its_place() -> None:
    edits = [
        edit_of(statements("ab", "cd", "ef"), 0, "b"),
        unparsed(0, "c"),
        edit_of(statements("ab", "cd", "ef"), 0, "a"),
        edit_of(statements("gh"), 1, "b"),
    ]
    own = budgeted(edits, {"a": 4, "b": 8, "c": 5, "unknown": 1}, words_in)
    assert [(e.document_id, e.tokens) for e in own] == [("b", 8), ("c", 0), ("a", 4)]
    assert own[0].text == "- ab\n- cd\n- ef\n- gh\n"


@pytest.fixture(scope="module")
def micro_count() -> Callable[[str], int]:
    tokenizer = Tokenizer.from_file(str(MICRO_MODELS["micro-teacher"] / "tokenizer.json"))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


@settings(max_examples=20, deadline=None)
@given(budget=st.integers(1, 400), document=st.sampled_from(DOCUMENTS))
def test_the_micro_teachers_tokens_of_whole_lines_add_up(
    micro_count: Callable[[str], int], budget: int, document: WorldDocument
) -> None:
    found = at_budget(oracle_edits([document.task], SHEETS), budget, micro_count)
    assert micro_count(found.text) == found.tokens
    assert found.tokens <= budget or len(lines_of(found)) == 1
