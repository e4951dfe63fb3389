"""A small suite on the micro student, subjects to compare on it, and adapters that need no training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from evaluation.common.checkpoints import load_checkpoint, model_digest
from evaluation.gate.checks import PairedScore
from pipelines.check_regression.compare import current_pins
from pipelines.check_regression.suite import RegressionSuite, load_content, write_pins
from pipelines.settings import load, to_yaml
from pipelines.train_teacher.config import TrainTeacherConfig
from student.adapters import Adapter, save_adapter
from student.bank.bank import LoraBank
from student.config import UpdateRecipe

ROOT = Path(__file__).resolve().parents[3]
DEMO = ROOT / "configs" / "demo.yaml"
SHIPPED = ROOT / "configs" / "suites" / "micro-world.yaml"
DATA = {"type": "microworld", "train_documents": 1, "development_documents": 0}
ADAPTATION: dict[str, Any] = {
    "edits": 1,
    "teacher": {"model": "micro-teacher", "sampling": {"max_new_tokens": 128}},
    "update": {"batch_size": 16, "target_modules": ["gate_proj", "up_proj", "down_proj"], "depth": [0.5, 1.0]},
}
"""How variants are scored on a small suite: the demo's recipe."""


def small_suite(place: Path, *, pin: bool = True, **changes: Any) -> Path:
    """Write a suite that mostly asks what the base knows, so that damage shows without any training."""
    fields: dict[str, Any] = {
        "name": "small",
        "student": "micro-student",
        "threads": 1,
        "data": {**DATA, "test_documents": 60},
        "questions_per_document": 1,
        "probes": 60,
        "limits": {"resamples": 1000},
    }
    path = place / "suite.yaml"
    path.write_text("# A header that stays.\n" + yaml.safe_dump(fields | changes, sort_keys=False), encoding="utf-8")
    if pin:
        suite = load(path, RegressionSuite)
        write_pins(path, current_pins(suite, load_content(suite)))
    return path


def adaptation_suite(place: Path, *, pin: bool = True, **changes: Any) -> Path:
    """Write a suite for variants, with few documents and wide limits."""
    fields: dict[str, Any] = {
        "data": {**DATA, "test_documents": 20},
        "questions_per_document": 4,
        "probes": 6,
        "limits": {"resamples": 1000, "tolerance": 0.05, "detectable": 0.3, "probe_detectable": 0.3},
        "adaptation": ADAPTATION,
    }
    return small_suite(place, pin=pin, **(fields | changes))


def run_config(place: Path, *overrides: str) -> Path:
    """Write a run's configuration: the demo with changes."""
    place.write_text(to_yaml(load(DEMO, TrainTeacherConfig, overrides)), encoding="utf-8")
    return place


def student_digest() -> str:
    return model_digest(load_checkpoint("micro-student").model)


def made_adapter(scale: float, seed: int = 0) -> Adapter:
    """Return an adapter of all layers of the micro student; `scale` 0 changes nothing, 1 ruins it."""
    checkpoint = load_checkpoint("micro-student")
    generator = torch.Generator().manual_seed(seed)
    with LoraBank(checkpoint.model) as bank:
        start = bank.no_change(UpdateRecipe(rank=4, alpha=8.0), seed)
    factors = {name: (a, scale * torch.randn(b.shape, generator=generator)) for name, (a, b) in start.factors.items()}
    return Adapter(factors, start.rank, start.alpha, start.base_digest)


def saved_adapter(place: Path, scale: float) -> Path:
    return save_adapter(made_adapter(scale), place, "micro-student")


def changed(differences: Sequence[float]) -> tuple[PairedScore, ...]:
    """Return paired scores with these differences, one per document."""
    return tuple(
        PairedScore(document=f"d{i:03d}", candidate=(1 + d) / 2, reference=(1 - d) / 2)
        for i, d in enumerate(differences)
    )
