"""Transformations undo themselves, whatever the grid."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.grids.tasks import COLOURS, Grid
from evaluation.grids.transformations import (
    AS_IT_IS,
    FLIP,
    MIRROR,
    ORIENTATIONS,
    TRANSPOSE,
    TURNS,
    Chain,
    Enlargement,
    Recolouring,
    Shift,
    Tiling,
    Transformation,
    distinct,
    random_recolouring,
    random_shift,
)
from evaluation.loaders.arc import load_arc
from tests.evaluation.grids.strategies import TRANSFORMATIONS, grids

CORNER: Grid = ((1, 2), (3, 4))


@given(TRANSFORMATIONS, grids())
def test_undoing_what_was_applied_gives_the_grid_back(transformation: Transformation, grid: Grid) -> None:
    assert transformation.undo(transformation.apply(grid)) == grid


@given(TRANSFORMATIONS, TRANSFORMATIONS, grids())
def test_equal_names_do_the_same(one: Transformation, other: Transformation, grid: Grid) -> None:
    if one.name == other.name:
        assert one.apply(grid) == other.apply(grid)


def test_named_orientations_do_what_they_are_called() -> None:
    assert MIRROR.apply(CORNER) == ((2, 1), (4, 3))
    assert FLIP.apply(CORNER) == ((3, 4), (1, 2))
    assert TRANSPOSE.apply(CORNER) == ((1, 3), (2, 4))
    assert TURNS[0].apply(CORNER) == ((2, 4), (1, 3))
    assert AS_IT_IS.apply(CORNER) == CORNER
    assert [t.name for t in (AS_IT_IS, MIRROR, TURNS[1])] == ["as-it-is", "mirror", "turn-180"]


def test_the_eight_orientations_are_a_group() -> None:
    images = {orientation.apply(CORNER) for orientation in ORIENTATIONS}
    assert len(images) == 8
    assert {Chain((a, b)).apply(CORNER) for a in ORIENTATIONS for b in ORIENTATIONS} == images


@given(grids(), st.integers(0, 2**32), st.sets(st.integers(0, COLOURS - 1)))
def test_recolouring_never_touches_what_is_to_be_kept(grid: Grid, seed: int, keep: set[int]) -> None:
    recoloured = random_recolouring(random.Random(seed), keep=keep).apply(grid)
    for row, new in zip(grid, recoloured, strict=True):
        for cell, other in zip(row, new, strict=True):
            assert (cell in keep) == (other in keep)
            assert cell not in keep or cell == other


def test_recolouring_that_loses_a_colour_is_refused() -> None:
    with pytest.raises(ValueError, match="each colour from 0 to 9 once"):
        Recolouring((0, 0, 2, 3, 4, 5, 6, 7, 8, 9))


def test_enlarging_and_tiling() -> None:
    assert Enlargement(1, 2).apply(CORNER) == ((1, 1, 2, 2), (3, 3, 4, 4))
    assert Tiling(2, 1).apply(CORNER) == (*CORNER, *CORNER)
    assert Tiling(1, 2, mirrored=True).apply(CORNER) == ((1, 2, 2, 1), (3, 4, 4, 3))
    for transformation in (Enlargement(2, 1), Tiling(2, 1)):
        with pytest.raises(ValueError, match="makes no grid of 3 x 1 cells"):
            transformation.undo(((1,), (2,), (3,)))


def test_random_choices_follow_the_seed() -> None:
    made = [(random_recolouring(random.Random(3)), random_shift(random.Random(3))) for _ in range(2)]
    assert made[0] == made[1]
    assert 0 <= made[0][1].rows <= 5


def test_distinct_keeps_the_first_of_each_name() -> None:
    found = distinct([TRANSPOSE, AS_IT_IS, TRANSPOSE, Shift(0, 1), Chain((AS_IT_IS,))])
    assert [t.name for t in found] == ["mirror-turn-90", "as-it-is", "shift-0-1"]


def test_every_real_task_goes_there_and_back(shared_data: Callable[..., Path]) -> None:
    """All 400 training tasks of ARC-AGI-1: every grid under every kind of transformation."""
    rng = random.Random(0)
    kinds: list[Transformation] = [
        *ORIENTATIONS,
        random_shift(rng),
        random_recolouring(rng),
        Enlargement(2, 2),
        Tiling(2, 2, mirrored=True),
        Chain((TRANSPOSE, random_recolouring(rng), Shift(1, 1))),
    ]
    tasks = load_arc(shared_data("arc", "arc-agi_training_challenges.json.gz"))
    seen = 0
    for task in tasks:
        for grid in (task.demonstrations[0].input, task.demonstrations[0].output, task.tests[0].input):
            for kind in kinds:
                assert kind.undo(kind.apply(grid)) == grid
                seen += 1
    assert seen == 400 * 3 * len(kinds)
