"""What each slot of a bank sees in each step, laid out as the tensors of one forward pass."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from student.config import UpdateRecipe
from student.packing import pack_places
from student.sequences import TrainingSequence


class Line(NamedTuple):
    """A sequence as a forward pass sees it: the last token is only ever a label."""

    ids: NDArray[np.int64]
    """(T,) token ids."""
    labels: NDArray[np.int64]
    """(T,) the token after each place, or -1 where it carries no loss."""


@dataclass(frozen=True)
class SlotWork:
    """What one slot has to do."""

    sequences: Sequence[TrainingSequence]
    recipe: UpdateRecipe
    seed: int

    @cached_property
    def lines(self) -> tuple[Line, ...]:
        """The sequences as arrays."""
        made = []
        for sequence in self.sequences:
            tokens = np.array(sequence.tokens, dtype=np.int64)
            labels = np.where(np.array(sequence.loss_mask[1:]), tokens[1:], -1)
            made.append(Line(tokens[:-1], labels))
        return tuple(made)

    @property
    def steps(self) -> int:
        """Number of optimizer steps."""
        return self.recipe.total_steps(len(self.sequences))

    @cached_property
    def places(self) -> int:
        """Most places of a step, were its longest sequences to come together."""
        lengths = sorted((len(sequence.tokens) - 1 for sequence in self.sequences), reverse=True)
        return sum(lengths[: self.recipe.batch_size])

    def at(self, step: int) -> list[Line]:
        """Return the lines of optimizer step `step`, in [0, steps); every sequence comes once an epoch."""
        size = self.recipe.batch_size
        epoch, part = divmod(step, -(-len(self.sequences) // size))
        return [self.lines[i] for i in self._orders[epoch][part * size : (part + 1) * size]]

    @cached_property
    def _orders(self) -> list[list[int]]:
        return sequence_order(len(self.sequences), self.seed, self.recipe.epochs)


def sequence_order(count: int, seed: int, epoch_count: int) -> list[list[int]]:
    """Return the order of `count` sequences in each epoch, shuffled anew each time from one seed."""
    generator = random.Random(seed)
    orders = []
    for _ in range(epoch_count):
        order = list(range(count))
        generator.shuffle(order)
        orders.append(order)
    return orders


class BankBatch(NamedTuple):
    """The forward pass of K slots."""

    slots: int
    """K."""
    input_ids: Tensor
    """(1, K * L) packed, or (K * N, T) one sequence a row; the places of a slot stand together."""
    extra: Mapping[str, Any]
    """Further arguments of the model's forward pass."""
    positions: Tensor
    """(C,) places among all whose next token carries loss."""
    labels: Tensor
    """(C,) those tokens."""
    label_slots: Tensor
    """(C,) slot of each label, ascending."""
    tokens: list[int]
    """Of each slot, places that are not padding."""
    places: int
    """Of each slot, padding included."""


def lay_out(lines: Sequence[Sequence[Line]], device: torch.device, *, packed: bool) -> BankBatch:
    """Return one forward pass over the lines of K slots.

    Args:
        lines: For each slot at least one line.
        device: Where the tensors go.
        packed: Lay a slot's lines end to end, for models that take packed rows; else one line a row, right-padded.
    """
    flat = [line for slot in lines for line in slot]
    lengths = [[len(line.ids) for line in slot] for slot in lines]
    extra: dict[str, Any] = {}
    if packed:
        found = pack_places(lengths, device)
        shape, places, starts = (1, len(lines) * found.places), found.places, found.starts
        position_ids = torch.from_numpy(found.position_ids)[None].to(device)
        extra = {"position_ids": position_ids, "packing": found.packing}
    else:
        most, width = max(map(len, lengths)), max(map(max, lengths))
        shape, places = (len(lines) * most, width), most * width
        rows = [k * most + i for k, slot in enumerate(lengths) for i in range(len(slot))]
        starts = np.array(rows, dtype=np.int64) * width
    sizes = np.array([len(line.ids) for line in flat], dtype=np.int64)
    at = np.repeat(starts - np.cumsum(sizes) + sizes, sizes) + np.arange(int(sizes.sum()))
    ids = np.zeros(shape[0] * shape[1], dtype=np.int64)
    ids[at] = np.concatenate([line.ids for line in flat])
    targets = np.concatenate([line.labels for line in flat])
    kept = targets >= 0
    positions = at[kept]
    return BankBatch(
        slots=len(lines),
        input_ids=torch.from_numpy(ids).view(shape).to(device),
        extra=extra,
        positions=torch.from_numpy(positions).to(device),
        labels=torch.from_numpy(targets[kept]).to(device),
        label_slots=torch.from_numpy(positions // places).to(device),
        tokens=[sum(slot) for slot in lengths],
        places=places,
    )
