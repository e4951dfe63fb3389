"""The training loop of a bank: one batched step for all slots, each with its own schedule, clipping and AdamW."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from student.banked_linear import FlatLayout
from student.banked_model import BankedModel
from student.batching import GroupBatches, SlotWork
from student.config import UpdateRecipe
from student.optimizer import SlotAdamW


class TrainedGroup(NamedTuple):
    """A group of slots after training."""

    flat: Tensor
    """(K, P) factors in the group's layout."""
    losses: list[list[float]]
    """For each slot the loss of each of its steps."""
    tokens: list[int]
    padded_tokens: list[int]


def initial_factors(layout: FlatLayout, recipe: UpdateRecipe, seed: int) -> Tensor:
    """Return a slot's (P,) starting point: A uniform in +-1 / sqrt(D_in) as PEFT draws it, B zero.

    All A's are drawn in float32 on the CPU, in the order of the layers, each as (rank, D_in); so they depend on seed,
    rank and shapes alone.
    """
    generator = torch.Generator().manual_seed(seed)
    flat = torch.zeros(1, layout.size)
    for name, (a, _) in layout.views(flat).items():
        d_in = layout.shapes[name].d_in
        a[0, : recipe.rank].uniform_(-(d_in**-0.5), d_in**-0.5, generator=generator)
    return flat[0]


def train_group(student: BankedModel, layout: FlatLayout, slots: Sequence[SlotWork], flat: Tensor) -> TrainedGroup:
    """Train K slots at once and return their factors and losses.

    Args:
        student: The wrapped base; its factors are detached afterwards.
        layout: Of the flat factors, its rank at least each slot's.
        slots: By falling number of steps, so that the active ones are always the first; same AdamW constants.
        flat: (K, P) starting points, overwritten. Rows and columns beyond a slot's rank are zero and stay zero: their
            gradients are products with each other.
    """
    batches = GroupBatches(slots, student.dtype, student.device)
    scales = [slot.recipe.scale for slot in slots]
    optimizer = SlotAdamW(flat, [slot.recipe for slot in slots], [slot.steps for slot in slots])
    tokens, padded = [0] * len(slots), [0] * len(slots)
    curves: list[Tensor] = []
    try:
        for step in range(len(batches)):
            batch = batches[step]
            active = flat[: batch.slots].detach().requires_grad_()
            student.attach(layout.views(active), scales[: batch.slots])
            total, losses = student.loss(batch.input_ids, batch.positions, batch.labels, batch.weights)
            (gradients,) = torch.autograd.grad(total, active)
            optimizer.step(gradients)
            curves.append(losses.new_zeros(batch.slots).index_add_(0, batch.label_slots, losses))
            for k in range(batch.slots):
                tokens[k] += int(batch.tokens[k])
                padded[k] += batch.padded_tokens
    finally:
        student.detach()
    steps = [curve.tolist() for curve in curves]
    return TrainedGroup(flat, [[row[k] for row in steps if k < len(row)] for k in range(len(slots))], tokens, padded)
