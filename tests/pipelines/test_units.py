"""Units of work as plain functions, with real models."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.errors import ConfigError
from evaluation.tasks import KnowledgeTask
from pipelines.records import RECORDS_VERSION, CandidateRecord, ReplicateRecord, SamplingRecord
from pipelines.rewarding import groups_of, judge
from pipelines.rounds import run_course
from pipelines.sampling import sample_edits, written_edit
from pipelines.trials import Trials, update_requests
from pipelines.work import UpdateRequest, learn_round, run_bank, run_joint
from pipelines.workspace import Workspace
from student.adapters import load_adapter
from student.config import UpdateRecipe
from teacher.rewards import RewardFailure
from teacher.selection import WeightedExample
from tests.pipelines.factories import make_edit, make_replicate
from tests.pipelines.small import save_tiny_model, small_config, units_of


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return Workspace(small_config(), tmp_path / "work")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Return a workspace whose models stay open for the module; tests must not change the teacher."""
    return Workspace(small_config(), tmp_path_factory.mktemp("models"))


def with_text(task: KnowledgeTask, text: str) -> KnowledgeTask:
    return task.model_copy(update={"document": task.document.model_copy(update={"text": text})})


# Documents and keys


def test_rounds_take_every_document_once_before_any_comes_again(ws: Workspace) -> None:
    passes = [[task.id for number in (2 * i, 2 * i + 1) for task in ws.round_documents(number)] for i in range(8)]
    assert all(len(set(ids)) == 4 for ids in passes)  # 5 documents give 2 rounds of 2
    assert len({tuple(ids) for ids in passes}) > 1
    assert {name for ids in passes for name in ids} == {task.id for task in ws.split.train}
    assert [task.id for task in ws.round_documents(3)] == passes[1][2:]


def test_workspace_refuses_rounds_that_are_larger_than_the_data(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"got 6, but there are only 5"):
        Workspace(small_config("loop.documents=6"), tmp_path)
    assert Workspace(small_config("loop={rounds: 0, documents: 6}"), tmp_path).split.train


def test_content_key_depends_on_what_decides_the_result_and_on_nothing_else(ws: Workspace, tmp_path: Path) -> None:
    key = ws.key("bank", {"seed": 1})
    assert key.startswith(f"bank/v{RECORDS_VERSION}/")
    assert (
        Workspace(small_config("name=other", "loop.rounds=1"), tmp_path / "elsewhere").key("bank", {"seed": 1}) == key
    )
    others = [
        ws.key("bank", {"seed": 2}),
        ws.key("learn", {"seed": 1}),
        Workspace(small_config("dtype=bfloat16"), tmp_path).key("bank", {"seed": 1}),
        Workspace(small_config("device=cuda"), tmp_path).key("bank", {"seed": 1}),
    ]
    changed = Workspace(small_config(), tmp_path)
    changed.code_digest = "another"
    assert len({key, *others, changed.key("bank", {"seed": 1})}) == 6


# Requests and judgement


def test_requests_of_a_document_share_seeds_and_those_of_purposes_do_not(ws: Workspace) -> None:
    edits = (make_edit("a", 0), make_edit("a", 1), make_edit("a", 2, text="?", edit=None), make_edit("b", 0))
    requests = update_requests(ws, edits, "round 0", 2)
    assert [(r.document_id, r.sample) for r in requests] == [("a", 0), ("a", 1), ("b", 0)] * 2
    seeds = {name: [r.seed for r in requests if r.document_id == name] for name in "ab"}
    assert seeds["a"][0] == seeds["a"][1] != seeds["a"][2] == seeds["a"][3]
    assert not set(seeds["a"]) & set(seeds["b"])
    again = update_requests(ws, edits, "round 1", 2)
    assert not {r.seed for r in requests} & {r.seed for r in again}


def test_without_common_random_numbers_each_self_edit_has_seeds_of_its_own_in_rounds_alone(tmp_path: Path) -> None:
    ws = Workspace(small_config("loop.common_random_numbers=false"), tmp_path)
    edits = (make_edit("a", 0), make_edit("a", 1))
    assert len({r.seed for r in update_requests(ws, edits, "round 0", 1)}) == 2
    assert len({r.seed for r in update_requests(ws, edits, "comparison", 1)}) == 1


