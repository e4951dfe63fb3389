from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from student.batching import BankBatch, Line, SlotWork, lay_out, sequence_order
from student.config import UpdateRecipe
from student.sequences import TrainingSequence

CPU = torch.device("cpu")
LENGTHS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=5)


def _work(lengths: list[int], seed: int = 0, **recipe: int) -> SlotWork:
    sequences = [TrainingSequence(tuple(100 * i + j for j in range(n)), (True,) * n) for i, n in enumerate(lengths, 1)]
    return SlotWork(sequences, UpdateRecipe.model_validate(recipe), seed)


def _lines(lengths: list[list[int]]) -> list[list[Line]]:
    """Return lines whose token ids tell slot, line and place, each with a label on every second place."""
    made: list[list[Line]] = []
    for k, slot in enumerate(lengths):
        made.append([])
        for i, n in enumerate(slot):
            ids = 10_000 * (k + 1) + 100 * (i + 1) + np.arange(n, dtype=np.int64)
            made[-1].append(Line(ids, np.where(np.arange(n) % 2 == (n - 1) % 2, ids + 1, -1)))
    return made


def test_slot_work_steps_cover_every_sequence_once_an_epoch() -> None:
    work = _work([5, 3, 4, 2, 6], epochs=3, batch_size=2)
    assert work.steps == 9
    shown = [int(line.ids[0]) // 100 for step in range(work.steps) for line in work.at(step)]
    assert len(shown) == 15
    for epoch in range(3):
        assert sorted(shown[5 * epoch : 5 * epoch + 5]) == [1, 2, 3, 4, 5]
    assert [len(work.at(step)) for step in range(3)] == [2, 2, 1]


def test_slot_work_places_bound_every_step() -> None:
    work = _work([5, 3, 4, 2, 6], epochs=20, batch_size=2)
    assert work.places == 5 + 4
    assert max(sum(len(line.ids) for line in work.at(step)) for step in range(work.steps)) == work.places


def test_slot_work_lines_have_labels_where_the_mask_says_so() -> None:
    sequence = TrainingSequence((7, 8, 9, 10), (True, False, True, True))
    (line,) = SlotWork([sequence], UpdateRecipe(epochs=1), 0).at(0)
    assert line.ids.tolist() == [7, 8, 9]
    assert line.labels.tolist() == [-1, 9, 10]


@pytest.mark.parametrize("packed", [True, False])
@given(lengths=LENGTHS)
@settings(max_examples=100, deadline=None)
def test_lay_out_labels_stand_right_of_their_tokens(packed: bool, lengths: list[list[int]]) -> None:
    batch = lay_out(_lines(lengths), CPU, packed=packed)
    flat = batch.input_ids.flatten()
    assert (flat[batch.positions] + 1).equal(batch.labels)
    assert (batch.labels // 10_000 - 1).equal(batch.label_slots)
    assert batch.label_slots.tolist() == sorted(batch.label_slots.tolist())
    assert len(batch.labels) == sum(-(-n // 2) for slot in lengths for n in slot)
    assert batch.tokens == [sum(slot) for slot in lengths]
    assert batch.places * batch.slots == len(flat)
    slots = flat.view(len(lengths), -1)
    for k, row in enumerate(slots.tolist()):
        assert [token // 10_000 for token in row if token] == [k + 1] * batch.tokens[k]


@given(lengths=LENGTHS)
@settings(max_examples=100, deadline=None)
def test_lay_out_packed_has_no_padding_in_the_fullest_slot_and_restarts_positions(lengths: list[list[int]]) -> None:
    batch = lay_out(_lines(lengths), CPU, packed=True)
    assert batch.places == max(batch.tokens)
    ids, positions = batch.input_ids[0], batch.extra["position_ids"][0]
    assert (positions[ids > 0] == ids[ids > 0] % 100).all()


@given(lengths=LENGTHS)
@settings(max_examples=100, deadline=None)
def test_packing_takes_places_apart_and_puts_them_together(lengths: list[list[int]]) -> None:
    batch: BankBatch = lay_out(_lines(lengths), CPU, packed=True)
    packing: Any = batch.extra["packing"]
    apart = batch.input_ids[0][packing.gather].view(packing.rows, packing.width)
    expected = [line for slot in _lines(lengths) for line in slot]
    for row, line in zip(apart.tolist(), expected, strict=True):
        assert row[: len(line.ids)] == line.ids.tolist()
        assert set(row[len(line.ids) :]) <= {int(line.ids[0])}
    together = apart.flatten()[packing.scatter]
    real = ~packing.scatter_pads.flatten()
    assert together[real].equal(batch.input_ids[0][real])
    assert int(real.sum()) == sum(batch.tokens)
    # What fills a slot up is its own: a slot that is not finite reaches no other one.
    assert (together.view(len(lengths), -1) // 10_000 == torch.arange(1, len(lengths) + 1)[:, None]).all()


def test_sequence_order_is_seeded_and_differs_between_epochs() -> None:
    orders = sequence_order(20, 3, 2)
    assert orders == sequence_order(20, 3, 2)
    assert orders[0] != orders[1]
    assert orders[:1] == sequence_order(20, 3, 1)
    assert orders != sequence_order(20, 4, 2)
