"""Training data of grid tasks."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.grids.augmentations import (
    CHAINS,
    CHOSEN,
    MOST_EXAMPLES,
    REPEATS,
    SIZES,
    AugmentationSpec,
    basic,
    build_examples,
    leave_out,
    most_examples,
    transformations_of,
)
from evaluation.grids.domain import load_arc
from evaluation.grids.grids import MIRROR, Grid, GridPair, output_spans, read_grid, write_grid, write_query
from tests.evaluation.grids.factories import grids

FLAGS = ("use_basic_augmentations", "use_size_augmentations", "use_chain_augmentations", "use_repeat_augmentations")
SPECS = st.builds(
    AugmentationSpec,
    **{name: st.booleans() for name in (*FLAGS, "keep_background", "permute_demonstrations")},
    orientations=st.sampled_from(sorted(CHOSEN)),
    leave_out=st.integers(1, 2),
    colourings=st.integers(0, 3),
)
PAIRS = st.lists(st.builds(GridPair, input=grids(4), output=grids(4)), min_size=1, max_size=4)


def pair(one: int, other: int) -> GridPair:
    return GridPair(input=((one, 0),), output=((other, 0),))


@settings(max_examples=60, deadline=None)
@given(PAIRS, SPECS, st.integers(0, 2**32))
def test_examples_are_distinct_seeded_bounded_and_gridlike(
    pairs: list[GridPair], spec: AugmentationSpec, seed: int
) -> None:
    found = build_examples(pairs, spec, seed)
    assert found == build_examples(pairs, spec, seed)
    assert len(set(found.lines)) == len(found.lines) <= most_examples(spec, len(pairs)) <= MOST_EXAMPLES
    assert all(read_grid(line.answer or "") is not None for line in found.lines)
    assert all(line.outputs == output_spans(line.text) for line in found.lines)


def test_cap_leaves_out_at_random_and_counts() -> None:
    pairs = [pair(n, n + 1) for n in range(1, 6)]
    spec = AugmentationSpec(orientations="all", colourings=16, leave_out=2)
    one, other = (build_examples(pairs, spec, seed) for seed in (0, 1))
    assert len(one.lines) == len(other.lines) == MOST_EXAMPLES
    assert re.fullmatch(r"examples left out: \d{4} beyond 250", one.note)
    assert one.lines != other.lines


def test_each_demonstration_is_asked_for_once_and_the_others_are_shown() -> None:
    demonstrations = (pair(1, 2), pair(3, 4), pair(5, 6))
    found = list(leave_out(demonstrations, 1))
    assert [example.asked for example in found] == list(demonstrations)
    assert all(set(example.shown) == set(demonstrations) - {example.asked} for example in found)
    assert len(list(leave_out(demonstrations, 2))) == 3 + 3 * 2
    assert len(list(leave_out(demonstrations[:2], 2))) == 2, "nothing would be shown"
    assert [example.shown for example in leave_out(demonstrations[:1], 2)] == [()]


def test_lines_are_worded_as_the_student_is_asked() -> None:
    first = build_examples([pair(1, 2), pair(3, 4)], AugmentationSpec(), 0).lines[0]
    assert first.text == write_query([pair(3, 4)], ((1, 0),))
    assert first.answer == "20"


def test_rule_that_commutes_with_the_chosen_orientation_is_still_the_rule() -> None:
    """Mirroring left to right commutes with turning upside down and with itself, and every example shows it."""
    inputs: list[Grid] = [((1, 2), (3, 4)), ((5, 0), (0, 6)), ((7, 8), (9, 1))]
    pairs = [GridPair(input=grid, output=MIRROR.apply(grid)) for grid in inputs]
    for orientations, keeps in (("mirror", True), ("flip", True), ("transpose", False)):
        lines = build_examples(pairs, AugmentationSpec(orientations=orientations, colourings=1), 3).lines
        asked = [line.text.rsplit("Input:", 1)[1].split("Output:")[0] for line in lines]
        held = [
            write_grid(MIRROR.apply(read_grid(question) or ())) == line.answer
            for question, line in zip(asked, lines, strict=True)
        ]
        assert all(held) is keeps


def test_background_stays_unless_the_specification_gives_it_up() -> None:
    pairs = [pair(1, 2), pair(3, 4)]

    def answers(spec: AugmentationSpec) -> set[str]:
        return {(line.answer or "")[1] for seed in range(20) for line in build_examples(pairs, spec, seed).lines}

    assert answers(AugmentationSpec(colourings=1)) == {"0"}
    assert len(answers(AugmentationSpec(colourings=1, keep_background=False))) > 1


def test_seals_sets_have_as_many_transformations_as_its_code() -> None:
    """11 basic, 3 of size, 6 chains, 3 repeats in SEAL's published few-shot code."""
    assert (len(basic(random.Random(0))), len(SIZES), len(CHAINS), len(REPEATS)) == (11, 3, 6, 3)
    everything = AugmentationSpec(**dict.fromkeys(FLAGS, True))
    assert len(transformations_of(everything, random.Random(0))) == 1 + 11 + 3 + 6 + 3
    both = AugmentationSpec(orientations="all", use_basic_augmentations=True)
    assert len(transformations_of(both, random.Random(0))) == 8 + 11 - 6, (
        "three turns and three reflections are in both"
    )


def test_grids_that_grow_too_large_are_counted() -> None:
    wide = GridPair(input=((1,) * 16,), output=((2,) * 16,))
    found = build_examples([wide, wide], AugmentationSpec(use_size_augmentations=True), 0)
    # Twice as wide in two of three enlargements, each of two examples.
    assert found.note == "examples left out: 4 with a grid above the largest size"
    assert {len(line.answer or "") for line in found.lines} == {16, 16 * 2 + 1}


@pytest.mark.parametrize(
    "flags", [{}, dict.fromkeys(FLAGS, True), {"orientations": "all", "leave_out": 2}], ids=["plain", "SEAL", "all"]
)
def test_real_tasks_make_examples(shared_data: Callable[..., Path], flags: dict[str, object]) -> None:
    spec = AugmentationSpec.model_validate(flags)
    for task in load_arc(shared_data("arc", "arc-agi_training_challenges.json.gz"))[:: 40 if flags else 1]:
        found = len(build_examples(task.demonstrations, spec, 0).lines)
        if flags:
            assert len(task.demonstrations) < found <= MOST_EXAMPLES
        else:
            assert found == len({(p.input, p.output) for p in task.demonstrations})


def test_most_examples_counts_views_times_colourings() -> None:
    assert most_examples(AugmentationSpec(), 4) == 4
    assert most_examples(AugmentationSpec(orientations="mirror", colourings=8), 4) == 4 * 2 * 9
    assert most_examples(AugmentationSpec(orientations="all", colourings=8), 4) == MOST_EXAMPLES
    assert most_examples(AugmentationSpec(leave_out=2), 4) == 16
