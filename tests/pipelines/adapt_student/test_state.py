"""What a version of the student holds."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from evaluation.common.errors import LineageError
from pipelines.adapt_student.learn import replayed
from pipelines.adapt_student.state import STATE_FILE, StudentState, read_state
from tests.pipelines.adapt_student.factories import document, held, state

A, B, C = document("a"), document("b", effective=date(2026, 1, 5)), document("c")


def test_superseded_documents_leave_memory_and_groups_and_stay_held() -> None:
    before = state(held(A, "night-0001"), held(B, "night-0001", "memory"))
    assert [entry.id for entry in before.memory.entries] == [B.id]
    after = before.after([held(C, "night-0002", "memory")], {B.id: C.id})
    assert after.ids == {A.id, B.id, C.id}
    assert [entry.id for entry in after.memory.entries] == [C.id]
    groups = {night: [each.task.id for each in group] for night, group in after.groups().items()}
    assert groups == {"night-0001": [A.id], "night-0002": [C.id]}
    assert before.memory.entries[0].effective == date(2026, 1, 5)
    assert after.digest != before.digest


def test_first_replacement_counts_and_nothing_is_held_twice() -> None:
    once = state(held(A, "night-0001")).after([held(C, "night-0002")], {A.id: C.id})
    assert once.after([held(C, "night-0003")], {A.id: B.id}) == once


def test_state_round_trips_and_a_version_without_one_is_empty(tmp_path: Path) -> None:
    made = state(held(A, "night-0001"), held(B, "night-0002", "memory"))
    assert read_state(tmp_path) == StudentState()
    (tmp_path / STATE_FILE).write_text(made.model_dump_json())
    assert read_state(tmp_path) == made
    (tmp_path / STATE_FILE).write_text('{"schema_version": 2}')
    with pytest.raises(LineageError, match="cannot be read"):
        read_state(tmp_path)


def test_state_that_an_earlier_release_wrote_is_read(tmp_path: Path) -> None:
    task = (
        '{"document": {"id": "doc-1", "text": "Ada lives in Rome.", "title": "Ada", "source": "ada.txt"}, '
        '"questions": [{"question": "Where does Ada live?", "answer": "Rome"}]}'
    )
    edit = '{"implications": [{"text": "Where does Ada live?", "answer": "Rome"}]}'
    (tmp_path / STATE_FILE).write_text(
        f'{{"schema_version": 1, "documents": [{{"task": {task}, "night": "night-0001", "place": "weights", "because": '
        f'"nothing says that it will change", "edits": [{edit}], "effective": null, "superseded_by": "doc-2"}}], '
        '"parent": 3, "scores": {"night-0001": 0.5}}'
    )
    found = read_state(tmp_path)
    assert (found.parent, found.scores, found.active) == (3, {"night-0001": 0.5}, ())
    assert found.documents[0].edits[0].implications[0].answer == "Rome"


def test_replay_draws_from_active_documents_of_the_weights() -> None:
    known = state(held(A, "night-0001"), held(B, "night-0001", "memory"), held(C, "night-0002"))
    assert len(replayed(known, 1, 0)) == 1
    assert [each.task.id for each in replayed(known, 9, 0)] == [A.id, C.id]
    assert [each.task.id for each in replayed(known.after([], {A.id: C.id}), 9, 0)] == [C.id]
    assert {replayed(known, 1, seed)[0].task.id for seed in range(20)} == {A.id, C.id}
