"""Records of runs that never happened, small and valid, to build tests from."""

from __future__ import annotations

from typing import Any

import torch

from evaluation.tasks import Document, KnowledgeTask, Question
from pipelines.records import CandidateRecord, EditRecord, Interval, LearningRecord, ReplicateRecord, RoundRecord
from pipelines.results import ComparisonRecord, RunResult, VariantRecord
from student.adapters import Adapter
from teacher.rewards import RewardFailure
from teacher.self_edit import Implication, SelfEdit


def make_task(document_id: str = "doc-0", questions: int = 2) -> KnowledgeTask:
    """Return a task whose text and questions follow from its id."""
    document = Document(
        id=document_id, title=f"About {document_id}", text=f"{document_id} is a text.", source="made up"
    )
    asked = tuple(Question(question=f"What is {document_id}, part {i}?", answer=f"text {i}") for i in range(questions))
    return KnowledgeTask(document=document, questions=asked)


def make_edit(document_id: str = "doc-0", index: int = 0, text: str = "It is a text.", **changes: Any) -> EditRecord:
    """Return an edit of one line."""
    if "edit" not in changes:
        changes["edit"] = SelfEdit(implications=(Implication(text=text),))
    fields: dict[str, Any] = {"token_ids": (5, 6, 7), "finish_reason": "stop"} | changes
    return EditRecord(document_id=document_id, index=index, text=text, **fields)


def make_replicate(document_id: str = "doc-0", index: int = 0, **changes: Any) -> ReplicateRecord:
    """Return scores of two questions, one of them right."""
    fields: dict[str, Any] = {
        "seed": 11,
        "adapter_digest": "a" * 64,
        "exact": (True, False),
        "probability": (0.75, 0.25),
        "steps": 4,
        "tokens": 120,
        "padded_tokens": 128,
        "first_loss": 2.0,
        "last_loss": 0.5,
    } | changes
    return ReplicateRecord(document_id=document_id, index=index, **fields)


def make_candidate(document_id: str = "doc-0", index: int = 0, reward: float = 0.5, **changes: Any) -> CandidateRecord:
    """Return a candidate that has a reward."""
    fields: dict[str, Any] = {"replicates": (make_replicate(document_id, index),), "base_reward": 0.25} | changes
    return CandidateRecord(edit=make_edit(document_id, index), reward=reward, **fields)


def make_unparsable(document_id: str = "doc-0", index: int = 9) -> CandidateRecord:
    """Return a candidate whose text holds no self-edit."""
    edit = make_edit(document_id, index, text="???", edit=None, rejection="empty", dropped={"no letters": 1})
    return CandidateRecord(edit=edit, reason=RewardFailure.PARSE_FAILED, base_reward=0.25)


def make_failed_update(document_id: str = "doc-0", index: int = 8) -> CandidateRecord:
    """Return a candidate whose update failed."""
    failed = ReplicateRecord(
        document_id=document_id, index=index, seed=12, failure=RewardFailure.UPDATE_FAILED, detail="loss is not finite"
    )
    return CandidateRecord(
        edit=make_edit(document_id, index), replicates=(failed,), reason=RewardFailure.UPDATE_FAILED, base_reward=0.25
    )


def make_learning(policy_digest: str = "p" * 64, **changes: Any) -> LearningRecord:
    """Return a step of the teacher."""
    fields: dict[str, Any] = {
        "policy": policy_digest[:20],
        "examples": 3,
        "tokens": 90,
        "loss": 0.5,
        "kl": 0.125,
        "entropy": 1.5,
        "clip_fraction": 0.0,
        "gradient_norm": 2.0,
        "seconds": 0.5,
    } | changes
    return LearningRecord(policy_digest=policy_digest, **fields)


def make_round(number: int = 0, candidates: tuple[CandidateRecord, ...] | None = None, **changes: Any) -> RoundRecord:
    """Return a round of two candidates with rewards and one without a self-edit."""
    if candidates is None:
        candidates = (make_candidate(index=0), make_candidate(index=1, reward=0.25), make_unparsable())
    rewards = [c.reward for c in candidates if c.reward is not None]
    fields: dict[str, Any] = {
        "document_ids": tuple(sorted({c.edit.document_id for c in candidates})),
        "mean_reward": sum(rewards) / len(rewards) if rewards else None,
        "base_reward": 0.25,
        "learning": make_learning(f"{number:064x}"),
        "seconds": {"sample": 1.0, "update": 2.0, "learn": 0.5},
        "notes": {"share of facts (%)": 40.0},
    } | changes
    return RoundRecord(round=number, candidates=candidates, **fields)


def make_variant(name: str = "trained_teacher", **changes: Any) -> VariantRecord:
    """Return a variant with one candidate."""
    fields: dict[str, Any] = {
        "label": name.replace("_", " "),
        "candidates": (make_candidate(),),
        "accuracy": {"doc-0": 0.5},
        "phrasings": {"who (short)": 0.5},
        "failures": {"update_failed": 2},
        "edit_tokens": 3.0,
        "training_tokens": 120.0,
    } | changes
    return VariantRecord(name=name, **fields)


def make_comparison() -> ComparisonRecord:
    """Return two variants and their difference."""
    return ComparisonRecord(
        documents=8,
        variants={
            "base": Interval(mean=0.25, low=0.125, high=0.375),
            "trained_teacher": Interval(mean=0.5, low=0.375, high=0.625),
        },
        gains={"trained_minus_base": Interval(mean=0.25, low=0.125, high=0.375)},
        confidence=0.95,
        minimum_detectable={"trained_minus_base": 0.1875},
    )


def make_result(run_id: str, comparison: ComparisonRecord | None = None) -> RunResult:
    """Return the result that goes with a comparison."""
    comparison = comparison or make_comparison()
    return RunResult(
        variants=comparison.variants,
        gains=comparison.gains,
        rounds=({"mean_reward": 0.375},),
        seconds={"train": 3.5, "compare": 1.5},
        documents=comparison.documents,
        mlflow_run_id=run_id,
        config_digest="c" * 64,
        code_digest="d" * 64,
        seed=0,
    )


def make_adapter(value: float) -> Adapter:
    """Return a LoRA adapter of one layer (R = 2, D_in = 4, D_out = 3), all of one value."""
    return Adapter({"layer": (torch.full((2, 4), value), torch.full((3, 2), value))}, 2, 4.0, "b" * 64)
