"""Which sequences each slot of a bank sees in each step, as tensors that a step only has to index."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from student.config import UpdateRecipe
from student.sequences import TrainingSequence


class SlotWork(NamedTuple):
    """What one slot of a group has to do; `steps` is the group's sort key, longest first."""

    sequences: Sequence[TrainingSequence]
    recipe: UpdateRecipe
    seed: int

    @property
    def steps(self) -> int:
        """Number of optimizer steps."""
        return self.recipe.total_steps(len(self.sequences))

    @property
    def rows(self) -> int:
        """Sequences in a full step."""
        return min(self.recipe.batch_size, len(self.sequences))

    @property
    def width(self) -> int:
        """Places that the longest sequence takes: its last token is only ever a label."""
        return max(len(sequence.tokens) for sequence in self.sequences) - 1


class StepBatch(NamedTuple):
    """One step of the active slots, which are the first K of the group."""

    slots: int
    """K."""
    input_ids: Tensor
    """(K * N, T) token ids, right-padded, rows grouped by slot."""
    positions: Tensor
    """(L,) places among the K * N * T whose next token carries loss."""
    labels: Tensor
    """(L,) those tokens."""
    label_slots: Tensor
    """(L,) slot of each label."""
    weights: Tensor
    """(L,) 1 / number of the slot's labels in this step, so that a slot's sum is its token mean."""
    tokens: np.ndarray[tuple[int], np.dtype[np.int64]]
    """(K,) places of each slot that are not padding."""
    padded_tokens: int
    """Places of each slot, padding included: N * T."""


def sequence_order(count: int, seed: int, epoch_count: int) -> list[list[int]]:
    """Return the order of `count` sequences in each epoch, shuffled anew each time from one seed."""
    generator = random.Random(seed)
    orders = []
    for _ in range(epoch_count):
        order = list(range(count))
        generator.shuffle(order)
        orders.append(order)
    return orders


class GroupBatches:
    """The steps of a group of slots, sorted so that those still active are always the first ones."""

    def __init__(self, slots: Sequence[SlotWork], dtype: torch.dtype, device: torch.device) -> None:
        """Pad all sequences once and lay out the steps.

        Args:
            slots: K slots by falling number of steps.
            dtype: Of the label weights.
            device: Where the batches go.
        """
        self._dtype, self._device = dtype, device
        sequences = [sequence for slot in slots for sequence in slot.sequences]
        width = max(slot.width for slot in slots)
        # Row 0 is the empty sequence that fills up steps in which a slot has fewer sequences than another.
        self._ids = np.zeros((len(sequences) + 1, width), dtype=np.int64)
        self._labels = np.full((len(sequences) + 1, width), -1, dtype=np.int64)
        self._lengths = np.zeros(len(sequences) + 1, dtype=np.int64)
        for i, sequence in enumerate(sequences, start=1):
            n = len(sequence.tokens) - 1
            self._ids[i, :n] = sequence.tokens[:-1]
            self._labels[i, :n] = np.where(sequence.loss_mask[1:], sequence.tokens[1:], -1)
            self._lengths[i] = n
        self._rows = self._lay_out(slots)
        self._active = [sum(slot.steps > step for slot in slots) for step in range(self._rows.shape[0])]

    @staticmethod
    def _lay_out(slots: Sequence[SlotWork]) -> np.ndarray[tuple[int, int, int], np.dtype[np.int64]]:
        """Return (steps, K, N) indices into the padded sequences; 0 is no sequence."""
        rows = np.zeros((slots[0].steps, len(slots), max(slot.rows for slot in slots)), dtype=np.int64)
        first = 1
        for k, slot in enumerate(slots):
            size, count, step = slot.recipe.batch_size, len(slot.sequences), 0
            steps_per_epoch = -(-count // size)
            for order in sequence_order(count, slot.seed, -(-slot.steps // steps_per_epoch)):
                for start in range(0, count, size):
                    if step < slot.steps:
                        part = order[start : start + size]
                        rows[step, k, : len(part)] = np.asarray(part) + first
                        step += 1
            first += count
        return rows

    def __len__(self) -> int:
        """Return the number of steps of the longest slot."""
        return len(self._active)

    def __getitem__(self, step: int) -> StepBatch:
        """Return a step, padded to its longest sequence and its fullest slot."""
        k = self._active[step]
        rows = self._rows[step, :k]
        rows = rows[:, : int((rows > 0).sum(1).max())]
        lengths = self._lengths[rows]
        width = int(lengths.max())
        targets = self._labels[rows.reshape(-1), :width].reshape(-1)
        positions = np.flatnonzero(targets >= 0)
        places = rows.shape[1] * width
        owners = positions // places
        counts = np.bincount(owners, minlength=k)
        device = self._device
        return StepBatch(
            slots=k,
            input_ids=torch.from_numpy(self._ids[rows.reshape(-1), :width]).to(device),
            positions=torch.from_numpy(positions).to(device),
            labels=torch.from_numpy(targets[positions]).to(device),
            label_slots=torch.from_numpy(owners).to(device),
            weights=torch.from_numpy(1.0 / counts[owners]).to(device, self._dtype),
            tokens=lengths.sum(1),
            padded_tokens=places,
        )
