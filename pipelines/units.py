"""Units of work as Prefect tasks: each is stored under its content key, so that a killed run goes on where it was.

A unit is a chunk of candidates or a step of the teacher, seconds to minutes of work, never a single candidate. What a
unit leaves in the work directory (adapters, teacher states) is named by content and moved into place whole before its
record is stored; a record whose directory is gone, or was not wanted when it was made, is made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefect import task
from prefect.context import TaskRunContext

from evaluation.digests import digest_json
from evaluation.tasks import KnowledgeTask
from pipelines import proxy, work
from pipelines.base_scores import base_scores
from pipelines.config import QuestionSet
from pipelines.grading import graded
from pipelines.progress import Reporter
from pipelines.records import BankRecord, LearningRecord, ProxyRecord, ReplicateRecord, SamplingRecord, UsageRecord
from pipelines.sampling import sample_edits, sample_with
from pipelines.work import UpdateRequest, answer_settings
from pipelines.workspace import Workspace
from student.config import UpdateRecipe
from teacher.prompts import prompt_template
from teacher.samplers import Sampler
from teacher.selection import WeightedExample
from teacher.self_edit import SelfEdit


def _content_key(_: TaskRunContext, parameters: dict[str, Any]) -> str:
    return str(parameters["key"])


STORED: dict[str, Any] = {
    "cache_key_fn": _content_key,
    "persist_result": True,
    "result_serializer": "json",
    "retries": 0,
    "log_prints": False,
}
"""Settings of a task that is a unit: its first argument is its key. A raised exception stores nothing, so the unit
runs again; training is resumed, not retried."""


@task(name="sample", **STORED)
def _sample(
    key: str, ws: Workspace, policy: str | None, prompt: str, tasks: Sequence[KnowledgeTask], n: int, seed: int
) -> SamplingRecord:
    return sample_edits(ws, policy, prompt, tasks, n=n, seed=seed)


@task(name="update-and-score", **STORED)
def _bank(key: str, ws: Workspace, requests: Sequence[UpdateRequest], questions: QuestionSet) -> BankRecord:
    return work.run_bank(ws, requests, questions)


@task(name="score-in-context", **STORED)
def _proxy(key: str, ws: Workspace, edits: Sequence[tuple[str, SelfEdit]]) -> ProxyRecord:
    return proxy.score_edits(ws, edits)


@task(name="learn", **STORED)
def _learn(
    key: str, ws: Workspace, policy: str | None, examples: Sequence[WeightedExample], seed: int
) -> LearningRecord:
    return work.learn_round(ws, policy, examples, seed=seed)


@task(name="joint-update", **STORED)
def _joint(key: str, ws: Workspace, edits: Sequence[SelfEdit], tasks: Sequence[KnowledgeTask], seed: int) -> BankRecord:
    recipe = ws.config.comparison.joint_update
    assert recipe is not None
    return work.run_joint(ws, edits, tasks, recipe, seed=seed)


class Units:
    """Runs units of one workspace, each at most once whatever happens."""

    def __init__(self, ws: Workspace, reporter: Reporter) -> None:
        """Run units of `ws` and tell `reporter` of each that is done."""
        self._ws = ws
        self._reporter = reporter

    def sample(
        self, policy: str | None, prompt: str, tasks: Sequence[KnowledgeTask], *, n: int, seed: int
    ) -> SamplingRecord:
        """Return `n` self-edits for each task from the teacher at a saved state."""
        ws = self._ws
        if not ws.taught_locally:
            return self._asked(ws.sampler, prompt, tasks, n, seed)
        content = {
            "policy": self._policy_content(policy),
            "prompts": [[t.id, ws.prompt(prompt, t.document)] for t in tasks],
            "sampling": ws.config.teacher.sampling.model_dump(mode="json"),
            "n": n,
            "seed": seed,
        }
        self._reporter.begin(f"sampling {n * len(tasks)} self-edits")
        record: SamplingRecord = _sample(ws.key("sample", content), ws, policy, prompt, tasks, n, seed)
        self._reporter.done()
        return record

    def external(self, tasks: Sequence[KnowledgeTask], *, n: int, seed: int) -> SamplingRecord:
        """Return `n` self-edits for each task from the generator that is not ours."""
        external = self._ws.config.comparison.external
        assert external is not None
        return self._asked(self._ws.external, external.prompt, tasks, n, seed)

    def _asked(
        self, sampler: Sampler, prompt: str, tasks: Sequence[KnowledgeTask], n: int, seed: int
    ) -> SamplingRecord:
        """Return what an endpoint wrote. Its ledger keeps replies and no unit is stored: failures are asked again."""
        budget = self._ws.step_budget
        prompts = [prompt_template(prompt).render(task.document, budget) for task in tasks]
        self._reporter.begin(f"asking for {n * len(tasks)} self-edits")
        record = sample_with(sampler, prompts, tasks, n=n, seed=seed)
        self._reporter.done()
        return record

    def bank(self, requests: Sequence[UpdateRequest], questions: QuestionSet) -> BankRecord:
        """Return the scores of one chunk of updates; the adapters of those with `keep` are in the work directory.

        What is kept is no part of the key: it changes no score.
        """
        ws = self._ws
        student = ws.config.student
        content = {
            "student": ws.student_digest,
            "recipe": student.update.model_dump(mode="json"),
            "format": student.answer_format.model_dump(mode="json"),
            # Both may change in which batches an update is computed, and with that how its sums are rounded.
            "slots": student.bank_slots,
            "memory": student.bank_memory_gb,
            "requests": [
                [r.document_id, r.sample, ws.tasks[r.document_id].digest, r.edit.digest if r.edit else None, r.seed]
                for r in requests
            ],
            "questions": questions,
            "probes": [[probe.question, probe.answer] for probe in ws.probes_beside(questions)],
            "answers": answer_settings(ws.config, questions),
        }
        key = ws.key("bank", content)
        self._reporter.begin(f"training and scoring {len(requests)} adapters")
        record: BankRecord = _bank(key, ws, requests, questions)
        if any(r.keep and self._is_lost(done) for r, done in zip(requests, record.replicates, strict=True)):
            record = _bank.with_options(refresh_cache=True)(key, ws, requests, questions)
        record = graded(ws, record, questions)
        self._reporter.done()
        return record

    def banks(self, requests: Sequence[UpdateRequest], questions: QuestionSet) -> BankRecord:
        """Return the scores of any number of updates, chunk by chunk, and what all of them took."""
        size = self._ws.config.student.unit_updates
        parts = [self.bank(requests[start : start + size], questions) for start in range(0, len(requests), size)]
        return BankRecord(
            replicates=tuple(replicate for part in parts for replicate in part.replicates),
            seconds=sum(part.seconds for part in parts),
            usage=UsageRecord.merged(part.usage for part in parts),
        )

    def base(self, tasks: Sequence[KnowledgeTask], questions: QuestionSet) -> BankRecord:
        """Return the scores of the student without an update, in the order of the tasks."""
        self._reporter.begin(f"scoring the student without an update on {len(tasks)} documents")
        record = graded(self._ws, base_scores(self._ws, tasks, questions), questions)
        self._reporter.done()
        return record

    def proxy(self, edits: Sequence[tuple[str, SelfEdit]]) -> ProxyRecord:
        """Return the student's probability of the gold answers with each self-edit in its context.

        Args:
            edits: Pairs of a document's id and a self-edit for it.
        """
        ws = self._ws
        content = {
            "student": ws.student_digest,
            "format": ws.config.student.answer_format.model_dump(mode="json"),
            "edits": [[name, ws.tasks[name].digest, edit.digest] for name, edit in edits],
        }
        self._reporter.begin(f"reading {len(edits)} self-edits in the student's context")
        record: ProxyRecord = _proxy(ws.key("proxy", content), ws, edits)
        self._reporter.done()
        return record

    def learn(self, policy: str | None, examples: Sequence[WeightedExample], *, seed: int) -> LearningRecord:
        """Return the teacher's step from a saved state; the new state is in the work directory."""
        ws = self._ws
        content = {
            "policy": self._policy_content(policy),
            "examples": digest_json(
                [[e.prompt, list(e.token_ids), e.weight, e.group_id, e.pair, e.token_weights] for e in examples]
            ),
            "learning": ws.config.teacher.learning.model_dump(mode="json"),
            "seed": seed,
        }
        key = ws.key("learn", content)
        self._reporter.begin(f"teacher learns from {len(examples)} self-edits")
        record: LearningRecord = _learn(key, ws, policy, examples, seed)
        if not ws.policy_dir(record.policy).is_dir():
            record = _learn.with_options(refresh_cache=True)(key, ws, policy, examples, seed)
        self._reporter.done()
        return record

    def joint(
        self, edits: Sequence[SelfEdit], tasks: Sequence[KnowledgeTask], recipe: UpdateRecipe, *, seed: int
    ) -> BankRecord:
        """Return the scores of one adapter trained on all self-edits together; it is in the work directory."""
        ws = self._ws
        content = {
            "student": ws.student_digest,
            "recipe": recipe.model_dump(mode="json"),
            "format": ws.config.student.answer_format.model_dump(mode="json"),
            "edits": [edit.digest for edit in edits],
            "tasks": [task.digest for task in tasks],
            "seed": seed,
            "answers": answer_settings(ws.config, "comparison"),
        }
        key = ws.key("joint", content)
        self._reporter.begin(f"training one student on {len(edits)} self-edits")
        record: BankRecord = _joint(key, ws, edits, tasks, seed)
        if any(self._is_lost(replicate) for replicate in record.replicates):
            record = _joint.with_options(refresh_cache=True)(key, ws, edits, tasks, seed)
        record = graded(ws, record, "comparison")
        self._reporter.done()
        return record

    def _is_lost(self, replicate: ReplicateRecord) -> bool:
        """Return whether an update left an adapter that is not in the work directory."""
        digest = replicate.adapter_digest
        return digest is not None and not self._ws.adapter_dir(digest).is_dir()

    def _policy_content(self, policy: str | None) -> Any:
        """Return what identifies a teacher: its base and configuration, and its state."""
        teacher = self._ws.policy
        own_seed = self._ws.seed("policy")
        return [teacher.base_digest, teacher.config.model_dump(mode="json"), policy or f"untrained, seed {own_seed}"]
