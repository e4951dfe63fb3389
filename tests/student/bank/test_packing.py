"""The forward pass of many slots."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from student.bank.packing import BankBatch, LabelledTokens, lay_out, packed_attention

CPU = torch.device("cpu")
LENGTHS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=5)


def _lines(lengths: list[list[int]]) -> list[list[LabelledTokens]]:
    """Return lines whose token ids tell slot, line and place, each with a label on every second place."""
    made: list[list[LabelledTokens]] = []
    for k, slot in enumerate(lengths):
        made.append([])
        for i, n in enumerate(slot):
            ids = 10_000 * (k + 1) + 100 * (i + 1) + np.arange(n, dtype=np.int64)
            made[-1].append(LabelledTokens(ids, np.where(np.arange(n) % 2 == (n - 1) % 2, ids + 1, -1)))
    return made


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
    assert batch.places * len(lengths) == len(flat)
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


@pytest.mark.parametrize("window", [None, 3])
def test_attention_of_queries_that_share_keys_equals_that_with_repeated_keys(window: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    extra = lay_out(_lines([[5, 9, 1], [7]]), CPU, packed=True).extra
    q, k, v = (
        torch.randn(1, heads, 30, 8, generator=generator, dtype=torch.float64, requires_grad=True)
        for heads in (6, 2, 2)
    )
    found = []
    for keys, values in ((k, v), (k.repeat_interleave(3, 1), v.repeat_interleave(3, 1))):
        y, _ = packed_attention(
            torch.nn.Identity(), q, keys, values, None, packing=extra["packing"], scaling=0.3, sliding_window=window
        )
        weighted = (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum()
        found.append([y.detach(), *torch.autograd.grad(weighted, (q, k, v))])
    for ours, expected in zip(*found, strict=True):
        assert torch.allclose(ours, expected, rtol=0, atol=1e-12)
