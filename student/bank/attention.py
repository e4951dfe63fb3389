"""Attention over packed rows: each sequence alone, with the padding that only attention needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from evaluation.exact_match import label_logits
from student.bank.packing import LabelledTokens, Packing, lay_out, probe_line

_NAME = "preceptor_packed"
_UNSUPPORTED = ("softcap", "s_aux", "position_bias")
"""What some architectures add to attention scores and PyTorch's fused attention cannot."""


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
        module: The attention layer.
        query: (1, H, P, D_head).
        key: (1, H_kv, P, D_head), H_kv a divisor of H; `value` has the same shape.
        value: See `key`.
        attention_mask: None; the packing replaces it.
        packing: An argument of the model's forward pass; None is one sequence a row.
        scaling: Of the scores; None is 1 / sqrt(D_head).
        sliding_window: Places that a token sees, itself included; None is all before it.
        others: Of the interface; those that change scores in another way are refused.

    Raises:
        ValueError: The architecture needs something else than scaled dot products.
    """
    needed = [name for name in _UNSUPPORTED if others.get(name) is not None]
    if needed or attention_mask is not None:
        raise ValueError(f"packed attention: {type(module).__name__} needs {needed or 'a mask of its own'}")
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
