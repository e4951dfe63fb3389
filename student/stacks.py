"""Adapters in and out of a bank's flat tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from student.adapters import Adapter
from student.banked_linear import FactorShape, FlatLayout


def misfit(adapter: Adapter, shapes: Mapping[str, FactorShape], base_digest: str) -> str:
    """Return why an adapter cannot be used on a base, or an empty string when it can.

    Args:
        adapter: Of any origin; an empty base digest fits every base.
        shapes: The bank's target layers; an adapter may lack some of them.
        base_digest: Of the bank's base.
    """
    if adapter.base_digest not in ("", base_digest):
        return f"the adapter belongs to base {adapter.base_digest!r}, the student is {base_digest!r}"
    for name, (a, b) in adapter.factors.items():
        shape = shapes.get(name)
        if shape is None or a.shape != (adapter.rank, shape.d_in) or b.shape != (shape.d_out, adapter.rank):
            return f"layer {name!r} of the adapter does not fit the student: A {tuple(a.shape)}, B {tuple(b.shape)}"
    return ""


def stack(layout: FlatLayout, adapters: Sequence[Adapter | None]) -> Tensor:
    """Return the adapters' factors as (K, P) on the CPU; a missing adapter, layer or rank is zero."""
    dtypes = {a.dtype for adapter in adapters if adapter is not None for a, _ in adapter.factors.values()}
    flat = torch.zeros(len(adapters), layout.size, dtype=max(dtypes, key=lambda d: d.itemsize, default=torch.float32))
    views = layout.views(flat)
    for k, adapter in enumerate(adapters):
        if adapter is not None:
            for name, (a, b) in adapter.factors.items():
                views[name][0][k, : adapter.rank] = a
                views[name][1][k, : adapter.rank] = b.t()
    return flat


def unstack(layout: FlatLayout, flat: Tensor, rank: int, layers: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return a slot's (P,) factors in PEFT's orientation, each with memory of its own, on the CPU.

    Args:
        layout: The bank's.
        flat: (P,) of the slot.
        rank: Of the slot; what the layout has beyond it is zero.
        layers: Those that the slot adapts.
    """
    views = layout.views(flat.detach().cpu()[None])
    return {
        name: (
            views[name][0][0, :rank].clone(),
            views[name][1][0, :rank].t().clone(memory_format=torch.contiguous_format),
        )
        for name in layers
    }
