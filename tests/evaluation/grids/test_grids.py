"""Grids, their text, votes and cells."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from evaluation.grids.grids import (
    Grid,
    GridPair,
    cell_accuracy,
    output_spans,
    read_grid,
    read_pairs,
    vote,
    write_grid,
    write_pairs,
    write_query,
)
from tests.evaluation.grids.factories import grids

PAIRS = st.lists(st.builds(GridPair, input=grids(4), output=grids(4)), min_size=1, max_size=4)
A: Grid = ((1,),)
B: Grid = ((2,),)
C: Grid = ((3,),)


def test_ragged_grids_are_refused() -> None:
    with pytest.raises(ValidationError, match="allowed are rows of equal length"):
        GridPair(input=((1,), (1, 2)), output=((2,),))


@given(grids(30), st.sampled_from(["", "\n", "\n\nInput:\n", "\nno", "\n<end>"]))
def test_written_grids_are_read_whatever_follows(grid: Grid, after: str) -> None:
    text = write_grid(grid)
    assert read_grid(text + after) == grid
    assert read_grid("\n \n" + text.replace("\n", " \n")) == grid


@given(st.text(max_size=60))
def test_reading_never_fails_and_gives_grids_alone(text: str) -> None:
    found = read_grid(text)
    assert found is None or read_grid(write_grid(found)) == found


@pytest.mark.parametrize(
    "text", ["", "\n", "no grid", "12\n3", "1" * 31, "\n".join("1" * 31), "Output:\n12", "-1", "\u0661\u0662"]
)
def test_what_is_no_grid_is_none(text: str) -> None:
    assert read_grid(text) is None


def test_prompt_shows_pairs_and_ends_where_the_output_starts() -> None:
    pair = GridPair(input=((1, 0),), output=((0, 1),))
    assert write_pairs([pair]) == "Input:\n10\nOutput:\n01"
    assert write_query([pair], ((2, 0),)) == "Input:\n10\nOutput:\n01\nInput:\n20\nOutput:\n"
    assert write_query([], ((2, 0),)) == "Input:\n20\nOutput:\n"


@given(PAIRS, grids(4))
def test_pairs_and_the_spans_of_their_outputs_are_found_in_a_text(pairs: list[GridPair], asked: Grid) -> None:
    assert list(read_pairs(write_pairs(pairs))) == pairs
    text = write_query(pairs, asked)
    assert list(read_pairs(text)) == pairs
    assert [text[start:end] for start, end in output_spans(text)] == [write_grid(pair.output) for pair in pairs]


def test_votes_go_by_frequency_then_by_what_came_first() -> None:
    assert vote([A, B, B]) == (B, A)
    assert vote([C, A, B, B, A]) == (A, B)
    assert vote([C, A]) == (C, A)
    assert vote([None, None, A]) == (A,)
    assert vote([None]) == vote([]) == ()


@given(st.lists(st.one_of(st.none(), grids(3)), max_size=8))
def test_attempts_are_different_predictions(predictions: list[Grid | None]) -> None:
    attempts, everything = vote(predictions), {grid for grid in predictions if grid is not None}
    assert set(attempts) <= everything
    assert len(attempts) == len(set(attempts)) == min(2, len(everything))


@given(grids())
def test_cell_accuracy_is_the_share_of_cells_of_the_same_shape(gold: Grid) -> None:
    assert cell_accuracy(gold, gold) == 1.0
    assert cell_accuracy(None, gold) == cell_accuracy((*gold, gold[0]), gold) == 0.0
    assert cell_accuracy(((1, 2), (3, 4)), ((1, 2), (3, 0))) == 0.75
