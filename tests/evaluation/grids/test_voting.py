"""Votes over views, and what predictions are worth."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from evaluation.grids.tasks import Grid
from evaluation.grids.voting import cell_accuracy, is_solved, vote
from tests.evaluation.grids.strategies import grids

A: Grid = ((1,),)
B: Grid = ((2,),)
C: Grid = ((3,),)


def test_views_have_one_voice_each_however_often_they_were_asked() -> None:
    loud = {"as-it-is": [A] * 9, "mirror": [B], "flip": [B]}
    assert vote(loud) == (B, A)


def test_ties_go_to_what_was_predicted_more_often_then_to_what_came_first() -> None:
    assert vote({"x": [A, B, B], "y": [B, A, C]}) == (B, A)
    assert vote({"x": [C], "y": [A]}) == (C, A)


def test_answers_that_are_no_grids_vote_for_nothing() -> None:
    assert vote({"x": [None, None], "y": [A]}) == (A,)
    assert vote({"x": [None]}) == ()
    assert vote({}) == ()


def test_a_view_sends_on_its_three_most_frequent() -> None:
    many: dict[str, list[Grid | None]] = {"x": [A, A, B, B, C, C, ((4,),)], "y": [((4,),)]}
    assert vote(many, attempts=9).index(((4,),)) == 3


@given(st.dictionaries(st.text(max_size=3), st.lists(st.one_of(st.none(), grids(3)), max_size=5), max_size=4))
def test_attempts_are_different_predictions(predictions: dict[str, list[Grid | None]]) -> None:
    attempts = vote(predictions)
    assert len(set(attempts)) == len(attempts) <= 2
    everything = {grid for answers in predictions.values() for grid in answers if grid is not None}
    assert set(attempts) <= everything
    assert len(attempts) == min(2, len(everything))


@given(grids())
def test_gold_is_right_in_every_cell(gold: Grid) -> None:
    assert cell_accuracy(gold, gold) == 1.0
    assert is_solved((gold,), gold)
    assert not is_solved((), gold)
    assert cell_accuracy(None, gold) == 0.0
    assert cell_accuracy((*gold, gold[0]), gold) == 0.0


def test_cell_accuracy_is_a_share() -> None:
    assert cell_accuracy(((1, 2), (3, 4)), ((1, 2), (3, 0))) == 0.75