def test_judgement_gives_a_reward_or_a_reason_and_never_both(ws: Workspace) -> None:
    edits = (make_edit("a", 0), make_edit("a", 1, text="?", edit=None), make_edit("a", 2), make_edit("b", 0))
    failed = ReplicateRecord(document_id="a", index=2, seed=1, failure=RewardFailure.NON_FINITE, detail="loss")
    replicates = [make_replicate("b", 0, probability=(0.5, 0.5)), failed, make_replicate("a", 0)]
    base = {"a": make_replicate("a", 0, adapter_digest=None, probability=(0.1, 0.3))}
    trials = Trials(replicates={f"{r.document_id}#{r.index}": (r,) for r in replicates})
    judged = judge(SamplingRecord(edits=edits, seconds=0.0), trials, base, ws.config.teacher.reward)
    assert [(c.edit.id, c.reward, c.reason) for c in judged] == [
        ("a#0", 0.5, None),
        ("a#1", None, RewardFailure.PARSE_FAILED),
        ("a#2", None, RewardFailure.NON_FINITE),
        ("b#0", 0.5, None),
    ]
    assert [c.base_reward for c in judged] == [pytest.approx(0.2)] * 3 + [None]
    assert [len(c.replicates) for c in judged] == [1, 0, 1, 1]


def test_groups_hold_a_documents_candidates_with_the_prompt_that_it_was_shown(models: Workspace) -> None:
    task = models.split.train[0]
    edits = tuple(make_edit(task.id, index) for index in range(3))
    candidates = [CandidateRecord(edit=edit, learned_reward=0.1 * edit.index, base_reward=0.05) for edit in edits]
    (group,) = groups_of(models, "micro-rewrite", candidates, {}, models.config.teacher.reward)
    assert group.id == task.id
    assert group.prompt == f"Passage: {task.document.text}\nRewritten passages:\n"
    assert [candidate.reward for candidate in group.candidates] == [0.0, 0.1, 0.2]
    assert group.base_reward == 0.05


# Sampling, updating, scoring


def test_sampling_writes_the_same_for_a_document_whatever_is_beside_it(models: Workspace) -> None:
    first, second = models.split.train[:2]
    together = sample_edits(models, None, "micro-implications", [first, second], n=2, seed=5)
    alone = sample_edits(models, None, "micro-implications", [second], n=2, seed=5)
    assert [edit.id for edit in together.edits] == [f"{task.id}#{i}" for task in (first, second) for i in range(2)]
    assert together.edits[2:] == alone.edits
    assert together.too_long == {}


