"""Credit of single lines."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.microworld.build import build_tokenizer
from evaluation.tasks import Question
from teacher.credit import earned_by_line, line_gains, lines_of_tokens, relative_to_others, speakers

QUESTIONS = (
    Question(question="Where does Bram Dahl live?", answer="Velmora"),
    Question(question="Where does Ida Kern live?", answer="Pelling"),
    Question(question="What pet does Bram Dahl own?", answer="hare"),
    Question(question="What pet does Ida Kern own?", answer="crow"),
)
LINES = ("Bram Dahl lives in Velmora.", "The pet of Ida Kern is a crow.", "It is good to know such things.")


def test_a_line_speaks_of_the_question_with_the_rarest_words_in_common() -> None:
    assert speakers(LINES, QUESTIONS) == [0, None, None, 1]


def test_the_first_of_two_lines_that_say_the_same_has_the_credit() -> None:
    again = (LINES[1], LINES[0], "Bram Dahl lives in Velmora, they say.")
    assert speakers(again, QUESTIONS) == [1, None, None, 0]
    assert line_gains(again, QUESTIONS, [0.8, 0.0, 0.0, 0.4]) == pytest.approx([0.1, 0.2, 0.0])


def test_a_true_line_takes_the_credit_from_an_earlier_wrong_one() -> None:
    assert speakers(("Bram Dahl lives in Lindale.", LINES[0]), QUESTIONS)[0] == 1


@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4), st.permutations(range(3)))
def test_what_lines_earn_sums_to_what_is_spoken_of_whatever_the_order(gains: list[float], order: list[int]) -> None:
    plain = line_gains(LINES, QUESTIONS, gains)
    assert math.fsum(plain) == pytest.approx((gains[0] + gains[3]) / 4)
    moved = line_gains([LINES[i] for i in order], QUESTIONS, gains)
    assert moved == pytest.approx([plain[i] for i in order], abs=1e-12)


ragged = st.lists(st.lists(st.floats(-1, 1), max_size=5), min_size=1, max_size=6)


@given(ragged)
def test_credits_at_each_place_sum_to_zero_and_a_line_alone_has_none(earned: list[list[float]]) -> None:
    found = relative_to_others(earned)
    assert [len(row) for row in found] == [len(row) for row in earned]
    for place in range(5):
        column = [row[place] for row in found if len(row) > place]
        assert math.fsum(column) == pytest.approx(0.0, abs=1e-9)
        if len(column) == 1:
            assert column == [0.0]


def test_a_late_line_is_compared_with_late_lines() -> None:
    """The second lines earned less than the first ones, and the better of the two is still praised."""
    first, second = relative_to_others([[0.5, 0.2], [0.5, 0.1]])
    assert first == pytest.approx([0.0, 0.1])
    assert second == pytest.approx([0.0, -0.1])


def test_tokens_have_the_credit_of_their_line_and_the_closing_one_has_none() -> None:
    tokenizer = build_tokenizer()
    text = f"- {LINES[0]}\n- {LINES[2]}"
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]

    def decode(tokens: object) -> str:
        return str(tokenizer.decode(tokens, skip_special_tokens=True))

    places = lines_of_tokens(ids, decode)
    assert places[0] == 0
    assert places[-1] is None
    assert sorted({place for place in places if place is not None}) == [0, 1]
    earned = earned_by_line(ids, decode, QUESTIONS, [0.8, 0.0, 0.0, 0.0])
    assert earned.by_line == pytest.approx((0.2, 0.0))
    assert earned.of_tokens == tuple(places)


def test_blank_lines_are_no_lines() -> None:
    tokenizer = build_tokenizer()
    ids = tokenizer(f"- {LINES[0]}\n\n- {LINES[2]}", add_special_tokens=False)["input_ids"]

    def decode(tokens: object) -> str:
        return str(tokenizer.decode(tokens, skip_special_tokens=True))

    earned = earned_by_line(ids, decode, QUESTIONS, [0.0, 0.0, 0.0, 0.0])
    assert len(earned.by_line) == 2
    assert {place for place in earned.of_tokens if place is not None} == {0, 1}
