"""What a version of the student holds."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from evaluation.errors import LineageError
from pipelines.nights.learning import replayed
from pipelines.nights.state import STATE_FILE, StudentState, read_state, write_state
from tests.pipelines.nights.parts import document, held, state

A, B, C = document("a"), document("b", effective=date(2026, 1, 5)), document("c")


def test_superseded_documents_leave_memory_and_questions_and_stay_known() -> None:
    before = state(held(A, "night-0001"), held(B, "night-0001", "memory"))
    assert [entry.id for entry in before.memory.entries] == [B.id]
    after = before.after([held(C, "night-0002", "memory")], {B.id: C.id})
    assert after.ids == {A.id, B.id, C.id}
    assert [entry.id for entry in after.memory.entries] == [C.id]
    assert {night: [each.task.id for each in group] for night, group in after.groups().items()} == {
        "night-0001": [A.id],
        "night-0002": [C.id],
    }
    assert before.memory.entries[0].effective == date(2026, 1, 5)
    assert after.digest != before.digest


def test_first_replacement_counts_and_nothing_is_held_twice() -> None:
    once = state(held(A, "night-0001")).after([held(C, "night-0002")], {A.id: C.id})
    twice = once.after([held(C, "night-0003")], {A.id: B.id})
    assert twice == once


def test_state_is_read_back_and_a_version_without_one_is_empty(tmp_path: Path) -> None:
    made = state(held(A, "night-0001"), held(B, "night-0002", "memory"))
    assert read_state(tmp_path) == StudentState()
    write_state(made, tmp_path)
    assert read_state(tmp_path) == made
    (tmp_path / STATE_FILE).write_text('{"schema_version": 2}')
    with pytest.raises(LineageError, match="cannot be read"):
        read_state(tmp_path)


def test_replay_is_of_what_weights_learned_and_still_counts() -> None:
    known = state(held(A, "night-0001"), held(B, "night-0001", "memory"), held(C, "night-0002"))
    assert [each.task.id for each in replayed(known, "joint", 0, 0)] == [A.id, C.id]
    assert replayed(known, "merged", 9, 0) == ()
    assert len(replayed(known, "sequential", 1, 0)) == 1
    assert [each.task.id for each in replayed(known, "sequential", 9, 0)] == [A.id, C.id]
    retired = known.after([], {A.id: C.id})
    assert [each.task.id for each in replayed(retired, "sequential", 9, 0)] == [C.id]
    chosen = {replayed(known, "sequential", 1, seed)[0].task.id for seed in range(20)}
    assert chosen == {A.id, C.id}
