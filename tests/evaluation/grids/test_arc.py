"""ARC's files in all their forms, and everything that can be wrong with them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evaluation.common.errors import InputError
from evaluation.grids.arc import load_arc

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
    told = refusal(write(tmp_path / "c.json", bad))
    for part in (
        "ragged.train[0]: input",
        "rows of 1, 2 cells",
        "the colours -1, 10",
        "1 x 31 cells",
        "1 x 0 cells",
        "text.train[0]",
        "untold.train[0]",
        "untold: test",
        "nothing was loaded",
    ):
        assert part in told, told
    assert "good" not in told


def test_bad_files_of_a_directory_are_all_named(tmp_path: Path) -> None:
    write(tmp_path / "a.json", {"train": [PAIR], "test": [PAIR]})
    write(tmp_path / "b.json", {"train": [], "test": [PAIR]})
    (tmp_path / "c.json").write_text("{", encoding="utf-8")
    told = refusal(tmp_path)
    assert "b.json" in told
    assert "c.json" in told
    assert "a.json" not in told


@pytest.mark.parametrize(
    ("solutions", "part"),
    [
        ({}, "a: has no solution"),
        ({"a": [[[1]], [[2]]]}, "a: got 2 outputs for 1 test inputs"),
        ({"a": [[[1]]], "b": [[[1]]]}, "b: solves a task that is not among the challenges"),
        ({"a": [[[1], [2, 3]]]}, "rows of 1, 2 cells"),
        ({"a": [[[9]]]}, "output 0 is another one than the challenge itself has"),
    ],
)
def test_solutions_that_do_not_fit_are_refused(tmp_path: Path, solutions: Any, part: str) -> None:
    challenges = write(tmp_path / "c.json", {"a": {"train": [PAIR], "test": [PAIR]}})
    assert part in refusal(challenges, write(tmp_path / "s.json", solutions))


def test_places_without_tasks_are_refused(tmp_path: Path) -> None:
    assert "holds no file" in refusal(tmp_path)
    assert "holds no task" in refusal(write(tmp_path / "c.json", {}))
    assert "solutions goes with a file" in refusal(tmp_path, tmp_path / "c.json")
    assert "top level" in refusal(write(tmp_path / "l.json", [1]))
