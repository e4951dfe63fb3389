from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from student.batching import GroupBatches, SlotWork, sequence_order
from student.config import UpdateRecipe
from student.sequences import TrainingSequence


def _work(lengths: list[int], seed: int = 0, **recipe: int) -> SlotWork:
    sequences = [TrainingSequence(tuple(100 * i + j for j in range(n)), (True,) * n) for i, n in enumerate(lengths, 1)]
    return SlotWork(sequences, UpdateRecipe.model_validate(recipe), seed)


def _batches(slots: list[SlotWork]) -> GroupBatches:
    return GroupBatches(slots, torch.float64, torch.device("cpu"))


def test_group_batches_pad_to_the_longest_of_the_step_and_drop_finished_slots() -> None:
    batches = _batches([_work([5, 3], epochs=2, batch_size=1), _work([4], epochs=1, batch_size=8)])
    assert len(batches) == 4
    assert [batches[i].slots for i in range(4)] == [2, 1, 1, 1]
    widths = {batches[i].input_ids.shape[1] for i in range(1, 4)}
    assert widths == {2, 4}


def test_group_batches_labels_follow_their_places() -> None:
    sequence = TrainingSequence((7, 8, 9, 10), (True, False, True, True))
    batch = _batches([SlotWork([sequence], UpdateRecipe(epochs=1), 0)])[0]
    assert batch.input_ids.tolist() == [[7, 8, 9]]
    assert batch.positions.tolist() == [1, 2]
    assert batch.labels.tolist() == [9, 10]
    assert batch.weights.tolist() == [0.5, 0.5]


@given(
    lengths=st.lists(st.lists(st.integers(2, 9), min_size=1, max_size=7), min_size=1, max_size=4),
    batch_size=st.integers(1, 4),
    epochs=st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_group_batches_show_every_sequence_once_an_epoch(
    lengths: list[list[int]], batch_size: int, epochs: int
) -> None:
    slots = [_work(part, seed, batch_size=batch_size, epochs=epochs) for seed, part in enumerate(lengths)]
    slots.sort(key=lambda slot: -slot.steps)
    batches = _batches(slots)
    seen: list[list[int]] = [[] for _ in slots]
    for step in range(len(batches)):
        batch = batches[step]
        rows = batch.input_ids.view(batch.slots, -1, batch.input_ids.shape[1])
        assert batch.padded_tokens == rows.shape[1] * rows.shape[2]
        sums = torch.zeros(batch.slots, dtype=torch.float64).index_add_(0, batch.label_slots, batch.weights)
        assert sums.tolist() == pytest.approx([1.0] * batch.slots)
        for k in range(batch.slots):
            seen[k] += [int(row[0]) // 100 for row in rows[k] if int(row[0]) >= 100]
    for slot, shown in zip(slots, seen, strict=True):
        count = len(slot.sequences)
        for epoch in range(epochs):
            assert sorted(shown[epoch * count : (epoch + 1) * count]) == list(range(1, count + 1))


def test_sequence_order_is_seeded_and_differs_between_epochs() -> None:
    orders = sequence_order(20, 3, 2)
    assert orders == sequence_order(20, 3, 2)
    assert orders[0] != orders[1]
    assert orders[:1] == sequence_order(20, 3, 1)
    assert orders != sequence_order(20, 4, 2)
