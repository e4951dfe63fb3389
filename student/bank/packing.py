"""Forward passes over many slots: each slot's sequences packed end to end, or one a row.

Nearly all arithmetic of a pass is in linear layers, for which it does not matter where a sequence ends. So the
sequences of a slot stand one after the other in a single row instead of being padded to the longest; attention alone, a
small part of the work at these lengths, takes them apart (`student.bank.attention`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class LabelledTokens(NamedTuple):
    """A sequence in a forward pass: its last token is only ever a label."""

    ids: NDArray[np.int64]
    """(T,) token ids."""
    labels: NDArray[np.int64]
    """(T,) the token after each place, or -1 where it carries no loss."""

    @classmethod
    def of(cls, tokens: Sequence[int], is_label: Sequence[bool] | NDArray[np.bool_]) -> LabelledTokens:
        """Return T + 1 tokens, of which the flagged ones are labels; the first flag is ignored."""
        ids = np.array(tokens, dtype=np.int64)
        return cls(ids[:-1], np.where(np.array(is_label[1:]), ids[1:], -1))


def probe_line(model: Any, length: int) -> LabelledTokens:
    """Return fixed tokens for probing a model, each its own label."""
    # A stride that is coprime to most vocabulary sizes spreads the probe over the vocabulary.
    ids = np.arange(1, length + 1, dtype=np.int64) * 7919 % model.get_input_embeddings().weight.shape[0]
    return LabelledTokens(ids, ids)


class Packing(NamedTuple):
    """Where the places of a packed row go in the padded rows of attention, and back."""

    rows: int
    """Sequences, N."""
    width: int
    """Places of the longest one, T."""
    gather: Tensor
    """(N * T,) place of each attention position; those right of a sequence's end repeat its first place."""
    gather_pads: Tensor
    """(N * T, 1, 1) whether the position is right of its sequence's end."""
    scatter: Tensor
    """(P,) attention position of each place; padding places repeat their slot's first."""
    scatter_pads: Tensor
    """(P, 1, 1) whether the place is padding."""


def _pack_places(
    lengths: Sequence[Sequence[int]], device: torch.device
) -> tuple[int, NDArray[np.int64], NDArray[np.int64], Packing]:
    """Return where sequences of these lengths stand when K slots' are laid end to end, padded to the fullest slot.

    These are the places of each slot L, the first place of each sequence (N,) among the K * L, the positions (K * L,),
    which count from 0 in each sequence, and the packing.
    """
    sizes = np.array([n for slot in lengths for n in slot], dtype=np.int64)
    owners = np.repeat(np.arange(len(lengths)), [len(slot) for slot in lengths])
    totals = np.bincount(owners, weights=sizes, minlength=len(lengths)).astype(np.int64)
    places = int(totals.max())
    ends = np.cumsum(sizes)
    before = np.concatenate([[0], np.cumsum(totals)[:-1]])[owners]
    starts = ends - sizes - before + owners * places
    width = int(sizes.max())
    columns = np.arange(width)
    inside = columns < sizes[:, None]
    gather = np.where(inside, starts[:, None] + columns, starts[:, None])
    slot_first = np.unique(owners, return_index=True)[1]
    scatter = np.repeat(slot_first * width, places)
    scatter_pads = np.ones(len(lengths) * places, dtype=bool)
    position_ids = np.zeros(len(lengths) * places, dtype=np.int64)
    real = gather[inside]
    scatter[real] = np.flatnonzero(inside)
    scatter_pads[real] = False
    position_ids[real] = np.broadcast_to(columns, inside.shape)[inside]

    def tensor(values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)

    packing = Packing(
        rows=len(sizes),
        width=width,
        gather=tensor(gather.reshape(-1)),
        gather_pads=tensor(~inside.reshape(-1, 1, 1)),
        scatter=tensor(scatter),
        scatter_pads=tensor(scatter_pads.reshape(-1, 1, 1)),
    )
    return places, starts, position_ids, packing


class BankBatch(NamedTuple):
    """The forward pass of K slots."""

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


def lay_out(lines: Sequence[Sequence[LabelledTokens]], device: torch.device, *, packed: bool) -> BankBatch:
    """Return one forward pass over the sequences of K slots.

    Args:
        lines: For each slot at least one sequence.
        device: Where the tensors go.
        packed: Lay a slot's sequences end to end, for models that take packed rows; else one a row, right-padded.
    """
    flat = [line for slot in lines for line in slot]
    lengths = [[len(line.ids) for line in slot] for slot in lines]
    extra: dict[str, Any] = {}
    if packed:
        places, starts, position_ids, packing = _pack_places(lengths, device)
        shape = 1, len(lines) * places
        extra = {"position_ids": torch.from_numpy(position_ids)[None].to(device), "packing": packing}
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
        input_ids=torch.from_numpy(ids).view(shape).to(device),
        extra=extra,
        positions=torch.from_numpy(positions).to(device),
        labels=torch.from_numpy(targets[kept]).to(device),
        label_slots=torch.from_numpy(positions // places).to(device),
        tokens=[sum(slot) for slot in lengths],
        places=places,
    )
