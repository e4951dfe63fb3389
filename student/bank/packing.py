"""Forward passes over many slots: each slot's sequences packed end to end, or one a row.

Nearly all arithmetic of a pass is in linear layers, for which it does not matter where a sequence ends. So the
sequences of a slot stand one after the other in a single row instead of being padded to the longest. Attention alone, a
small part of the work at these lengths, takes them apart, with the padding that only attention needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from evaluation.exact_match import label_logits

_NAME = "preceptor_packed"
_UNSUPPORTED = ("softcap", "s_aux", "position_bias")
"""What some architectures add to attention scores and PyTorch's fused attention cannot."""
_SHORT = 64
"""Longest sequences whose attention on a CPU is made of plain products where queries share keys."""


class LabelledTokens(NamedTuple):
    """A sequence in a forward pass: its last token is only ever a label."""

    ids: NDArray[np.int64]
    """(T,) token ids."""
    labels: NDArray[np.int64]
    """(T,) the token after each place, or -1 where it carries no loss."""
    targets: Tensor | None = None
    """(L, D) for context distillation, in place of the L labels: see `BankedModel.states`."""

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


class Tree(NamedTuple):
    """A row that begins with what several sequences begin with, followed by the rest of each."""

    places: Tensor
    """(T,) place of each token in its own sequence."""
    mask: Tensor
    """(T, T) whether a token (row) sees another one (column)."""


class BankBatch(NamedTuple):
    """The forward pass of K slots."""

    input_ids: Tensor
    """(1, K * L) packed, or (K * N, T) one sequence a row; the places of a slot stand together."""
    extra: Mapping[str, Any]
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
    filled: Tensor
    """(F,) places among all that are not padding, sequence by sequence."""
    targets: Tensor | None = None
    """(C, D) those of the lines; None without."""


