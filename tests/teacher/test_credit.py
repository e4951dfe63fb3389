"""Credit of single lines."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.microworld.tokenizer import build_tokenizer
from evaluation.tasks import Question
from teacher.credit import attribution, line_credits, lines_of_tokens, token_credits

QUESTIONS = (
    Question(question="Where does Bram Dahl live?", answer="Velmora"),
    Question(question="Where does Ida Kern live?", answer="Pelling"),
    Question(question="What pet does Bram Dahl own?", answer="hare"),
    Question(question="What pet does Ida Kern own?", answer="crow"),
)
LINES = ("Bram Dahl lives in Velmora.", "The pet of Ida Kern is a crow.", "It is good to know such things.")


def test_a_line_speaks_of_the_question_with_the_rarest_words_in_common() -> None:
    assert attribution(LINES, QUESTIONS) == [[1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]


def test_saying_a_thing_twice_shares_its_credit() -> None:
    shares = attribution((LINES[0], "The home of Bram Dahl is Velmora.", LINES[1]), QUESTIONS)
    assert [row[0] for row in shares] == [0.5, 0.5, 0.0]


def test_credit_goes_to_the_line_that_taught_and_filler_pays_for_it() -> None:
    taught, useless, filler = line_credits(LINES, QUESTIONS, [0.8, 0.0, 0.0, 0.0])
    assert taught == pytest.approx(3 * 0.2 - 0.2)
    assert useless == filler == pytest.approx(-0.2)


@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4), st.permutations(range(3)))
def test_credits_sum_to_zero_whatever_the_gains_and_the_order(gains: list[float], order: list[int]) -> None:
    plain = line_credits(LINES, QUESTIONS, gains)
    assert math.fsum(plain) == pytest.approx(0.0, abs=1e-9)
    moved = line_credits([LINES[i] for i in order], QUESTIONS, gains)
    assert moved == pytest.approx([plain[i] for i in order], abs=1e-12)


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
    credits = token_credits(ids, decode, QUESTIONS, [0.8, 0.0, 0.0, 0.0])
    assert credits[-1] == 0.0
    assert {round(c, 9) for c, place in zip(credits, places, strict=True) if place == 0} == {0.2}
    assert {round(c, 9) for c, place in zip(credits, places, strict=True) if place == 1} == {-0.2}
