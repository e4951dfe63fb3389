"""The demo's configuration at a size for tests, its units of work, and a model that is smaller still."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from rich.console import Console
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from evaluation.checkpoints import MICRO_MODELS
from pipelines.config import RunConfig, load_config
from pipelines.progress import Reporter
from pipelines.units import Units
from pipelines.workspace import Workspace

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo.yaml"
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


def small_config(*overrides: str) -> RunConfig:
    return load_config(DEMO, [*SMALL, *overrides])


def units_of(ws: Workspace) -> Units:
    return Units(ws, Reporter(Console(file=io.StringIO()), 10))


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
