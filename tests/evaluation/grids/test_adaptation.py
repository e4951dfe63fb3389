"""Puzzles as tasks of the loop."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.errors import InputError
from evaluation.grids.adaptation import VIEWS, as_task, cell_accuracies, voted_verdicts
from evaluation.grids.tasks import Grid, GridPair, GridTask, GridTest
from evaluation.grids.text import read_grid, write_grid, write_pairs
from tests.evaluation.grids.strategies import grids


def puzzle(*tests: Grid, family: str = "") -> GridTask:
    """The rule: mirror left to right."""

    def mirrored(grid: Grid) -> Grid:
        return tuple(row[::-1] for row in grid)

    shown = tuple(GridPair(input=g, output=mirrored(g)) for g in (((1, 2), (3, 4)), ((5, 6), (7, 8))))
    return GridTask(
        id="m",
        demonstrations=shown,
        tests=tuple(GridTest(input=grid, output=mirrored(grid)) for grid in tests),
        family=family,
    )


def test_document_shows_demonstrations_alone_and_questions_ask_for_tests() -> None:
    task = as_task(puzzle(((1, 2),), ((3, 4),), family="mirror"))
    assert task.document.text == write_pairs(puzzle(((9,),)).demonstrations)
    assert task.document.entities == ("family mirror",)
    assert [q.answer for q in task.questions] == ["21", "43"]
    assert task.questions == task.comparison_questions
    assert task.questions[0].question.startswith(task.document.text)


def test_rewards_and_comparisons_ask_for_different_tests_where_wanted() -> None:
    task = as_task(puzzle(((1, 2),), ((3, 4),), ((5, 6),)), rewarded=1)
    assert ([q.answer for q in task.questions], [q.answer for q in task.held_out_questions]) == (["21"], ["43", "65"])
    with pytest.raises(InputError, match="got 1 tests, of which 1 are for rewards"):
        as_task(puzzle(((1, 2),)), rewarded=1)


def test_puzzle_without_a_gold_output_is_refused() -> None:
    unknown = GridTask(id="u", demonstrations=puzzle(((1,),)).demonstrations, tests=(GridTest(input=((1,),)),))
    with pytest.raises(InputError, match=r"'u'.*not known.*solutions_path"):
        as_task(unknown)


@given(st.lists(grids(4), min_size=1, max_size=3))
def test_right_answers_to_all_views_are_solved_and_wrong_ones_are_not(tests: list[Grid]) -> None:
    questions = as_task(puzzle(*tests), views=tuple(VIEWS)).held_out_questions
    right = [question.answer for question in questions]
    assert voted_verdicts(questions, right) == [True] * (8 * len(tests))
    assert cell_accuracies(questions, right) == [1.0] * len(right)
    assert voted_verdicts(questions, ["no grid"] * len(right)) == [False] * len(right)


def test_views_outvote_one_another_and_two_attempts_are_handed_in() -> None:
    """Under three views the same wrong output, under two the right one: both are handed in, and it is solved."""
    (test,) = puzzle(((1, 2, 3),)).tests
    views = ("as-it-is", "mirror", "turn-90", "turn-180", "mirror-turn-90")
    questions = as_task(puzzle(test.input), views=views).held_out_questions
    wrong: Grid = ((9, 9, 9),)
    answers = [write_grid(VIEWS[q.phrasing].apply(wrong)) if i < 3 else q.answer for i, q in enumerate(questions)]
    assert voted_verdicts(questions, answers) == [True] * 5
    other: Grid = ((8, 8, 8),)
    split = [write_grid(VIEWS[q.phrasing].apply([wrong, other][i % 2])) for i, q in enumerate(questions)]
    split[4] = questions[4].answer
    assert voted_verdicts(questions, split) == [False] * 5


def test_cells_are_compared_in_the_view_that_was_asked() -> None:
    questions = as_task(puzzle(((1, 2), (3, 4))), views=("turn-90",)).held_out_questions
    gold = read_grid(questions[0].answer)
    assert gold is not None
    nearly = write_grid(((9, *gold[0][1:]), *gold[1:]))
    assert cell_accuracies(questions, [nearly]) == [0.75]
