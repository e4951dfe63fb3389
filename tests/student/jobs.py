"""Jobs for banks, of random tokens."""

from __future__ import annotations

import random
from typing import Any

import torch

from student.adapters import Adapter
from student.config import UpdateRecipe
from student.sequences import TrainingSequence
from student.updates import UpdateJob, UpdateOutcome, UpdateResult


def sequences(seed: int, lengths: list[int], answers_only: bool = False) -> tuple[TrainingSequence, ...]:
    """Return random sequences of the given lengths, with loss on all tokens or on the second half."""
    generator = random.Random(seed)
    return tuple(
        TrainingSequence(
            tuple(generator.randrange(260) for _ in range(n)), tuple(not answers_only or i >= n // 2 for i in range(n))
        )
        for n in lengths
    )


def mixed_jobs() -> list[UpdateJob]:
    """Four slots that differ in everything a self-edit or a recipe may choose."""
    recipes = [
        UpdateRecipe(epochs=3, batch_size=4),
        UpdateRecipe(rank=2, alpha=5.0, learning_rate=2e-3, epochs=5, batch_size=2, warmup_steps=3, weight_decay=0.1),
        UpdateRecipe(rank=4, learning_rate=1e-2, epochs=4, batch_size=3, schedule="constant", max_gradient_norm=None),
        UpdateRecipe(rank=1, learning_rate=1e-3, epochs=9, batch_size=8, max_steps=5, max_gradient_norm=0.1),
    ]
    lengths = [[5, 9, 3, 7, 4], [12, 2, 6], [4, 4, 4, 4, 4, 4, 4], [8, 11]]
    return [
        UpdateJob(f"job-{k}", sequences(k, lengths[k], answers_only=k in (1, 3)), recipe, seed=10 + k)
        for k, recipe in enumerate(recipes)
    ]


def adapter_of(result: UpdateResult) -> Adapter:
    """Return the adapter of a job that went well."""
    assert result.outcome is UpdateOutcome.OK, result.detail
    assert result.adapter is not None
    return result.adapter


def deltas(factors: Any, scale: float) -> torch.Tensor:
    """Return `scale` B A of all layers in one vector."""
    return torch.cat([scale * (b.double() @ a.double()).flatten() for _, (a, b) in sorted(factors.items())])


def same_bits(left: Adapter, right: Adapter) -> bool:
    """Return whether two adapters are equal to the bit."""
    return all(torch.equal(x, y) for n in left.factors for x, y in zip(left.factors[n], right.factors[n], strict=True))
