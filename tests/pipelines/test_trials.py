"""Rounds with real models: gates, screening, halving, shared updates, reliability."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.errors import ConfigError
from pipelines.records import CandidateRecord, RoundRecord, SamplingRecord
from pipelines.rounds import Pilot, run_course, run_pilot
from pipelines.sampling import written_edit
from pipelines.trials import try_edits
from pipelines.workspace import Workspace
from teacher.rewards import RewardFailure
from tests.pipelines.factories import make_round
from tests.pipelines.small import small_config, units_of


def workspace(place: Path, *settings: str) -> Workspace:
    return Workspace(small_config("teacher.samples=3", "loop.documents=2", *settings), place)


def course(ws: Workspace) -> tuple[RoundRecord, ...]:
    return run_course(ws, units_of(ws), ws.config.teacher.reward, None, lambda _: None).rounds


def test_halving_updates_the_leaders_again_and_the_repeats_tell_the_reliability(
    tmp_path: Path, prefect_server: None
) -> None:
    ws = workspace(tmp_path, "loop.rounds=1", "loop.halving=[{keep: 1, replicates: 2}]", "loop.repeated_documents=1")
    (record,) = course(ws)
    repeated, other = record.document_ids
    counts = {
        name: sorted(len(c.replicates) for c in record.candidates if c.edit.document_id == name)
        for name in record.document_ids
    }
    assert counts == {repeated: [2, 2, 4], other: [1, 1, 3]}
    assert record.inner_runs == 6 + 3 + 2 * 2
    assert record.reliability is not None
    assert record.reliability.edits == 3
    leader = max((c for c in record.candidates if c.edit.document_id == other), key=lambda c: len(c.replicates))
    first = [c.replicates[0].mean_probability or 0.0 for c in record.candidates if c.edit.document_id == other]
    assert leader.replicates[0].mean_probability == max(first)
    assert len({replicate.seed for replicate in leader.replicates}) == 3
    assert all(c.standard_error is not None for c in record.candidates)


def test_stage_runs_each_leader_once_although_a_repeated_document_is_ahead(
    tmp_path: Path, prefect_server: None
) -> None:
    """With one update a stage, leaders that were just updated have as many as the repeated document had before."""
    ws = workspace(tmp_path, "loop.rounds=1", "loop.halving=[{keep: 2, replicates: 1}]", "loop.repeated_documents=1")
    (record,) = course(ws)
    counts = {
        name: sorted(len(c.replicates) for c in record.candidates if c.edit.document_id == name)
        for name in record.document_ids
    }
    repeated, other = record.document_ids
    assert counts == {repeated: [2, 3, 3], other: [1, 2, 2]}
    assert record.inner_runs == 6 + 3 + 2 * 2


def test_equal_self_edits_of_a_document_share_one_update(tmp_path: Path, prefect_server: None) -> None:
    ws = workspace(tmp_path)
    task = ws.round_documents(0)[0]
    edit = written_edit(task, task.document.text)
    sampling = SamplingRecord(edits=(edit, edit.model_copy(update={"index": 1})), seconds=0.0)
    trials = try_edits(ws, units_of(ws), sampling, 0, ws.config.teacher.reward, ())
    assert trials.inner_runs == 1
    one, other = trials.replicates[f"{task.id}#0"][0], trials.replicates[f"{task.id}#1"][0]
    assert (one.index, other.index) == (0, 1)
    assert one.model_copy(update={"index": 1}) == other


def test_gates_refuse_before_any_update(tmp_path: Path, prefect_server: None) -> None:
    ws = workspace(tmp_path, "teacher.gates={min_coverage: 1.0}")
    task = ws.round_documents(0)[0]
    sampling = SamplingRecord(edits=(written_edit(task, "It is good to know such things."),), seconds=0.0)
    trials = try_edits(ws, units_of(ws), sampling, 0, ws.config.teacher.reward, ())
    assert trials.refused == {f"{task.id}#0": RewardFailure.LOW_COVERAGE}
    assert (trials.inner_runs, trials.replicates) == (0, {})


def test_screening_skips_the_worst_of_each_document_and_says_so(tmp_path: Path, prefect_server: None) -> None:
    ws = workspace(tmp_path, "loop.rounds=1", "teacher.screening={by: proxy, skip_share: 0.4, audit_share: 0.0}")
    (record,) = course(ws)
    skipped = [c for c in record.candidates if c.reason is RewardFailure.SCREENED_OUT]
    assert record.screening is not None
    assert record.screening.skipped == len(skipped) == 2
    for candidate in skipped:
        rivals = [c.proxy for c in record.candidates if c.edit.document_id == candidate.edit.document_id]
        assert candidate.proxy == min(value for value in rivals if value is not None)
        assert candidate.replicates == ()


def test_the_proxy_rewards_without_any_update_of_a_student(tmp_path: Path, prefect_server: None) -> None:
    ws = workspace(tmp_path, "loop.rounds=1", "teacher.reward.metric=proxy", "teacher.learning.line_credit=0.5")
    (record,) = course(ws)
    assert record.inner_runs == 0
    assert all(c.reward == c.proxy is not None for c in record.candidates)
    assert record.learning.examples > 0


def test_development_documents_choose_the_teacher(tmp_path: Path, prefect_server: None) -> None:
    ws = workspace(tmp_path, "loop.rounds=2", "data.development_documents=1", "loop.development={every: 1, edits: 1}")
    found = run_course(ws, units_of(ws), ws.config.teacher.reward, None, lambda _: None)
    looks = [record.development for record in found.rounds]
    assert all(look is not None for look in looks)
    best = max(looks, key=lambda look: look.mean if look is not None else 0.0)
    assert found.policy == found.rounds[looks.index(best)].learning.policy


def test_pilot_measures_both_metrics_before_learning(tmp_path: Path, prefect_server: None) -> None:
    ws = workspace(tmp_path, "loop.pilot={documents: 2, samples: 2, replicates: 2}")
    pilot = run_pilot(ws, units_of(ws), ws.config.teacher.reward)
    assert isinstance(pilot, Pilot)
    assert set(pilot.records) == {"accuracy", "probability"}
    assert [len(group) for group in pilot.values] == [2, 2]
    assert pilot.records["probability"].edits == 4
    assert run_pilot(workspace(tmp_path), units_of(ws), ws.config.teacher.reward) is None


def test_remembered_self_edits_are_not_updated_again(tmp_path: Path, prefect_server: None) -> None:
    ws = workspace(tmp_path, "loop.remember=true")
    units, task = units_of(ws), ws.round_documents(0)[0]
    known, new = (written_edit(task, text) for text in (task.document.text, "It is good to know such things."))
    reward = ws.config.teacher.reward
    first = try_edits(ws, units, SamplingRecord(edits=(known,), seconds=0.0), 0, reward, ())
    candidate = CandidateRecord(edit=known, replicates=first.replicates[f"{task.id}#0"], reward=0.5)
    history = [make_round(candidates=(candidate,))]
    both = SamplingRecord(edits=(new, known.model_copy(update={"index": 1})), seconds=0.0)
    second = try_edits(ws, units, both, 1, reward, history)
    assert (first.inner_runs, second.inner_runs) == (1, 1)
    kept, made = second.replicates[f"{task.id}#1"][0], second.replicates[f"{task.id}#0"][0]
    assert kept == candidate.replicates[0].model_copy(update={"index": 1})
    assert made.seed == kept.seed, "all self-edits of a document start alike, whatever the round"


@pytest.mark.parametrize("other", ["loop.halving=[{keep: 1}]", "loop.repeated_documents=1"])
def test_remembering_goes_with_one_score_for_each_self_edit(other: str) -> None:
    with pytest.raises(ConfigError, match="remember"):
        small_config("loop.remember=true", other)