def test_document_that_does_not_fit_the_teacher_is_left_out_with_the_reason(models: Workspace) -> None:
    task, other = models.split.train[:2]
    long = with_text(task, (task.document.text + " ") * (1 + 12_000 // len(task.document.text)))
    sampled = sample_edits(models, None, "micro-implications", [long, other], n=1, seed=5)
    assert [edit.document_id for edit in sampled.edits] == [other.id]
    assert list(sampled.too_long) == [task.id]
    assert "allowed are 984" in sampled.too_long[task.id]  # 1,024 tokens of context without 40 new ones
    nothing = sample_edits(models, None, "micro-implications", [long], n=1, seed=5)
    assert nothing.edits == ()


def test_passage_that_does_not_fit_the_student_has_a_reason_and_no_score(models: Workspace) -> None:
    task, other = models.split.train[:2]
    long = written_edit(task, (task.document.text + " ") * (1 + 12_000 // len(task.document.text)))
    fine = written_edit(other, other.document.text)
    requests = [UpdateRequest(e.document_id, 0, e.edit, 1) for e in (long, fine)]
    failed, scored = run_bank(models, requests, "comparison").replicates
    assert failed.failure is RewardFailure.UPDATE_FAILED
    assert failed.detail.startswith("sequence_too_long")
    assert (failed.accuracy, failed.mean_probability, failed.exact) == (None, None, ())
    assert scored.failure is None
    assert len(scored.exact) == len(other.comparison_questions)
    trials = Trials(replicates={long.id: (failed,)})
    candidate = judge(SamplingRecord(edits=(long,), seconds=0.0), trials, {}, models.config.teacher.reward)[0]
    assert (candidate.reward, candidate.reason) == (None, RewardFailure.UPDATE_FAILED)


def test_bank_asks_the_questions_that_it_is_told_to(models: Workspace) -> None:
    task = models.split.train[0]
    request = UpdateRequest(task.id, 0, None, 0)
    rewards = run_bank(models, [request], "rewards").replicates[0]
    comparison = run_bank(models, [request], "comparison").replicates[0]
    assert (rewards.adapter_digest, rewards.steps) == (None, 0)
    assert len(rewards.exact) == len(task.questions)
    assert len(comparison.exact) == len(task.held_out_questions) > 0
    assert rewards.probability != comparison.probability


def test_update_moves_the_students_answers_and_repeats_exactly(models: Workspace) -> None:
    task = models.split.train[0]
    edit = written_edit(task, task.document.text).edit
    requests = [UpdateRequest(task.id, 0, edit, seed) for seed in (1, 2, 1)] + [UpdateRequest(task.id, 0, None, 0)]
    replicates = run_bank(models, requests, "rewards").replicates
    one, other, same, base = replicates
    assert same.probability == pytest.approx(one.probability, rel=1e-4, abs=1e-6)  # slots differ by rounding alone
    assert len({one.adapter_digest, other.adapter_digest, base.adapter_digest}) == 3
    assert one.probability != pytest.approx(base.probability, rel=1e-4, abs=1e-6)
    assert one.steps == 1
    assert one.tokens > 0
    assert run_bank(models, requests, "rewards").replicates == replicates


def test_joint_update_holds_the_lines_of_all_edits_and_is_kept(models: Workspace) -> None:
    tasks = models.split.test
    edits = [edit for task in tasks if (edit := written_edit(task, task.document.text).edit) is not None]
    recipe = UpdateRecipe(rank=2, alpha=4, epochs=2, batch_size=1)
    record = run_joint(models, edits, tasks, recipe, seed=1)
    assert [replicate.document_id for replicate in record.replicates] == [task.id for task in tasks]
    assert {replicate.steps for replicate in record.replicates} == {2 * len(tasks)}
    (digest,) = {replicate.adapter_digest for replicate in record.replicates}
    assert digest is not None
    assert load_adapter(models.adapter_dir(digest)).digest == digest
    assert record.usage.tokens == record.replicates[0].tokens


# The teacher's step


def test_learning_starts_from_the_saved_state_whatever_the_teacher_did_since(tmp_path: Path) -> None:
    ws = Workspace(small_config("teacher.policy={rank: 2, alpha: 4}"), tmp_path)
    prompt = ws.prompt("micro-implications", ws.split.train[0].document)
    examples = [WeightedExample(prompt, (10 + i, 11, 2), 1.0, "d") for i in range(2)]
    first = learn_round(ws, None, examples, seed=1)
    second = learn_round(ws, first.policy, examples, seed=2)
    again = learn_round(ws, None, examples, seed=1)
    assert (again.policy, again.policy_digest, again.loss) == (first.policy, first.policy_digest, first.loss)
    assert first.policy != second.policy
    fresh = Workspace(ws.config, tmp_path)
    resumed = learn_round(fresh, first.policy, examples, seed=2)
    assert resumed.policy_digest == second.policy_digest


def test_round_without_any_self_edit_leaves_the_teacher_as_it_was_and_gives_no_number(
    tmp_path: Path, prefect_server: None
) -> None:
    silent = save_tiny_model(tmp_path / "silent", silent=True)
    config = small_config(f"teacher.model={silent}", "teacher.sampling.temperature=0.0", "loop.rounds=1")
    ws = Workspace(config, tmp_path / "work")
    (record,) = run_course(ws, units_of(ws), config.teacher.reward, None, lambda _: None).rounds
    assert [c.reason for c in record.candidates] == [RewardFailure.PARSE_FAILED] * 4
    assert all(c.edit.rejection.startswith("empty") for c in record.candidates)
    assert all((c.reward, c.weight, c.replicates) == (None, None, ()) for c in record.candidates)
    assert record.mean_reward is None
    assert record.base_reward is not None
    assert set(record.left_out) == set(record.document_ids)
    assert record.learning.examples == 0


def test_checkpoint_directories_serve_as_teacher_and_as_student(tmp_path: Path) -> None:
    place = save_tiny_model(tmp_path / "model")
    config = small_config(f"teacher.model={place}", f"student.model={place}")
    ws = Workspace(config, tmp_path / "work")
    task = ws.split.train[0]
    sampling = sample_edits(ws, None, "micro-implications", [task], n=2, seed=1)
    assert len(sampling.edits) == 2
    request = UpdateRequest(task.id, 0, written_edit(task, task.document.text).edit, 1, keep=True)
    replicate = run_bank(ws, [request], "rewards").replicates[0]
    assert replicate.failure is None
    assert replicate.accuracy is not None
    assert replicate.adapter_digest is not None
    assert (ws.adapter_dir(replicate.adapter_digest) / "adapter_config.json").is_file()
    example = WeightedExample(ws.prompt("micro-implications", task.document), sampling.edits[0].token_ids, 1.0, task.id)
    learned = learn_round(ws, None, [example], seed=1)
    assert ws.policy_dir(learned.policy).is_dir()
