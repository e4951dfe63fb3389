"""The micro-grids: rules do what they are called and conflict as they are meant to, and tasks can be solved."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.grids.grids import COLOURS, ORIENTATIONS, Grid, Transformation, random_recolouring
from evaluation.microgrids import world
from evaluation.tasks import specifications
from teacher.parsing.parser import parse_self_edit
from teacher.self_edit import edit_of

GRID: Grid = ((1, 0, 2), (0, 3, 0), (4, 0, 5))
SAMPLE = [world.draw_grid(random.Random(n), 0.4) for n in range(40)]
ALL = tuple(orientation.name for orientation in ORIENTATIONS)


def keeps(rule: world.Rule, transformation: Transformation) -> bool:
    """Return whether a rule stays the same under a transformation of inputs and outputs."""
    return all(transformation.apply(rule.apply(grid)) == rule.apply(transformation.apply(grid)) for grid in SAMPLE)


@pytest.mark.parametrize(
    ("family", "output"),
    [
        ("turn-180", ((5, 0, 4), (0, 3, 0), (2, 0, 1))),
        ("flip", ((4, 0, 5), (0, 3, 0), (1, 0, 2))),
        ("shift-right", ((2, 1, 0), (0, 0, 3), (5, 4, 0))),
        ("shift-up", ((0, 3, 0), (4, 0, 5), (1, 0, 2))),
        ("copy-left", ((1, 0, 1), (0, 3, 0), (4, 0, 4))),
        ("copy-right", ((2, 0, 2), (0, 3, 0), (5, 0, 5))),
        ("copy-top", ((1, 0, 2), (0, 3, 0), (1, 0, 2))),
        ("copy-bottom", ((4, 0, 5), (0, 3, 0), (4, 0, 5))),
        ("fall-down", ((0, 0, 0), (1, 0, 2), (4, 3, 5))),
        ("fall-up", ((1, 3, 2), (4, 0, 5), (0, 0, 0))),
        ("fall-right", ((0, 1, 2), (0, 0, 3), (0, 4, 5))),
        ("fall-left", ((1, 2, 0), (3, 0, 0), (4, 5, 0))),
    ],
)
def test_rules_do_what_they_are_called(family: str, output: Grid) -> None:
    assert world.draw_rule(random.Random(0), family).apply(GRID) == output


@pytest.mark.parametrize("family", sorted(world.FAMILIES))
@given(st.integers(0, 2**32))
@settings(max_examples=10)
def test_rules_keep_shape_and_colours_and_follow_their_parameters(family: str, seed: int) -> None:
    rule = world.draw_rule(random.Random(seed), family)
    for grid in SAMPLE[:5]:
        made = rule.apply(grid)
        assert [len(row) for row in made] == [world.SIDE] * world.SIDE
        assert {cell for row in made for cell in row} <= set(range(COLOURS))
    assert rule.apply(GRID) == world.draw_rule(random.Random(seed), family).apply(GRID)


@pytest.mark.parametrize(
    ("family", "kept"),
    [
        ("swap", ALL),
        ("repaint", ALL),
        ("cycle", ALL),
        ("fill", ALL),
        ("turn-180", ALL),
        ("turn-90", ("as-it-is", "turn-90", "turn-180", "turn-270")),
        ("copy-left", ("as-it-is", "mirror-turn-180")),
        ("copy-top", ("as-it-is", "mirror")),
        ("fall-up", ("as-it-is", "mirror")),
        ("fall-right", ("as-it-is", "mirror-turn-180")),
        ("shift-down", ("as-it-is", "mirror")),
        ("shift-up", ("as-it-is", "mirror")),
        ("copy-bottom", ("as-it-is", "mirror")),
        ("copy-right", ("as-it-is", "mirror-turn-180")),
        ("turn-270", ("as-it-is", "turn-90", "turn-180", "turn-270")),
        ("swap+mirror", ("as-it-is", "turn-180", "mirror", "mirror-turn-180")),
    ],
)
def test_families_conflict_in_the_orientations_that_keep_them(family: str, kept: tuple[str, ...]) -> None:
    rule = world.draw_rule(random.Random(0), family)
    assert tuple(orientation.name for orientation in ORIENTATIONS if keeps(rule, orientation)) == kept


@pytest.mark.parametrize("family", sorted(world.FAMILIES))
def test_permuting_colours_keeps_a_rule_unless_it_is_about_colours(family: str) -> None:
    rule = world.draw_rule(random.Random(1), family)
    kept = [keeps(rule, random_recolouring(random.Random(n))) for n in range(30)]
    about_colours = any(part in family for part in ("swap", "cycle", "repaint", "fill"))
    # Of the permutations a few keep a colour rule, such as those that leave both swapped colours alone.
    assert sum(kept) <= 10 if about_colours else all(kept)


def test_unseen_families_are_in_no_training() -> None:
    assert not set(world.UNSEEN) & {*world.PRETRAINED, *world.ADAPTED}
    assert {*world.PRETRAINED, *world.ADAPTED, *world.UNSEEN} <= set(world.FAMILIES)


@given(st.sampled_from(sorted({*world.ADAPTED, *world.UNSEEN})), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_tasks_show_what_they_ask_for_and_repeat_no_grid(family: str, seed: int) -> None:
    rng = random.Random(seed)
    rule = world.draw_rule(rng, family)
    task = world.draw_task(rng, rule, "t", demonstrations=4, tests=8, source="")
    inputs = [*(pair.input for pair in task.demonstrations), *(test.input for test in task.tests)]
    assert len(set(inputs)) == 12
    assert all(rule.apply(pair.input) == pair.output for pair in task.demonstrations)
    assert {cell for pair in task.demonstrations for row in pair.input for cell in row} >= set(range(1, COLOURS))
    assert task.family == family


def test_sides_are_seeded_take_families_in_turn_and_share_no_task() -> None:
    train, more = (world.draw_tasks("train", world.ADAPTED, count, 3, tests=4) for count in (12, 24))
    assert more[:12] == train
    assert [task.family for task in train] == list(world.ADAPTED)
    sides = [world.draw_tasks(side, world.ADAPTED, 30, 3, tests=4) for side in ("train", "development", "test")]
    shown = [task.demonstrations for side in sides for task in side]
    assert len(set(shown)) == len(shown)
    assert len({task.id for side in sides for task in side}) == 90


def test_specifications_are_all_different_and_parse_back() -> None:
    choices = list(specifications(world.SPACE))
    assert len(choices) == 72
    assert all(parse_self_edit(json.dumps(choice)).edit == edit_of(choice) for choice in choices)
    assert len({edit_of(choice).digest for choice in choices}) == len(choices)
    assert sum(world.steps_of(choice, 4) <= 72 for choice in choices) == 56


def test_drawn_specifications_are_even_and_within_the_budget() -> None:
    rng = random.Random(0)
    counts = Counter(json.dumps(world.draw_spec(rng, 4, 36)) for _ in range(1500))
    allowed = {json.dumps(choice) for choice in specifications(world.SPACE) if world.steps_of(choice, 4) <= 36}
    assert set(counts) == allowed
    assert min(counts.values()) > 1500 / len(allowed) / 3
