"""Training data of grid tasks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.grids.tasks import Grid, GridPair, GridTask, GridTest
from evaluation.grids.text import read_grid, write_grid, write_query
from evaluation.loaders.arc import load_arc
from student.augmentations import (
    CHAINS,
    CHOSEN,
    MOST_EXAMPLES,
    REPEATS,
    SIZES,
    basic,
    build_examples,
    leave_out,
    most_examples,
    transformations_of,
)
from teacher.self_edit import AugmentationSpec
from tests.evaluation.grids.strategies import grids

FLAGS = ("use_basic_augmentations", "use_size_augmentations", "use_chain_augmentations", "use_repeat_augmentations")
SPECS = st.builds(
    AugmentationSpec,
    **{name: st.booleans() for name in (*FLAGS, "keep_background", "permute_demonstrations")},
    orientations=st.sampled_from(sorted(CHOSEN)),
    leave_out=st.integers(1, 2),
    colourings=st.integers(0, 3),
)
TASKS = st.lists(st.builds(GridPair, input=grids(4), output=grids(4)), min_size=1, max_size=4).map(
    lambda pairs: GridTask(id="t", demonstrations=tuple(pairs), tests=(GridTest(input=((9, 8, 7, 6, 5),)),))
)


def pair(one: int, other: int) -> GridPair:
    return GridPair(input=((one, 0),), output=((other, 0),))


@settings(max_examples=40, deadline=None)
@given(TASKS, SPECS, st.integers(0, 2**32))
def test_examples_are_distinct_seeded_and_never_show_a_test(task: GridTask, spec: AugmentationSpec, seed: int) -> None:
    found = build_examples(task, spec, seed)
    assert found == build_examples(task, spec, seed)
    assert len(set(found.lines)) == len(found.lines) <= 250
    secret = write_grid(task.tests[0].input)
    assert all(secret not in line.text for line in found.lines)
    assert all(read_grid(line.answer or "") is not None for line in found.lines)


@settings(max_examples=40, deadline=None)
@given(TASKS, SPECS, st.integers(1, 5))
def test_cap_leaves_out_at_random_and_counts(task: GridTask, spec: AugmentationSpec, most: int) -> None:
    whole, capped = build_examples(task, spec, 1), build_examples(task, spec, 1, most=most)
    assert len(capped.lines) == min(most, len(whole.lines) + whole.left_out)
    assert capped.left_out == max(len(whole.lines) + whole.left_out - most, 0)


def test_each_demonstration_is_asked_for_once_and_the_others_are_shown() -> None:
    demonstrations = (pair(1, 2), pair(3, 4), pair(5, 6))
    found = list(leave_out(demonstrations, 1))
    assert [example.asked for example in found] == list(demonstrations)
    assert all(set(example.shown) == set(demonstrations) - {example.asked} for example in found)
    assert len(list(leave_out(demonstrations, 2))) == 3 + 3 * 2
    assert len(list(leave_out(demonstrations[:2], 2))) == 2, "nothing would be shown"
    assert [example.shown for example in leave_out(demonstrations[:1], 2)] == [()]


def test_lines_are_worded_as_the_student_is_asked() -> None:
    task = GridTask(id="t", demonstrations=(pair(1, 2), pair(3, 4)), tests=(GridTest(input=((5, 0),)),))
    first = build_examples(task, None, 0).lines[0]
    assert first.text == write_query([pair(3, 4)], ((1, 0),))
    assert first.answer == "20"


def test_rule_that_commutes_with_the_chosen_orientation_is_still_the_rule() -> None:
    """Mirroring left to right commutes with turning upside down and with itself, and every example shows it."""

    def mirrored(grid: Grid) -> Grid:
        return tuple(row[::-1] for row in grid)

    inputs: list[Grid] = [((1, 2), (3, 4)), ((5, 0), (0, 6)), ((7, 8), (9, 1))]
    pairs = tuple(GridPair(input=grid, output=mirrored(grid)) for grid in inputs)
    task = GridTask(id="t", demonstrations=pairs, tests=(GridTest(input=((1,),)),))
    for orientations, keeps in (("mirror", True), ("flip", True), ("transpose", False)):
        spec = AugmentationSpec(orientations=orientations, colourings=1)
        asked = [line.text.rsplit("Input:", 1)[1].split("Output:")[0] for line in build_examples(task, spec, 3).lines]
        answers = [line.answer or "" for line in build_examples(task, spec, 3).lines]
        held = [
            write_grid(mirrored(read_grid(question) or ())) == answer
            for question, answer in zip(asked, answers, strict=True)
        ]
        assert all(held) is keeps


def test_background_stays_unless_the_specification_gives_it_up() -> None:
    task = GridTask(id="t", demonstrations=(pair(1, 2), pair(3, 4)), tests=(GridTest(input=((5, 0),)),))
    for seed in range(20):
        lines = build_examples(task, AugmentationSpec(colourings=1), seed).lines
        assert all((line.answer or "")[1] == "0" for line in lines)
    free = AugmentationSpec(colourings=1, keep_background=False)
    assert any((line.answer or "")[1] != "0" for seed in range(20) for line in build_examples(task, free, seed).lines)


def test_seals_sets_have_as_many_transformations_as_its_code() -> None:
    """11 basic, 3 of size, 6 chains, 3 repeats in SEAL's published few-shot code."""
    import random

    assert (len(basic(random.Random(0))), len(SIZES), len(CHAINS), len(REPEATS)) == (11, 3, 6, 3)
    everything = AugmentationSpec(**dict.fromkeys(FLAGS, True))
    assert len(transformations_of(everything, random.Random(0))) == 1 + 11 + 3 + 6 + 3
    assert len(transformations_of(AugmentationSpec(orientations="all"), random.Random(0))) == 8


