"""What the tests with a real vLLM share: one engine a process for each micro model, and random adapters."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from evaluation.common.checkpoints import MICRO_MODELS
from evaluation.engines.vllm import VllmOptions
from student.adapters import Adapter
from student.config import WHOLE_DEPTH, select_layers

needs_vllm = pytest.mark.vllm
SMALL = VllmOptions(kv_cache_gb=0.2)


def linear_shapes(model: Any) -> dict[str, tuple[int, int]]:
    """Return (D_out, D_in) of every linear layer but the output layer, by name."""
    return {
        name: (layer.out_features, layer.in_features)
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and name != "lm_head"
    }


def random_adapter(
    model: Any, seed: int, rank: int = 8, scale: float = 0.1, depth: tuple[float, float] = WHOLE_DEPTH
) -> Adapter:
    """Return an adapter on the linear layers of a depth with random factors, large enough to change most answers."""
    shapes = linear_shapes(model)
    generator = torch.Generator().manual_seed(seed)
    factors = {
        name: (
            scale * torch.randn(rank, d_in, generator=generator),
            scale * torch.randn(d_out, rank, generator=generator),
        )
        for name, (d_out, d_in) in ((n, shapes[n]) for n in select_layers(list(shapes), "all-linear", depth))
    }
    return Adapter(factors, rank, 2.0 * rank, "")


MICRO_TEACHER = str(MICRO_MODELS["micro-teacher"])
MICRO_STUDENT = str(MICRO_MODELS["micro-student"])