def lay_out(lines: Sequence[Sequence[LabelledTokens]], device: torch.device, *, packed: bool) -> BankBatch:
    """Return one forward pass over the sequences of K slots, at least one each.

    With `packed`, a slot's sequences stand end to end, for models that take packed rows; else one a row, right-padded.
    Either all sequences have targets or none has.
    """
    flat = [line for slot in lines for line in slot]
    lengths = [[len(line.ids) for line in slot] for slot in lines]
    sizes = np.array([len(line.ids) for line in flat], dtype=np.int64)
    extra: dict[str, Any] = {}
    if packed:
        places, starts, extra = _pack(lengths, sizes, device)
        shape = 1, len(lines) * places
    else:
        most, width = max(map(len, lengths)), max(map(max, lengths))
        shape, places = (len(lines) * most, width), most * width
        rows = [k * most + i for k, slot in enumerate(lengths) for i in range(len(slot))]
        starts = np.array(rows, dtype=np.int64) * width
    at = np.repeat(starts - np.cumsum(sizes) + sizes, sizes) + np.arange(int(sizes.sum()))
    ids = np.zeros(shape[0] * shape[1], dtype=np.int64)
    ids[at] = np.concatenate([line.ids for line in flat])
    targets = np.concatenate([line.labels for line in flat])
    kept = targets >= 0
    positions = at[kept]
    distilled = [line.targets for line in flat if line.targets is not None]
    return BankBatch(
        input_ids=torch.from_numpy(ids).view(shape).to(device),
        extra=extra,
        positions=torch.from_numpy(positions).to(device),
        labels=torch.from_numpy(targets[kept]).to(device),
        label_slots=torch.from_numpy(positions // places).to(device),
        tokens=[sum(slot) for slot in lengths],
        places=places,
        filled=torch.from_numpy(at).to(device),
        targets=torch.cat(distilled) if distilled else None,
    )


def _pack(
    lengths: Sequence[Sequence[int]], sizes: NDArray[np.int64], device: torch.device
) -> tuple[int, NDArray[np.int64], dict[str, Any]]:
    """Lay K slots' sequences end to end, padded to the fullest slot.

    Returns the places of each slot L, the first place of each sequence (N,) among the K * L, and the model's further
    arguments: positions (1, K * L), which count from 0 in each sequence, and the packing.
    """
    owners = np.repeat(np.arange(len(lengths)), [len(slot) for slot in lengths])
    totals = np.bincount(owners, weights=sizes, minlength=len(lengths)).astype(np.int64)
    places = int(totals.max())
    before = np.concatenate([[0], np.cumsum(totals)[:-1]])[owners]
    starts = np.cumsum(sizes) - sizes - before + owners * places
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
    return places, starts, {"position_ids": tensor(position_ids[None]), "packing": packing}


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
    tree: Tree | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Return causal attention within each sequence, (1, P, H, D_head); an attention function of transformers.

    The query is (1, H, P, D_head); key and value have H_kv heads, a divisor of H. Without a `packing`, each row is one
    sequence, or a `tree` of several. `scaling` of the scores is 1 / sqrt(D_head) by default, and a token sees
    `sliding_window` places, itself included, or all before it.

    Raises:
        ValueError: The architecture needs something else than scaled dot products.
    """
    needed = [name for name in _UNSUPPORTED if others.get(name) is not None]
    if needed or attention_mask is not None:
        raise ValueError(f"packed attention: {type(module).__name__} needs {needed or 'a mask of its own'}")
    q, k, v = (_apart(x, packing) for x in (query, key, value))
    mask, width = None if tree is None else tree.mask, q.shape[2]
    if sliding_window is not None and sliding_window < width:
        at = torch.arange(width, device=q.device) if tree is None else tree.places
        distance = at[:, None] - at
        near = (distance >= 0) & (distance < sliding_window)
        mask = near if mask is None else near & mask
    shared = q.shape[1] // k.shape[1]
    if shared > 1 and q.device.type == "cpu" and q.dtype.itemsize >= 4 and width <= _SHORT:
        y = _attention_of_groups(q, k, v, mask, scaling or q.shape[3] ** -0.5)
    else:
        if shared > 1 and q.device.type == "cpu":  # The fused kernel on CPUs takes no shared keys.
            k, v = (t.repeat_interleave(shared, dim=1) for t in (k, v))
        y = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
    if packing is None:
        return y.transpose(1, 2), None
    flat = y.transpose(1, 2).reshape(-1, y.shape[1], y.shape[3])
    together = _Rearrange.apply(  # type: ignore[no-untyped-call]
        flat, packing.scatter, packing.gather, packing.gather_pads
    )
    return together[None], None


def _attention_of_groups(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Return attention (N, H, T, D_head), made as products of all queries that share a key with it.

    On short sequences these take three quarters of the fused kernel's time, forward and backward, and copy no keys.
    """
    (n, h, t, d), heads = q.shape, k.shape[1]
    sees = torch.ones(t, t, dtype=torch.bool).tril() if mask is None else mask
    bias = torch.zeros(t, t, dtype=q.dtype).masked_fill(~sees, -torch.inf).repeat(h // heads, 1)
    q, k, v = (x.reshape(n * heads, -1, d) for x in (q, k, v))
    scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scaling)
    return torch.bmm(scores.softmax(-1), v).view(n, h, t, d)


def _apart(x: Tensor, packing: Packing | None) -> Tensor:
    """Return heads (1, H, P, D_head) of a packed row as (N, H, T, D_head), a sequence a row."""
    if packing is None:
        return x
    rows = _Rearrange.apply(  # type: ignore[no-untyped-call]
        x.squeeze(0).transpose(0, 1), packing.gather, packing.scatter, packing.scatter_pads
    )
    shaped: Tensor = rows.view(packing.rows, packing.width, *rows.shape[1:]).transpose(1, 2)
    return shaped


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
    whole, device = probe_line(model, 8).ids, model.get_input_embeddings().weight.device
    parts = [LabelledTokens(part, part) for part in (whole[:5], whole[5:], whole[1:5])]
    batch = lay_out([parts[:2], parts[2:]], device, packed=True)
    with torch.inference_mode():
        rows = [torch.from_numpy(part.ids)[None].to(device) for part in parts]
        alone = torch.cat([model(input_ids=row, use_cache=False).logits[0] for row in rows])
        try:
            with packed(model):
                together = label_logits(model, batch.input_ids, batch.positions, direct_head=False, extra=batch.extra)
        except (TypeError, ValueError, AttributeError, KeyError):
            return False
    tolerance = 1e-4 if alone.dtype in (torch.float32, torch.float64) else 0.1
    return bool(torch.allclose(alone, together, rtol=tolerance, atol=tolerance * float(alone.abs().max())))