def test_grids_that_grow_too_large_are_counted() -> None:
    wide = GridPair(input=((1,) * 16,), output=((2,) * 16,))
    task = GridTask(id="t", demonstrations=(wide, wide), tests=(GridTest(input=((1,),)),))
    found = build_examples(task, AugmentationSpec(use_size_augmentations=True), 0)
    assert found.too_large == 2 * 2  # twice as wide, in two of three enlargements, each of two examples
    assert {len(line.answer or "") for line in found.lines} == {16, 16 * 2 + 1}


def test_every_real_task_makes_examples(shared_data: Callable[..., Path]) -> None:
    for task in load_arc(shared_data("arc", "arc-agi_training_challenges.json.gz")):
        assert len(build_examples(task, None, 0).lines) == len({(p.input, p.output) for p in task.demonstrations})


@pytest.mark.parametrize("flags", [dict.fromkeys(FLAGS, True), {"orientations": "all", "leave_out": 2}])
def test_some_real_tasks_under_many_transformations(shared_data: Callable[..., Path], flags: dict[str, object]) -> None:
    spec = AugmentationSpec.model_validate(flags)
    for task in load_arc(shared_data("arc", "arc-agi_training_challenges.json.gz"))[::40]:
        assert len(task.demonstrations) < len(build_examples(task, spec, 0).lines) <= 250


@settings(max_examples=40, deadline=None)
@given(TASKS, SPECS, st.integers(0, 2**32))
def test_most_examples_is_a_bound(task: GridTask, spec: AugmentationSpec, seed: int) -> None:
    assert len(build_examples(task, spec, seed).lines) <= most_examples(spec, len(task.demonstrations))


def test_most_examples_counts_views_times_colourings() -> None:
    assert most_examples(AugmentationSpec(), 4) == 4
    assert most_examples(AugmentationSpec(orientations="mirror", colourings=8), 4) == 4 * 2 * 9
    assert most_examples(AugmentationSpec(orientations="all", colourings=8), 4) == MOST_EXAMPLES
    assert most_examples(AugmentationSpec(leave_out=2), 4) == 16
