"""Grids, their text, votes and cells."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from evaluation.grids.grids import (
    COLOURS,
    FLIP,
    IDENTITY,
    MIRROR,
    ORIENTATIONS,
    TRANSPOSE,
    TURNS,
    Grid,
    GridPair,
    Orientation,
    Transformation,
    chain,
    enlargement,
    output_spans,
    random_recolouring,
    random_shift,
    read_grid,
    read_pairs,
    shift,
    tiling,
    vote,
    write_grid,
    write_pairs,
    write_query,
)
from tests.evaluation.grids.factories import TRANSFORMATIONS, grids

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


CORNER: Grid = ((1, 2), (3, 4))


@given(st.sampled_from(ORIENTATIONS), grids())
def test_orientations_are_undone(orientation: Orientation, grid: Grid) -> None:
    assert orientation.undo(orientation.apply(grid)) == grid


@given(TRANSFORMATIONS, TRANSFORMATIONS, grids())
def test_equal_names_do_the_same(one: Transformation, other: Transformation, grid: Grid) -> None:
    if one.name == other.name:
        assert one.apply(grid) == other.apply(grid)


def test_orientations_do_what_they_are_called_and_are_a_group() -> None:
    assert MIRROR.apply(CORNER) == ((2, 1), (4, 3))
    assert FLIP.apply(CORNER) == ((3, 4), (1, 2))
    assert TRANSPOSE.apply(CORNER) == ((1, 3), (2, 4))
    assert TURNS[0].apply(CORNER) == ((2, 4), (1, 3))
    assert IDENTITY.apply(CORNER) == CORNER
    assert [t.name for t in (IDENTITY, MIRROR, TURNS[1], TRANSPOSE)] == [
        "as-it-is", "mirror", "turn-180", "mirror-turn-90",
    ]  # fmt: skip
    images = {orientation.apply(CORNER) for orientation in ORIENTATIONS}
    assert len(images) == 8
    assert {chain(a, b).apply(CORNER) for a in ORIENTATIONS for b in ORIENTATIONS} == images


@given(grids(), st.integers(0, 2**32), st.sets(st.integers(0, COLOURS - 1)))
def test_recolouring_permutes_and_never_touches_what_is_kept(grid: Grid, seed: int, keep: set[int]) -> None:
    change = random_recolouring(random.Random(seed), keep=keep)
    assert sorted(change.apply((tuple(range(COLOURS)),))[0]) == list(range(COLOURS))
    for row, new in zip(grid, change.apply(grid), strict=True):
        for cell, other in zip(row, new, strict=True):
            assert (cell in keep) == (other in keep)
            assert cell not in keep or cell == other


@given(grids(), st.integers(-9, 9), st.integers(-9, 9))
def test_shifting_there_and_back_changes_nothing(grid: Grid, rows: int, columns: int) -> None:
    assert chain(shift(rows, columns), shift(-rows, -columns)).apply(grid) == grid


def test_shifting_enlarging_and_tiling() -> None:
    assert shift(1, 0).apply(CORNER) == ((3, 4), (1, 2))
    assert enlargement(1, 2).apply(CORNER) == ((1, 1, 2, 2), (3, 3, 4, 4))
    assert tiling(2, 1).apply(CORNER) == (*CORNER, *CORNER)
    assert tiling(1, 2, mirrored=True).apply(CORNER) == ((1, 2, 2, 1), (3, 4, 4, 3))
    assert tiling(2, 2, mirrored=True).apply(((1, 2),)) == ((1, 2, 2, 1), (1, 2, 2, 1))
    assert tiling(2, 1, mirrored=True).apply(CORNER) == (*CORNER, (3, 4), (1, 2))


def test_random_choices_follow_the_seed() -> None:
    made = [(random_recolouring(random.Random(3)), random_shift(random.Random(3))) for _ in range(2)]
    assert made[0] == made[1]
