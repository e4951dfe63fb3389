"""Sequences packed end to end: linear layers see no padding, attention sees each sequence alone.

Padding every sequence of a bank to the longest one, and every slot to the fullest one, spends arithmetic on places that
mean nothing. Nearly all of that arithmetic is in linear layers, which do not care where a sequence ends.
So a slot's sequences stand one after the other in a single row; only attention, a small part of the work at these
lengths, takes them apart and puts them together again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from evaluation.label_logits import label_logits

_NAME = "preceptor_packed"
_UNSUPPORTED = ("softcap", "s_aux", "position_bias")
"""What some architectures add to attention scores and PyTorch's fused attention cannot."""


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


class PackedPlaces(NamedTuple):
    """K slots' sequences laid end to end, each slot padded to the fullest."""

    places: int
    """Of each slot, padding included, L."""
    starts: NDArray[np.int64]
    """(N,) first place of each sequence among the K * L, in the order given."""
    position_ids: NDArray[np.int64]
    """(K * L,) positions that count from 0 in each sequence."""
    packing: Packing


def pack_places(lengths: Sequence[Sequence[int]], device: torch.device) -> PackedPlaces:
    """Return where each sequence stands when K slots' sequences are laid end to end.

    Args:
        lengths: For each of K slots the lengths of its sequences, at least one, each at least 1.
        device: Where the index tensors go.
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
        len(sizes),
        width,
        tensor(gather.reshape(-1)),
        tensor(~inside.reshape(-1, 1, 1)),
        tensor(scatter),
        tensor(scatter_pads.reshape(-1, 1, 1)),
    )
    return PackedPlaces(places, starts, position_ids, packing)


class _Rearrange(torch.autograd.Function):
    """Rows in another order, some of them repeated as padding; the gradient of padding is dropped.

    Both directions are gathers, where the gradient of `index_select` would be a slow scatter-add. Dropping instead of
    multiplying by zero keeps a slot whose numbers are not finite from reaching another one.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor, inverse_pads: Tensor) -> Tensor:
        ctx.save_for_backward(inverse, inverse_pads)
        return x.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        inverse, inverse_pads = ctx.saved_tensors
        return dy.index_select(0, inverse).masked_fill_(inverse_pads, 0.0), None, None, None


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Return causal attention within each sequence, (1, P, H, D_head); an attention function of transformers.

    Args:
        module: The attention layer; unused.
        query: (1, H, P, D_head).
        key: (1, H_kv, P, D_head), H_kv a divisor of H.
        value: As `key`.
        attention_mask: None: the packing says all.
        packing: Reaches this function as an argument of the model's forward pass; None is one sequence a row.
        scaling: Of the scores; None is 1 / sqrt(D_head).
        sliding_window: Places that a token sees, itself included; None is all before it.
        others: Of the interface; those that change scores in another way are refused.

    Raises:
        ValueError: The architecture needs something else than scaled dot products.
    """
    asked = [name for name in _UNSUPPORTED if others.get(name) is not None]
    if asked or attention_mask is not None:
        raise ValueError(f"packed attention: {type(module).__name__} asks for {asked or 'a mask of its own'}")

    q, k, v = (_apart(x, packing) for x in (query, key, value))
    shared = q.shape[1] != k.shape[1]
    if shared and q.device.type == "cpu":  # The fused kernel on CPUs takes no shared keys.
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
        shared = False
    mask = _window_mask(q.shape[2], sliding_window, q.device)
    y = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=shared
    )
    if packing is None:
        return y.transpose(1, 2), None
    flat = y.transpose(1, 2).reshape(-1, y.shape[1], y.shape[3])
    together = _Rearrange.apply(  # type: ignore[no-untyped-call]
        flat, packing.scatter, packing.gather, packing.gather_pads
    )
    return together[None], None


def _apart(x: Tensor, packing: Packing | None) -> Tensor:
    """Return heads (1, H, P, D_head) of a packed row as (N, H, T, D_head), a sequence a row."""
    if packing is None:
        return x
    rows = _Rearrange.apply(  # type: ignore[no-untyped-call]
        x.squeeze(0).transpose(0, 1), packing.gather, packing.scatter, packing.scatter_pads
    )
    shaped: Tensor = rows.view(packing.rows, packing.width, *rows.shape[1:]).transpose(1, 2)
    return shaped


def _window_mask(width: int, sliding_window: int | None, device: torch.device) -> Tensor | None:
    """Return which of `width` places each place sees, (T, T), or None where it sees all before it."""
    if sliding_window is None or sliding_window >= width:
        return None
    at = torch.arange(width, device=device)
    distance = at[:, None] - at
    return (distance >= 0) & (distance < sliding_window)


@contextmanager
def packed(model: Any) -> Iterator[None]:
    """Let the model's attention layers take packed rows, and put their own attention back afterwards."""
    from transformers import AttentionInterface

    AttentionInterface.register(_NAME, packed_attention)
    own = model.config._attn_implementation
    model.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(own)


def takes_packed_rows(model: Any) -> bool:
    """Return whether the model gives the same logits for packed sequences as for each alone.

    Decided by trying: architectures reach their attention in different ways, and some add to it what packed attention
    does not have.
    """
    embedding = model.get_input_embeddings().weight
    ids = torch.arange(1, 9, device=embedding.device) * 7919 % embedding.shape[0]
    found = pack_places([[5, 3], [4]], embedding.device)
    rows = [ids[:5], ids[5:], ids[1:5]]
    row = torch.zeros(2 * found.places, dtype=torch.long, device=embedding.device)
    for start, part in zip(found.starts.tolist(), rows, strict=True):
        row[start : start + len(part)] = part
    starts = found.starts.tolist()
    at = torch.tensor([start + i for start, part in zip(starts, rows, strict=True) for i in range(len(part))])
    extra = {
        "position_ids": torch.from_numpy(found.position_ids)[None].to(embedding.device),
        "packing": found.packing,
    }
    with torch.inference_mode():
        alone = torch.cat([model(input_ids=part[None], use_cache=False).logits[0] for part in rows])
        try:
            with packed(model):
                together = label_logits(model, row[None], at.to(embedding.device), direct_head=False, extra=extra)
        except (TypeError, ValueError, AttributeError, KeyError):
            return False
    tolerance = 1e-4 if alone.dtype in (torch.float32, torch.float64) else 0.1
    return bool(torch.allclose(alone, together, rtol=tolerance, atol=tolerance * float(alone.abs().max())))
