"""Records of runs that never happened, small and valid, to build tests from."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from evaluation.common.checkpoints import MICRO_MODELS
from evaluation.domains import load_split
from evaluation.retention import retention_probes
from evaluation.statistics import Interval
from evaluation.tasks import Document, KnowledgeTask, Question
from pipelines.loop.loop import Loop
from pipelines.records import (
    Candidate,
    Edit,
    Learning,
    Round,
    RunResult,
    ScoredUpdate,
    VariantComparison,
    VariantScores,
)
from pipelines.reports.console import Reporter
from pipelines.settings import load
from pipelines.train_teacher.config import TrainTeacherConfig
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


def make_edit(document_id: str = "doc-0", index: int = 0, text: str = "It is a text.", **changes: Any) -> Edit:
    """Return an edit of one line."""
    if "edit" not in changes:
        changes["edit"] = SelfEdit(implications=(Implication(text=text),))
    fields: dict[str, Any] = {"token_ids": (5, 6, 7), "finish_reason": "stop"} | changes
    return Edit(document_id=document_id, index=index, text=text, **fields)


def make_replicate(document_id: str = "doc-0", index: int = 0, **changes: Any) -> ScoredUpdate:
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
    return ScoredUpdate(document_id=document_id, index=index, **fields)


def make_candidate(document_id: str = "doc-0", index: int = 0, reward: float = 0.5, **changes: Any) -> Candidate:
    """Return a candidate that has a reward."""
    fields: dict[str, Any] = {"replicates": (make_replicate(document_id, index),), "base_reward": 0.25} | changes
    return Candidate(edit=make_edit(document_id, index), reward=reward, **fields)


def make_unparsable(document_id: str = "doc-0", index: int = 9) -> Candidate:
    """Return a candidate whose text holds no self-edit."""
    edit = make_edit(document_id, index, text="???", edit=None, rejection="empty", dropped={"no letters": 1})
    return Candidate(edit=edit, reason=RewardFailure.PARSE_FAILED, base_reward=0.25)


def make_failed_update(document_id: str = "doc-0", index: int = 8) -> Candidate:
    """Return a candidate whose update failed."""
    failed = ScoredUpdate(
        document_id=document_id, index=index, seed=12, failure=RewardFailure.UPDATE_FAILED, detail="loss is not finite"
    )
    return Candidate(
        edit=make_edit(document_id, index), replicates=(failed,), reason=RewardFailure.UPDATE_FAILED, base_reward=0.25
    )


def make_learning(policy_digest: str = "p" * 64, **changes: Any) -> Learning:
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
    return Learning(policy_digest=policy_digest, **fields)


def make_round(number: int = 0, candidates: tuple[Candidate, ...] | None = None, **changes: Any) -> Round:
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
    return Round(round=number, candidates=candidates, **fields)


def make_variant(name: str = "trained_teacher", **changes: Any) -> VariantScores:
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
    return VariantScores(name=name, **fields)


def make_comparison() -> VariantComparison:
    """Return two variants and their difference."""
    return VariantComparison(
        documents=8,
        variants={
            "base": Interval(mean=0.25, low=0.125, high=0.375),
            "trained_teacher": Interval(mean=0.5, low=0.375, high=0.625),
        },
        gains={"trained_minus_base": Interval(mean=0.25, low=0.125, high=0.375)},
        confidence=0.95,
        minimum_detectable={"trained_minus_base": 0.1875},
    )


def make_result(run_id: str, comparison: VariantComparison | None = None) -> RunResult:
    """Return the result that goes with a comparison."""
    return RunResult(
        **dict(comparison or make_comparison()),
        rounds=({"mean_reward": 0.375},),
        seconds={"train": 3.5, "compare": 1.5},
        mlflow_run_id=run_id,
        config_digest="c" * 64,
        code_digest="d" * 64,
        seed=0,
    )


def make_adapter(value: float) -> Adapter:
    """Return a LoRA adapter of one layer (R = 2, D_in = 4, D_out = 3), all of one value."""
    return Adapter({"layer": (torch.full((2, 4), value), torch.full((3, 2), value))}, 2, 4.0, "b" * 64)


CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SMALL = (
    "threads=1",
    "data.train_documents=5",
    "data.development_documents=1",
    "data.test_documents=2",
    "loop={rounds: 2, documents: 2}",
    "teacher.samples=2",
    "teacher.sampling.max_new_tokens=40",
    "student.update.epochs=1",
)
"""Overrides that bring the demo to the size of a test."""


def small_config(*overrides: str) -> TrainTeacherConfig:
    """Return the demo's configuration at the size of a test."""
    return load(CONFIGS / "demo.yaml", TrainTeacherConfig, [*SMALL, *overrides])


def grid_config(place: Path, *overrides: str) -> TrainTeacherConfig:
    """Return a configuration of four small grid tasks with a random model, saved in `place`, in both roles."""
    student = place / "student"
    if not student.exists():
        save_tiny_model(student)
    settings = [
        "threads=1",
        "data={type: microgrids, train_documents: 4, development_documents: 1, test_documents: 4}",
        f"student.model={student}",
        f"teacher.model={student}",
        "student.update.step_budget=10",
        "comparison={drafts: 1, redraws: 0, retention_probes: 0, resamples: 100}",
        "loop={rounds: 1, documents: 2}",
    ]
    return load(CONFIGS / "grids-demo.yaml", TrainTeacherConfig, [*settings, *overrides])


def make_loop(config: TrainTeacherConfig, place: Path) -> Loop:
    """Return the loop of a configuration on its own documents; models stay open for other tests."""
    probes = retention_probes(config.data, config.comparison.retention_probes, config.seed_of("retention"))
    tasks = [task for side in load_split(config.data) for task in side]
    return Loop(config, place, tasks, probes, Reporter(Console(file=io.StringIO()), 10))


def save_tiny_model(place: Path, *, silent: bool = False) -> Path:
    """Save a random model with the micro tokenizer; a silent one ends every completion at once."""
    tokenizer = AutoTokenizer.from_pretrained(MICRO_MODELS["micro-teacher"])
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.pad_token_id if silent else tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = LlamaForCausalLM(config)
    if silent:  # all logits are then equal, and the first token, the one that ends, is the likeliest
        torch.nn.init.zeros_(model.model.norm.weight)
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place
