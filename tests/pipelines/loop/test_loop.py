"""Sampling, updates and learning with the real micro models; everything is computed once and found again."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from evaluation.tasks import KnowledgeTask
from pipelines import models
from pipelines.loop.loop import Loop
from pipelines.loop.reward import judge
from pipelines.loop.update import Trial
from pipelines.records import raw_passage, usage_of
from student.adapters import load_adapter
from teacher.algorithms.algorithm import WeightedExample
from teacher.rewards import RewardFailure
from tests.pipelines.factories import make_loop, save_tiny_model, small_config
from tests.pipelines.loop.conftest import Open

PROMPT = "micro-implications"


def tasks_of(loop: Loop) -> list[KnowledgeTask]:
    return list(loop.tasks.values())


def passage(task: KnowledgeTask, index: int = 0, *, times: int = 1, seed: int = 1, keep: bool = False) -> Trial:
    return Trial(task.id, index, raw_passage(task.id, (task.document.text + " ") * times).edit, seed, keep)


def too_long(task: KnowledgeTask) -> int:
    return 1 + 12_000 // len(task.document.text)


def stored(loop: Loop) -> int:
    with loop.execution.updates._reading() as db:
        return int(db.execute("SELECT COUNT(*) FROM updates").fetchone()[0])


# Sampling


def test_sampling_writes_the_same_for_a_document_whatever_is_beside_it(opened: Open) -> None:
    loop = opened()
    first, second = tasks_of(loop)[:2]
    together = loop.sample(None, PROMPT, [first, second], n=2, seed=5)
    alone = loop.sample(None, PROMPT, [second], n=2, seed=5)
    assert [edit.id for edit in together.edits] == [f"{task.id}#{i}" for task in (first, second) for i in range(2)]
    assert together.edits[2:] == alone.edits
    assert opened().sample(None, PROMPT, [first, second], n=2, seed=5) == together, "the seconds too: it is stored"


def test_document_that_does_not_fit_the_teacher_is_left_out_with_the_reason(opened: Open) -> None:
    loop = opened()
    task, other = tasks_of(loop)[:2]
    document = task.document.model_copy(update={"text": (task.document.text + " ") * too_long(task)})
    long = task.model_copy(update={"document": document})
    sampled = loop.sample(None, PROMPT, [long, other], n=1, seed=5)
    assert [edit.document_id for edit in sampled.edits] == [other.id]
    assert list(sampled.too_long) == [task.id]
    assert "allowed are 984" in sampled.too_long[task.id]  # 1,024 tokens of context without 40 new ones


# Updates and scores


def test_update_changes_the_students_answers_and_seeds_differ(opened: Open) -> None:
    loop = opened()
    task = tasks_of(loop)[0]
    one, other, base = loop.update([passage(task), passage(task, seed=2), Trial(task.id, 0, None, 0)], "rewards")
    assert len({one.adapter_digest, other.adapter_digest, base.adapter_digest}) == 3
    assert one.probability != pytest.approx(base.probability, rel=1e-4, abs=1e-6)
    assert (one.steps, base.steps) == (1, 0)
    assert one.tokens > 0


def test_an_update_is_made_once_whoever_asks_for_it(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.loop.loop.UNIT_UPDATES", 3)
    loop = opened("student.bank_slots=2")
    trials = [passage(task) for task in tasks_of(loop)[:5]]
    whole = loop.update(trials, "rewards")
    assert [update.document_id for update in whole] == [trial.document_id for trial in trials]
    assert stored(loop) == 5
    assert usage_of(whole).slots == 2
    again = opened("student.bank_slots=2")
    assert again.update(trials[::-1], "rewards") == whole[::-1]
    assert stored(again) == 5
    same = replace(trials[0], index=7)
    (shared,) = again.update([same], "rewards")
    assert shared == whole[0].model_copy(update={"index": 7})
    twice = again.update([passage(tasks_of(again)[0], seed=3), passage(tasks_of(again)[0], 1, seed=3)], "rewards")
    assert twice[0].model_copy(update={"index": 1}) == twice[1]
    assert stored(again) == 6


def test_key_of_an_update_depends_on_what_decides_its_scores_and_not_on_names(opened: Open, tmp_path: Path) -> None:
    loop = opened()
    task, other = tasks_of(loop)[:2]
    trial = passage(task)

    def key(loop: Loop, trial: Trial = trial, questions: str = "rewards") -> str:
        return loop._update_key(trial, questions, loop._probes_for(questions))  # type: ignore[arg-type]

    renamed = task.model_copy(update={"document": task.document.model_copy(update={"id": "another"})})
    loop.tasks["another"] = renamed
    assert key(loop, replace(trial, document_id="another", index=3, keep=True)) == key(loop)
    assert key(make_loop(small_config("name=other", "loop.rounds=1"), tmp_path / "elsewhere")) == key(loop)
    changed = [
        opened("dtype=bfloat16"),
        opened("student.update.rank=4"),
        opened("student.answer_format.joiner=x"),
        opened("student.bank_slots=3"),
    ]
    keys = [key(each) for each in changed]
    keys += [key(loop, replace(trial, seed=2)), key(loop, passage(other)), key(loop, questions="comparison")]
    assert len({key(loop), *keys}) == 8


def test_base_scores_are_by_document_and_question_set(opened: Open) -> None:
    loop = opened()
    tasks = tasks_of(loop)[:3]
    rewards, comparison = loop.base(tasks, "rewards"), loop.base(tasks, "comparison")
    for task, mine, held_out in zip(tasks, rewards, comparison, strict=True):
        assert (len(mine.exact), len(held_out.exact)) == (len(task.questions), len(task.held_out_questions))
        assert mine.probability != held_out.probability
    assert opened().base(tasks[::-1], "rewards") == rewards[::-1]


def test_passage_that_does_not_fit_the_student_has_a_reason_and_no_score(opened: Open) -> None:
    loop = opened()
    task, other = tasks_of(loop)[:2]
    long = raw_passage(task.id, (task.document.text + " ") * too_long(task))
    trials = [Trial(task.id, 0, long.edit, 1, keep=True), passage(other)]
    updates = loop.update(trials, "comparison")
    failed, scored = updates
    assert failed.failure is RewardFailure.UPDATE_FAILED
    assert failed.detail.startswith("sequence_too_long")
    assert (failed.accuracy, failed.mean_probability, failed.exact) == (None, None, ())
    assert scored.failure is None
    (candidate,) = judge([long], loop.settings.teacher.reward, updates=updates)
    assert (candidate.reward, candidate.reason) == (None, RewardFailure.UPDATE_FAILED)
    assert loop.update(trials, "comparison") == updates, "a failure is not tried again"


def test_kept_adapters_are_those_asked_for_and_are_made_again_when_they_are_gone(opened: Open) -> None:
    loop = opened()
    first, second = tasks_of(loop)[:2]
    plain = loop.update([passage(first), passage(second)], "comparison")
    assert not (loop.work_dir / "adapters").exists()
    wanted = [passage(first, keep=True), passage(second)]
    for _ in range(2):
        kept = loop.update(wanted, "comparison")
        digest = kept[0].adapter_digest
        assert digest is not None
        assert [place.name for place in (loop.work_dir / "adapters").iterdir()] == [digest[:20]]
        assert load_adapter(loop.adapter_dir(digest)).digest == digest
        assert kept[1] == plain[1]
        assert kept[0].probability == pytest.approx(plain[0].probability, rel=1e-4, abs=1e-6)
        shutil.rmtree(loop.adapter_dir(digest))


# Learning


def test_learning_starts_from_the_saved_state_whatever_the_teacher_did_since(opened: Open, tmp_path: Path) -> None:
    loop = opened("teacher.policy={rank: 2, alpha: 4}")
    prompt = loop.prompt(PROMPT, tasks_of(loop)[0])
    examples = [WeightedExample(prompt, (10 + i, 11, 2), 1.0, "d") for i in range(2)]
    first = loop.learn(None, examples, seed=1)
    second = loop.learn(first.policy, examples, seed=2)
    assert first.policy != second.policy
    elsewhere = make_loop(small_config("teacher.policy={rank: 2, alpha: 4}"), tmp_path / "elsewhere")
    again = elsewhere.learn(None, examples, seed=1)
    assert (again.policy, again.policy_digest, again.loss) == (first.policy, first.policy_digest, first.loss)
    models.close_models()
    assert elsewhere.learn(again.policy, examples, seed=2).policy_digest == second.policy_digest


def test_teacher_whose_files_are_gone_is_made_again(opened: Open) -> None:
    loop = opened()
    examples = [WeightedExample(loop.prompt(PROMPT, tasks_of(loop)[0]), (10, 11, 2), 1.0, "d")]
    first = loop.learn(None, examples, seed=1)
    shutil.rmtree(loop.state_dir(first.policy))
    assert opened().learn(None, examples, seed=1).policy == first.policy
    assert loop.state_dir(first.policy).is_dir()


def test_checkpoint_directories_serve_as_teacher_and_as_student(opened: Open, tmp_path: Path) -> None:
    place = save_tiny_model(tmp_path / "model")
    loop = opened(f"teacher.model={place}", f"student.model={place}")
    task = tasks_of(loop)[0]
    sampling = loop.sample(None, PROMPT, [task], n=2, seed=1)
    (update,) = loop.update([passage(task, keep=True)], "rewards")
    assert update.accuracy is not None
    assert update.adapter_digest is not None
    assert (loop.adapter_dir(update.adapter_digest) / "adapter_config.json").is_file()
    example = WeightedExample(loop.prompt(PROMPT, task), sampling.edits[0].token_ids, 1.0, task.id)
    assert loop.state_dir(loop.learn(None, [example], seed=1).policy).is_dir()
