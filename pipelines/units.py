"""Units of work as Prefect tasks: each is stored under its content key, so that a killed run goes on where it was.

A unit is a bank of candidates or a step of the teacher, seconds to minutes of work, never a single candidate. What a
unit leaves in the work directory (adapters, teacher states) is named by content and moved into place whole before its
record is stored; a record whose directory is gone is made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import task
from prefect.context import TaskRunContext

from evaluation.digests import digest_json
from evaluation.tasks import KnowledgeTask
from pipelines import work
from pipelines.progress import Reporter
from pipelines.records import BankRecord, LearningRecord, SamplingRecord
from pipelines.work import QuestionSet, UpdateRequest
from pipelines.workspace import Workspace
from student.config import UpdateRecipe
from teacher.selection import WeightedExample
from teacher.self_edit import SelfEdit


def _content_key(_: TaskRunContext, parameters: dict[str, Any]) -> str:
    return str(parameters["key"])


_STORED: dict[str, Any] = {
    "cache_key_fn": _content_key,
    "persist_result": True,
    "result_serializer": "json",
    "retries": 0,
    "log_prints": False,
}
"""A raised exception stores nothing, so the unit runs again; training is resumed, not retried."""


@task(name="sample", **_STORED)
def _sample(
    key: str, ws: Workspace, policy: str | None, prompt: str, tasks: Sequence[KnowledgeTask], n: int, seed: int
) -> SamplingRecord:
    return work.sample_edits(ws, policy, prompt, tasks, n=n, seed=seed)


@task(name="update-and-score", **_STORED)
def _bank(
    key: str, ws: Workspace, requests: Sequence[UpdateRequest], questions: QuestionSet, keep: Path | None
) -> BankRecord:
    return work.run_bank(ws, requests, questions, keep=keep)


@task(name="learn", **_STORED)
def _learn(
    key: str, ws: Workspace, policy: str | None, examples: Sequence[WeightedExample], seed: int
) -> LearningRecord:
    return work.learn_round(ws, policy, examples, seed=seed)


@task(name="joint-update", **_STORED)
def _joint(
    key: str, ws: Workspace, edits: Sequence[SelfEdit], tasks: Sequence[KnowledgeTask], seed: int, keep: Path
) -> BankRecord:
    recipe = ws.config.comparison.joint_update
    assert recipe is not None
    return work.run_joint(ws, edits, tasks, recipe, seed=seed, keep=keep)


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

    def bank(
        self, requests: Sequence[UpdateRequest], questions: QuestionSet, *, keep: bool = False
    ) -> tuple[BankRecord, Path | None]:
        """Return the scores of updates trained in one batch, and where their adapters are when `keep` is set."""
        ws = self._ws
        student = ws.config.student
        content = {
            "student": ws.student_digest,
            "recipe": student.update.model_dump(mode="json"),
            "format": student.answer_format.model_dump(mode="json"),
            "slots": student.bank_slots,
            "requests": [
                [r.document_id, r.sample, ws.tasks[r.document_id].digest, r.edit.digest if r.edit else None, r.seed]
                for r in requests
            ],
            "questions": questions,
            "keep": keep,
        }
        key = ws.key("bank", content)
        place = ws.work_dir / "adapters" / key.rsplit("/", 1)[1][:20] if keep else None
        lost = place is not None and not place.is_dir()
        self._reporter.begin(f"training and scoring {len(requests)} adapters")
        unit = _bank.with_options(refresh_cache=True) if lost else _bank
        record: BankRecord = unit(key, ws, requests, questions, place)
        self._reporter.done()
        return record, place

    def banks(self, requests: Sequence[UpdateRequest], questions: QuestionSet) -> BankRecord:
        """Return the scores of any number of updates, bank by bank, and the seconds that all of them took."""
        slots = self._ws.config.student.bank_slots
        parts = [requests[start : start + slots] for start in range(0, len(requests), slots)]
        banks = [self.bank(part, questions)[0] for part in parts]
        replicates = tuple(replicate for bank in banks for replicate in bank.replicates)
        return BankRecord(replicates=replicates, seconds=sum(bank.seconds for bank in banks))

    def learn(self, policy: str | None, examples: Sequence[WeightedExample], *, seed: int) -> LearningRecord:
        """Return the teacher's step from a saved state; the new state is in the work directory."""
        ws = self._ws
        content = {
            "policy": self._policy_content(policy),
            "examples": digest_json([[e.prompt, list(e.token_ids), e.weight, e.group_id] for e in examples]),
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
    ) -> tuple[BankRecord, Path]:
        """Return the scores of one adapter trained on all self-edits together, and where it is."""
        ws = self._ws
        content = {
            "student": ws.student_digest,
            "recipe": recipe.model_dump(mode="json"),
            "format": ws.config.student.answer_format.model_dump(mode="json"),
            "edits": [edit.digest for edit in edits],
            "tasks": [task.digest for task in tasks],
            "seed": seed,
        }
        key = ws.key("joint", content)
        place = ws.work_dir / "adapters" / key.rsplit("/", 1)[1][:20]
        self._reporter.begin(f"training one student on {len(edits)} self-edits")
        unit = _joint if place.is_dir() else _joint.with_options(refresh_cache=True)
        record: BankRecord = unit(key, ws, edits, tasks, seed, place)
        self._reporter.done()
        return record, place

    def _policy_content(self, policy: str | None) -> Any:
        """Return what identifies a teacher: its base and configuration, and its state."""
        teacher = self._ws.policy
        own_seed = self._ws.seed("policy")
        return [teacher.base_digest, teacher.config.model_dump(mode="json"), policy or f"untrained, seed {own_seed}"]
