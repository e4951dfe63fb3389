"""Scores of the real student without an update, computed once and then read from the work directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.base_scores import base_scores, score_path
from pipelines.workspace import Workspace
from tests.pipelines.small import small_config


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Return a workspace whose student stays open for the module."""
    return Workspace(small_config(), tmp_path_factory.mktemp("models"))


@pytest.fixture
def ws(models: Workspace, tmp_path: Path) -> Workspace:
    """Return a workspace with a directory of its own."""
    fresh = Workspace(models.config, tmp_path)
    fresh.__dict__["student"] = models.student
    return fresh


def times(ws: Workspace) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (ws.work_dir / "base-scores").iterdir()}


def test_second_call_computes_nothing_and_returns_the_same(ws: Workspace) -> None:
    tasks = ws.split.train[:3]
    first = base_scores(ws, tasks, "rewards")
    assert [replicate.document_id for replicate in first.replicates] == [task.id for task in tasks]
    assert all(len(r.exact) == len(t.questions) for r, t in zip(first.replicates, tasks, strict=True))
    made = times(ws)
    assert set(made) == {score_path(ws, task, "rewards").name for task in tasks}
    assert base_scores(ws, tasks, "rewards") == first  # the seconds too
    again = base_scores(ws, tasks[::-1], "rewards")
    assert again.replicates == first.replicates[::-1]
    assert times(ws) == made


@pytest.mark.parametrize("left", [None, b"", b'{"replicates": [', b"\xff\x00", b'{"replicates": [], "seconds": 1.0}'])
def test_file_that_is_gone_torn_or_garbage_is_made_again_alone(ws: Workspace, left: bytes | None) -> None:
    tasks = ws.split.train[:2]
    first = base_scores(ws, tasks, "rewards")
    made = times(ws)
    broken, whole = (score_path(ws, task, "rewards") for task in tasks)
    broken.unlink()
    if left is not None:
        broken.write_bytes(left)
    again = base_scores(ws, tasks, "rewards")
    assert again.replicates[0].exact == first.replicates[0].exact
    assert again.replicates[0].probability == pytest.approx(first.replicates[0].probability, rel=1e-4, abs=1e-6)
    assert again.replicates[1] == first.replicates[1]
    assert times(ws)[whole.name] == made[whole.name]
    assert times(ws)[broken.name] != made[broken.name]


def test_key_depends_on_what_decides_the_scores_and_not_on_the_documents_id(ws: Workspace, tmp_path: Path) -> None:
    task, other = ws.split.train[:2]
    path = score_path(ws, task, "rewards")
    renamed = task.model_copy(update={"document": task.document.model_copy(update={"id": "another"})})
    assert score_path(ws, renamed, "rewards") == path
    other_format = ws.config.student.answer_format.model_copy(update={"joiner": "\n"})
    student = ws.config.student.model_copy(update={"answer_format": other_format})
    asked_otherwise = Workspace(ws.config.model_copy(update={"student": student}), tmp_path)
    lower = Workspace(ws.config.model_copy(update={"dtype": "bfloat16"}), tmp_path)
    for each in (asked_otherwise, lower):
        each.__dict__["student_digest"] = ws.student_digest
    changed = Workspace(ws.config, tmp_path)
    changed.__dict__["student_digest"] = "another"
    newer = Workspace(ws.config, tmp_path)
    newer.__dict__["student_digest"], newer.code_digest = ws.student_digest, "another"
    others = [score_path(ws, other, "rewards"), score_path(ws, task, "comparison")]
    others += [score_path(each, task, "rewards") for each in (asked_otherwise, lower, changed, newer)]
    assert len({path, *others}) == 7


def test_documents_of_the_same_content_share_their_scores_under_their_own_ids(ws: Workspace) -> None:
    task = ws.split.train[0]
    renamed = task.model_copy(update={"document": task.document.model_copy(update={"id": "another"})})
    (first,) = base_scores(ws, [task], "rewards").replicates
    (same,) = base_scores(ws, [renamed], "rewards").replicates
    assert same == first.model_copy(update={"document_id": "another"})
    assert len(times(ws)) == 1
