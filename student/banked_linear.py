"""A linear layer that K LoRA adapters share, and the layout of their factors in one flat tensor."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from student.frozen_product import frozen_product


class _BankedProduct(torch.autograd.Function):
    """`x W^T + b + scale_k (x A_k^T) B_k` with gradients for x, A and B alone.

    Written by hand because W is frozen: the low-rank part is added in place, forward and backward, where autograd
    would keep one more tensor of the output's and one of the input's size.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scales: Tensor
    ) -> Tensor:
        reduced = torch.bmm(x, a.transpose(1, 2)).mul_(scales)
        ctx.save_for_backward(x, weight, a, b, scales, reduced)
        y = frozen_product(x.flatten(0, 1), weight, bias).view(*x.shape[:2], -1)
        return y.baddbmm_(reduced, b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, scales, reduced = ctx.saved_tensors
        d_reduced = torch.bmm(dy, b.transpose(1, 2)).mul_(scales)
        da = torch.bmm(d_reduced.transpose(1, 2), x)
        db = torch.bmm(reduced.transpose(1, 2), dy)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = frozen_product(dy.flatten(0, 1), weight.t()).view_as(x).baddbmm_(d_reduced, a)
        return dx, None, None, da, db, None


class Attached:
    """The factors that banked layers use at the moment."""

    def __init__(self) -> None:
        self.factors: Mapping[str, tuple[Tensor, Tensor]] = {}
        """By layer: A (K, R, D_in) and B (K, R, D_out); a layer that is missing is itself."""
        self.scales: Tensor | None = None
        """(K, 1, 1): alpha / rank of each slot."""


class AttachedHere(Attached, threading.local):
    """The same for each thread on its own, so that several can run passes of one model."""


class BankedLinear(nn.Module):
    """A frozen linear layer whose input rows are grouped by adapter; without factors it is the layer itself.

    Rows are grouped by slot: an input (1, K * L, D_in) or (K * N, T, D_in) is read as (K, -1, D_in).
    """

    def __init__(self, base: Any, name: str, attached: Attached) -> None:
        """Wrap the layer called `name` in what is attached to the model."""
        super().__init__()
        self.base = base
        self._plain = type(base) is nn.Linear
        self._name = name
        self._attached = attached

    @property
    def weight(self) -> Tensor:
        """The frozen weight (D_out, D_in); some architectures look at their layers' weight."""
        return self.base.weight  # type: ignore[no-any-return]

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias (D_out,) or None."""
        return self.base.bias  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output of x's leading shape, with each slot's low-rank part added to its rows."""
        found, scales = self._attached.factors.get(self._name), self._attached.scales
        if found is None or scales is None:
            return self.base(x)  # type: ignore[no-any-return]
        a, b = found
        grouped = x.reshape(a.shape[0], -1, x.shape[-1])
        if self._plain and grouped.dtype == a.dtype:
            y = _BankedProduct.apply(  # type: ignore[no-untyped-call]
                grouped, self.base.weight, self.base.bias, a, b, scales
            )
        else:  # A half-precision base, whose factors are float32 as in PEFT, or a quantised layer.
            reduced = torch.bmm(grouped.to(a.dtype), a.transpose(1, 2)) * scales
            base = self.base(grouped)
            y = (base + torch.bmm(reduced, b)).to(base.dtype)
        return y.view(*x.shape[:-1], y.shape[-1])  # type: ignore[no-any-return]


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
