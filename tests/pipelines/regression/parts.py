"""A small suite on the micro student, and adapters that change it in known ways without any training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

from evaluation.checkpoints import load_checkpoint, model_digest
from pipelines.config import load_config, to_yaml
from pipelines.regression.pins import pins_of, write_pins
from pipelines.regression.scoring import teacher_digest
from pipelines.regression.suite import load_content, load_suite
from student.adapters import Adapter, save_adapter
from student.config import UpdateRecipe
from student.lora_bank import LoraBank
from tests.pipelines.small import DEMO

SUITES = Path(__file__).resolve().parents[3] / "configs" / "suites"
SHIPPED = SUITES / "micro-world.yaml"


def small_suite(place: Path, *, pin: bool = True, **changes: Any) -> Path:
    """Write a suite that mostly asks what the base knows, so that damage shows without any training."""
    fields: dict[str, Any] = {
        "name": "small",
        "student": "micro-student",
        "threads": 1,
        "data": {"type": "microworld", "train_documents": 1, "development_documents": 0, "test_documents": 60},
        "questions_per_document": 1,
        "probes": 60,
        "limits": {"resamples": 1000},
    }
    path = place / "suite.yaml"
    path.write_text("# A header that stays.\n" + yaml.safe_dump(fields | changes, sort_keys=False), encoding="utf-8")
    if pin:
        suite = load_suite(path)
        write_pins(path, pins_of(load_content(suite), student_digest(), teacher_digest(suite)))
    return path


ADAPTATION: dict[str, Any] = {
    "edits": 1,
    "teacher": {"model": "micro-teacher", "sampling": {"max_new_tokens": 128}},
    "update": {"batch_size": 16, "target_modules": ["gate_proj", "up_proj", "down_proj"], "depth": [0.5, 1.0]},
}
"""How ways of adapting are measured on a small suite: the demo's recipe."""


def ways_suite(place: Path, *, pin: bool = True, **changes: Any) -> Path:
    """Write a suite for ways of adapting, with few documents and wide limits."""
    fields: dict[str, Any] = {
        "data": {"type": "microworld", "train_documents": 1, "development_documents": 0, "test_documents": 20},
        "questions_per_document": 4,
        "probes": 6,
        "limits": {"resamples": 1000, "tolerance": 0.05, "detectable": 0.3, "probe_detectable": 0.3},
        "adaptation": ADAPTATION,
    }
    return small_suite(place, pin=pin, **(fields | changes))


def run_config(place: Path, *overrides: str) -> Path:
    """Write a run's configuration: the demo with changes."""
    place.write_text(to_yaml(load_config(DEMO, overrides)), encoding="utf-8")
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


def saved_adapter(place: Path, scale: float, seed: int = 0) -> Path:
    return save_adapter(made_adapter(scale, seed), place, "micro-student")
