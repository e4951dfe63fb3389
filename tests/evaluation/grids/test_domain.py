"""Grid tasks as a domain."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.common.errors import InputError
from evaluation.domains import GRIDS, domain_of, load_split
from evaluation.grids.augmentations import AugmentationSpec, build_examples
from evaluation.grids.domain import VIEWS, ArcData, as_task, load_arc
from evaluation.grids.grids import Grid, write_grid, write_pairs
from evaluation.microgrids.world import MicrogridsData
from evaluation.tasks import Line
from teacher.self_edit import Implication, SelfEdit, TrainingSpec
from tests.evaluation.grids.factories import grids, mirror_task


def test_document_shows_demonstrations_alone_and_questions_ask_for_tests() -> None:
    task = as_task(mirror_task(((1, 2),), ((3, 4),), family="mirror"))
    assert task.document.text == write_pairs(mirror_task(((9,),)).demonstrations)
    assert GRIDS.render(task) == task.document
    assert (task.document.entities, task.group) == (("family mirror",), "mirror")
    assert domain_of(task) is GRIDS
    assert [q.answer for q in task.questions] == ["21", "43"]
    assert task.questions == task.comparison_questions
    assert task.questions[0].question.startswith(task.document.text)


def test_rewards_and_comparisons_ask_for_different_tests_where_wanted() -> None:
    task = as_task(mirror_task(((1, 2),), ((3, 4),), ((5, 6),)), rewarded=1)
    assert ([q.answer for q in task.questions], [q.answer for q in task.held_out_questions]) == (["21"], ["43", "65"])


def test_specification_is_expanded_to_examples_and_lines_alone_stay() -> None:
    grid_task = mirror_task(((1, 2),))
    task, spec = as_task(grid_task), AugmentationSpec(orientations="flip", colourings=1)
    examples = build_examples(grid_task.demonstrations, spec, 5)
    line = Implication(text=task.document.text)
    found = GRIDS.expand(task, SelfEdit(augmentations=spec, implications=(line,)), 5)
    assert found.lines[:-1] == examples.lines
    assert found.lines[-1].text == line.text
    hyperparameters = GRIDS.expand(task, SelfEdit(training=TrainingSpec(epochs=2)), 5)
    assert hyperparameters.lines == build_examples(grid_task.demonstrations, AugmentationSpec(), 5).lines
    (bare,) = GRIDS.expand(task, SelfEdit(implications=(line,)), 5).lines
    assert bare == Line(task.document.text, None, bare.outputs)
    assert [task.document.text[slice(*span)] for span in bare.outputs] == ["21\n43", "65\n87"]


def test_examples_that_are_left_out_are_noted() -> None:
    many = SelfEdit(augmentations=AugmentationSpec(orientations="all", colourings=16, leave_out=2))
    found = GRIDS.expand(as_task(mirror_task(((1,),))), many, 1)
    assert found.note.startswith("examples left out: ")
    assert found.note.endswith("beyond 250")
    data = MicrogridsData()
    assert GRIDS.count_lines(data, many.augmentations) == 250
    assert GRIDS.count_lines(data, None) == 4


@given(st.lists(grids(4), min_size=1, max_size=3))
def test_right_answers_to_all_views_are_solved_and_wrong_ones_are_not(tests: list[Grid]) -> None:
    questions = as_task(mirror_task(*tests), tuple(VIEWS)).held_out_questions
    right = [question.answer for question in questions]
    assert GRIDS.grade(questions, right) == (True,) * (8 * len(tests))
    assert not any(GRIDS.grade(questions, ["no grid"] * len(right)))


def test_views_outvote_one_another_and_two_attempts_are_submitted() -> None:
    """Under three views the same wrong output, under two the right one: both are submitted, and it is solved."""
    views = ("as-it-is", "mirror", "turn-90", "turn-180", "mirror-turn-90")
    questions = as_task(mirror_task(((1, 2, 3),)), views).held_out_questions
    wrong: Grid = ((9, 9, 9),)
    answers = [write_grid(VIEWS[q.phrasing].apply(wrong)) if i < 3 else q.answer for i, q in enumerate(questions)]
    assert GRIDS.grade(questions, answers) == (True,) * 5
    other: Grid = ((8, 8, 8),)
    split = [write_grid(VIEWS[q.phrasing].apply([wrong, other][i % 2])) for i, q in enumerate(questions)]
    split[4] = questions[4].answer
    assert GRIDS.grade(questions, split) == (False,) * 5


def test_answers_keep_all_their_lines() -> None:
    assert GRIDS.answer_in("\n12\n34\n\nInput:\n") == "12\n34\n\nInput:"


@pytest.mark.parametrize(
    ("settings", "grader", "baselines", "part"),
    [
        ({"views": ("as-it-is", "mirror")}, None, set(), "only the grader domain votes"),
        ({}, "exact", {"oracle", "null_edit"}, r"got \['oracle'\].*other_document"),
    ],
)
def test_runs_that_make_no_sense_are_refused(
    settings: dict[str, Any], grader: str | None, baselines: set[str], part: str
) -> None:
    GRIDS.check(MicrogridsData(**settings), "domain", {"null_edit", "specs"})
    with pytest.raises(ValueError, match=part):
        GRIDS.check(MicrogridsData(**settings), grader, baselines)


def test_tasks_without_solutions_are_refused(tmp_path: Path) -> None:
    tasks = {f"t{n}": {"train": [PAIR], "test": [{"input": [[1]]}]} for n in range(6)}
    path = write(tmp_path / "tasks.json", tasks)
    with pytest.raises(InputError, match=r"6 of 6 tasks are not known.*in place of `challenges`"):
        load_split(ArcData(path=path, development_documents=1, test_documents=2))


PAIR = {"input": [[1, 0]], "output": [[0, 1]]}


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def refusal(path: Path, solutions: Path | None = None) -> str:
    with pytest.raises(InputError) as caught:
        load_arc(path, solutions)
    return str(caught.value)


def test_real_training_tasks_load_with_their_solutions(shared_data: Callable[..., Path]) -> None:
    """400 tasks with 416 test inputs, and the 12 with 13 that SEAL filtered for a model of a billion parameters."""
    for part, tasks, tests in (("", 400, 416), ("_filtered_1B_training_set", 12, 13)):
        names = [f"arc-agi_training_{kind}{part}.json.gz" for kind in ("challenges", "solutions")]
        found = load_arc(*(shared_data("arc", name) for name in names))
        assert len(found) == tasks
        assert sum(len(task.tests) for task in found) == tests
        assert all(test.output is not None for task in found for test in task.tests)
        assert len({(task.demonstrations, task.tests) for task in found}) == tasks


def test_challenges_without_solutions_can_be_answered_and_not_scored(tmp_path: Path) -> None:
    challenges = {"a": {"train": [PAIR], "test": [{"input": [[2, 0]]}, {"input": [[3, 0]]}]}}
    path = write(tmp_path / "c.json", challenges)
    (task,) = load_arc(path)
    assert (task.id, [test.output for test in task.tests]) == ("a", [None, None])
    (solved,) = load_arc(path, write(tmp_path / "s.json", {"a": [[[0, 2]], [[0, 3]]]}))
    assert [test.output for test in solved.tests] == [((0, 2),), ((0, 3),)]


def test_single_tasks_as_a_file_and_as_a_directory(tmp_path: Path) -> None:
    one = {"train": [PAIR], "test": [PAIR], "name": "ignored"}
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(json.dumps(one).encode()))
    write(tmp_path / "a.json", one)
    (task,) = load_arc(tmp_path / "b.json.gz")
    assert task.id == "b"
    assert task.tests[0].output == ((0, 1),)
    assert [task.id for task in load_arc(tmp_path)] == ["a", "b"]


def test_all_mistakes_are_listed_with_their_places(tmp_path: Path) -> None:
    bad = {
        "ragged": {"train": [{"input": [[1, 2], [3]], "output": [[1]]}], "test": [PAIR]},
        "colours": {"train": [{"input": [[1, 10, -1]], "output": [[1]]}], "test": [PAIR]},
        "large": {"train": [{"input": [[1] * 31], "output": [[]]}], "test": [PAIR]},
        "text": {"train": [{"input": [["1"]], "output": [[True]]}], "test": [PAIR]},
        "untold": {"train": [{"input": [[1]]}], "test": []},
        "good": {"train": [PAIR], "test": [PAIR]},
    }
    message = refusal(write(tmp_path / "c.json", bad))
    for part in (
        "ragged: train[0].input",
        "rows of 1, 2 cells",
        "the colours -1, 10",
        "1 x 31 cells",
        "1 x 0 cells",
        "text: train[0]",
        "untold: train[0]",
        "output is missing; test must have",
        "nothing was loaded",
    ):
        assert part in message, message
    assert "good" not in message


def test_bad_files_of_a_directory_are_all_named(tmp_path: Path) -> None:
    write(tmp_path / "a.json", {"train": [PAIR], "test": [PAIR]})
    write(tmp_path / "b.json", {"train": [], "test": [PAIR]})
    (tmp_path / "c.json").write_text("{", encoding="utf-8")
    message = refusal(tmp_path)
    assert ": b: train" in message
    assert "c.json" in message
    assert "a.json" not in message


@pytest.mark.parametrize(
    ("solutions", "part"),
    [
        ({}, "a: got 0 outputs for 1 test inputs"),
        ({"a": [[[1]], [[2]]]}, "a: got 2 outputs for 1 test inputs"),
        ({"a": [[[1]]], "b": [[[1]]]}, "b: got 1 outputs for 0 test inputs"),
        ({"a": [[[1], [2, 3]]]}, "rows of 1, 2 cells"),
        ({"a": [[[9]]]}, "a: contradicts the outputs in the challenge"),
    ],
)
def test_solutions_that_do_not_fit_are_refused(tmp_path: Path, solutions: Any, part: str) -> None:
    challenges = write(tmp_path / "c.json", {"a": {"train": [PAIR], "test": [PAIR]}})
    assert part in refusal(challenges, write(tmp_path / "s.json", solutions))


def test_places_without_tasks_are_refused(tmp_path: Path) -> None:
    assert "holds no task" in refusal(tmp_path)
    assert "holds no task" in refusal(write(tmp_path / "c.json", {}))
    assert "top level" in refusal(write(tmp_path / "l.json", [1]))
