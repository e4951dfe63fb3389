"""Rounds with real models: documents, filters, remembered scores, checkpoint selection."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.common.errors import ConfigError
from evaluation.domains import load_split
from pipelines.records import Candidate, raw_passage
from pipelines.train_teacher.config import TrainTeacherConfig
from pipelines.train_teacher.edits import Diagnostics
from pipelines.train_teacher.plan import plan_rounds
from pipelines.train_teacher.rounds import CheckpointSelection, Course, Training, round_documents
from teacher.rewards import RewardFailure
from tests.pipelines.factories import make_edit, make_loop, make_round, save_tiny_model, small_config


def training(place: Path, *settings: str) -> Training:
    config = small_config("teacher.samples=3", *settings)
    loop = make_loop(config, place / "work")
    return Training(config, loop, load_split(config.data), Diagnostics(loop.tasks, None))


def course(training: Training) -> Course:
    return training.run(plan_rounds(training.config), lambda _: None)


def first_document(config: TrainTeacherConfig) -> tuple[str, str]:
    task = round_documents(config, load_split(config.data).train, 0)[0]
    return task.id, task.document.text


def test_rounds_take_every_document_once_before_any_comes_again() -> None:
    config = small_config()
    train = load_split(config.data).train
    passes = [
        [task.id for number in (2 * i, 2 * i + 1) for task in round_documents(config, train, number)] for i in range(8)
    ]
    assert all(len(set(ids)) == 4 for ids in passes)  # 5 documents give 2 rounds of 2
    assert len({tuple(ids) for ids in passes}) > 1
    assert {name for ids in passes for name in ids} == {task.id for task in train}


def test_rounds_that_are_larger_than_the_data_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"got 6, but there are only 5"):
        small_config("loop.documents=6").load_documents()
    assert small_config("loop={rounds: 0, documents: 6}").load_documents().train


def test_trials_of_a_document_share_seeds_and_those_of_purposes_do_not(tmp_path: Path) -> None:
    loop = make_loop(small_config(), tmp_path)
    edits = (make_edit("a", 0), make_edit("a", 1), make_edit("a", 2, text="?", edit=None), make_edit("b", 0))
    trials = loop.trials(edits, "round 0", 2)
    assert [(t.document_id, t.index) for t in trials] == [("a", 0), ("a", 1), ("b", 0)] * 2
    seeds = {name: [t.seed for t in trials if t.document_id == name] for name in "ab"}
    assert seeds["a"][0] == seeds["a"][1] != seeds["a"][2] == seeds["a"][3]
    assert not set(seeds["a"]) & set(seeds["b"])
    assert not {t.seed for t in trials} & {t.seed for t in loop.trials(edits, "round 1", 2)}


def test_equal_self_edits_of_a_document_share_one_update(tmp_path: Path, prefect_server: None) -> None:
    mine = training(tmp_path)
    name, text = first_document(mine.config)
    edit = raw_passage(name, text)
    tried = mine._filter_and_try([edit, edit.model_copy(update={"index": 1})], 0, ())
    assert tried.inner_runs == 1
    one, other = tried.updates
    assert one.model_copy(update={"index": 1}) == other


def test_filters_refuse_before_any_update(tmp_path: Path, prefect_server: None) -> None:
    mine = training(tmp_path, "teacher.filters={max_tokens: 1}")
    name, _ = first_document(mine.config)
    tried = mine._filter_and_try([make_edit(name, text="It is good to know such things.")], 0, ())
    assert tried.refused == {f"{name}#0": RewardFailure.OVER_BUDGET}
    assert (tried.inner_runs, tried.updates) == (0, ())


def test_remembered_self_edits_are_not_updated_again(tmp_path: Path, prefect_server: None) -> None:
    mine = training(tmp_path, "loop.remember=true")
    name, text = first_document(mine.config)
    known, new = raw_passage(name, text), raw_passage(name, "It is good to know such things.")
    first = mine._filter_and_try([known], 0, ())
    history = [make_round(candidates=(Candidate(edit=known, replicates=first.updates, reward=0.5),))]
    second = mine._filter_and_try([new, known.model_copy(update={"index": 1})], 1, history)
    assert (first.inner_runs, second.inner_runs) == (1, 1)
    (before,), (other, again) = first.updates, second.updates
    assert again == before.model_copy(update={"index": 1})
    assert other.seed == before.seed, "whatever the round, all start alike"


def test_round_without_any_self_edit_leaves_the_teacher_as_it_was_and_gives_no_number(
    tmp_path: Path, prefect_server: None
) -> None:
    silent = save_tiny_model(tmp_path / "silent", silent=True)
    mine = training(tmp_path, f"teacher.model={silent}", "teacher.sampling.temperature=0.0", "loop.rounds=1")
    (record,) = course(mine).rounds
    assert [c.reason for c in record.candidates] == [RewardFailure.PARSE_FAILED] * 6
    assert all(c.edit.rejection.startswith("empty") for c in record.candidates)
    assert all((c.reward, c.weight, c.replicates) == (None, None, ()) for c in record.candidates)
    assert record.mean_reward is None
    assert record.base_reward is not None
    assert set(record.left_out) == set(record.document_ids)
    assert record.learning.examples == 0


def test_development_documents_choose_the_teacher(tmp_path: Path, prefect_server: None) -> None:
    found = course(training(tmp_path, "loop={rounds: 2, documents: 2, development: {every: 1, edits: 1}}"))
    checks = [record.development for record in found.rounds]
    assert all(check is not None for check in checks)
    best = max(checks, key=lambda check: check.mean if check is not None else 0.0)
    assert found.state == found.rounds[checks.index(best)].learning.policy


@pytest.mark.parametrize(
    ("means", "expected", "best", "following", "ended"),
    [
        ([0.2, 0.4, 0.38], ["best", "best", "continue"], "p1", "p2", False),
        ([0.4, 0.3], ["best", "back to the best"], "p0", "p0", False),
        ([0.4, 0.39, 0.38, 0.37], ["best", "continue", "continue", "stop"], "p0", "p3", True),
        ([None, 0.1, None], [None, "best", None], "p1", "p2", False),
    ],
)
def test_checkpoint_selection(
    means: list[float | None], expected: list[str | None], best: str, following: str, ended: bool
) -> None:
    selection = CheckpointSelection()
    checks = [selection.check(f"p{i}", mean) for i, mean in enumerate(means)]
    assert [None if check is None else check.decision for check in checks] == expected
    assert (selection.best_state, selection.next_state, selection.ended) == (best, following, ended)
