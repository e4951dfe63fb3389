"""LoRA factors of all slots of a bank in one flat tensor, and adapters in and out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from student.adapters import Adapter


class FactorShape(NamedTuple):
    """Sizes of one target layer."""

    d_in: int
    d_out: int


class FlatLayout:
    """Where the factors of each target layer stand in a slot's flat parameter vector of P numbers.

    All A's come first, then all B's, in the order of the names, so that one tensor (K, P) holds a bank: clipping and
    the optimizer are then a few operations over it, whatever the number of layers.
    """

    def __init__(self, shapes: Mapping[str, FactorShape], rank: int) -> None:
        """Lay out factors of `rank`, the largest in the bank; smaller ones leave the rest at zero."""
        self.shapes = dict(shapes)
        self.rank = rank
        sizes = list(self.shapes.values())
        self.sections = [rank * s.d_in for s in sizes] + [rank * s.d_out for s in sizes]
        self.size = sum(self.sections)

    def views(self, flat: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return for each layer A (K, R, D_in) and B (K, R, D_out) as views of `flat` (K, P).

        One split serves all layers, so that autograd gathers their gradients in one concatenation.
        """
        parts = torch.split(flat, self.sections, dim=1)
        n = len(self.shapes)
        shaped = [part.view(flat.shape[0], self.rank, -1) for part in parts]
        return {name: (shaped[i], shaped[n + i]) for i, name in enumerate(self.shapes)}


def initial_factors(layout: FlatLayout, rank: int, seed: int, layers: Sequence[str]) -> Tensor:
    """Return a slot's (P,) starting point: A uniform in +-1 / sqrt(D_in) as PEFT draws it, B zero.

    All A's are drawn in float32 on the CPU, in the order of `layers` (the model's), each as (rank, D_in); so they
    depend on seed, rank and shapes alone.
    """
    generator = torch.Generator().manual_seed(seed)
    flat = torch.zeros(1, layout.size)
    views = layout.views(flat)
    for name in layers:
        d_in = layout.shapes[name].d_in
        views[name][0][0, :rank].uniform_(-(d_in**-0.5), d_in**-0.5, generator=generator)
    return flat[0]


def misfit(adapter: Adapter, shapes: Mapping[str, FactorShape], base_digest: str) -> str:
    """Return why an adapter cannot be used on a base with target layers of these shapes; empty when it can.

    An empty base digest fits every base, and an adapter may lack some of the layers.
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
    """Return the factors of `layers` from a slot's (P,) in PEFT's orientation, copied to the CPU."""
    views = layout.views(flat.detach().cpu()[None])
    return {
        name: (
            views[name][0][0, :rank].clone(),
            views[name][1][0, :rank].t().clone(memory_format=torch.contiguous_format),
        )
        for name in layers
    }
