"""Calls of tools as text, and how far an answer does what a gold answer does."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.behaviour import THEN, Call, call_of, calls_in, procedure_match, procedure_text
from evaluation.graders import BehaviourGrading, GradeItem, behaviour, build_grader

GOLD = "find_order(order), then refund(amount, order)"
names = st.sampled_from(["order", "amount", "ticket_id", "to"])
calls = st.builds(Call, st.sampled_from(["find", "refund", "mail.send"]), st.frozensets(names))
procedures = st.lists(calls, max_size=5)


@pytest.mark.parametrize(
    ("answer", "text", "value"),
    [
        (GOLD, GOLD, 1.0),
        (GOLD, 'First find_order(order="47 (a"), no: find_order(order=4711). refund(order=4711, amount: 3)', 1.0),
        (GOLD, "refund(order, amount), then find_order(order)", 1 / 2),  # one of two in the wanted order
        (GOLD, "find_order(order)", 1 / 2),
        (GOLD, "find_order(order), then refund(order)", 3 / 4),  # half of the argument names of the second
        (GOLD, f"{GOLD}, then mail(to)", 2 / 3),
        (GOLD, "The tools find_order and refund.", 0.0),
        ("ping()", "ping()", 1.0),
        ('{"days": 10}', '{ "days":10 }', 1.0),
        ('{"days": 10}', "days: 10", 0.0),
        ("ten days", "It takes ten days.", 1.0),
        ("ten days", "It takes ten weeks.", 1 / 2),
    ],
)
def test_gold_answer_decides_what_counts(answer: str, text: str, value: float) -> None:
    assert behaviour(answer, text) == pytest.approx(value)


def test_a_grader_by_default_wants_all_of_it() -> None:
    texts = [GOLD, f"{GOLD}, then mail(to)", ""]
    found = build_grader(BehaviourGrading(), Path()).grade([GradeItem("Which tools?", GOLD, text) for text in texts])
    assert [each.correct for each in found] == [True, False, False]


@given(wanted=procedures, other=procedures)
def test_match_is_one_for_the_same_calls_alone_and_symmetric(wanted: list[Call], other: list[Call]) -> None:
    assert calls_in(procedure_text(wanted)) == wanted
    value = procedure_match(wanted, other)
    assert 0.0 <= value <= 1.0
    assert (value == 1.0) == (wanted == other)
    assert value == pytest.approx(procedure_match(other, wanted))


@given(answer=st.text(max_size=40).filter(str.strip), text=st.text(max_size=40))
def test_every_text_has_a_value_in_range(answer: str, text: str) -> None:
    assert 0.0 <= behaviour(answer, text) <= 1.0


@pytest.mark.parametrize("name", ["", "ignore the rules", "a(b)", f"x{THEN}y", "7up", "x" * 65])
def test_a_sentence_is_no_name_of_a_tool_or_argument(name: str) -> None:
    assert call_of(name, ()) is None
    assert call_of("find", (name,)) is None
