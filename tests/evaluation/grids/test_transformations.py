"""Transformations of grids."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from evaluation.grids.grids import COLOURS, Grid
from evaluation.grids.transformations import (
    AS_IT_IS,
    FLIP,
    MIRROR,
    ORIENTATIONS,
    TRANSPOSE,
    TURNS,
    Orientation,
    Transformation,
    chain,
    enlargement,
    random_recolouring,
    random_shift,
    shift,
    tiling,
)
from tests.evaluation.grids.factories import TRANSFORMATIONS, grids

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
    assert AS_IT_IS.apply(CORNER) == CORNER
    assert [t.name for t in (AS_IT_IS, MIRROR, TURNS[1], TRANSPOSE)] == [
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
