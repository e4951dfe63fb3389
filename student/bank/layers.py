"""LoRA factors of many slots, and products with frozen weights.

The factors stand in one flat tensor. Linear layers are shared by K adapters, and the loss is taken under a frozen
output head.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from student.adapters import Adapter

LINEAR = (nn.Linear, Conv1D)
"""Layers that PEFT counts as linear; GPT-2's Conv1D is one whose weight is stored as (D_in, D_out)."""
_FEWEST_ROWS = 64
"""Below this, the call's own cost outweighs the faster kernel, unless the weight is large."""
_FEWEST_OF_LARGE, _LARGE_WEIGHT = 4, 1 << 18
"""The same for weights of at least so many numbers."""
_ONEDNN = (
    torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
"""Whether oneDNN's float32 kernel can be called, and the processor has the instructions it gains from."""
_CACHED_LOGITS = 1 << 18
"""Logits made at a time on a CPU, so that they stay in a core's cache until their gradient is done."""
_STREAMED_LOGITS = 6 << 20
"""The same where so few rows would stay in the cache that reading the head for them takes longer than the product."""
_DEVICE_LOGITS = 1 << 27
"""Logits made at a time on another device: half a gigabyte in float32."""


class FactorShape(NamedTuple):
    """Sizes of one target layer."""

    d_in: int
    d_out: int

    @classmethod
    def of(cls, layer: Any) -> FactorShape:
        """Return the sizes of a linear layer, or of PEFT's wrapper of one."""
        return cls(layer.nx, layer.nf) if isinstance(layer, Conv1D) else cls(layer.in_features, layer.out_features)


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


def frozen_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `x W^T + b` without gradients, (N, D_out).

    PyTorch sends float32 products to MKL, which keeps to AVX2 on processors of other makers; on an AMD EPYC with
    AVX-512, oneDNN does 210 GFLOP/s on one core where MKL does 90. Each row's result depends on that row of `x`
    (N, D_in) alone; `weight` (D_out, D_in) may be a transposed view.
    """
    fewest = _FEWEST_OF_LARGE if weight.numel() >= _LARGE_WEIGHT else _FEWEST_ROWS
    if _ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32 and len(x) >= fewest:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product
    return nn.functional.linear(x, weight, bias)


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


class _FrozenProduct(torch.autograd.Function):
    """`x W^T + b` with a gradient for x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return frozen_product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return frozen_product(dy, weight.t()), None, None


class _Wrapper(nn.Module):
    """A frozen linear layer in the place of which another computes."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = base

    @property
    def weight(self) -> Tensor:
        """The frozen weight, as the layer has it; some architectures look at their layers' weight."""
        return self.base.weight  # type: ignore[no-any-return]

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias (D_out,) or None."""
        return self.base.bias  # type: ignore[no-any-return]

    @property
    def rows(self) -> Tensor:
        """The weight of a plain layer with a row for each output (D_out, D_in)."""
        return self.weight.t() if isinstance(self.base, Conv1D) else self.weight


class FrozenLinear(_Wrapper):
    """A plain linear layer that gets no factors and that `gains_from` the faster kernel of `frozen_product`."""

    @staticmethod
    def gains_from(layer: Any, *, is_head: bool) -> bool:
        """Return whether products with the layer's weight have a faster kernel; of the head, where it is large."""
        known = _ONEDNN and type(layer) in LINEAR and layer.weight.dtype == torch.float32 and layer.weight.is_cpu
        return known and (not is_head or layer.weight.numel() >= _LARGE_WEIGHT)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output of x's leading shape."""
        y: Tensor = _FrozenProduct.apply(x.reshape(-1, x.shape[-1]), self.rows, self.bias)  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], y.shape[-1])


class Attached:
    """The factors that banked layers use at the moment."""

    def __init__(self) -> None:
        self.factors: Mapping[str, tuple[Tensor, Tensor]] = {}
        """By layer: A (K, R, D_in) and B (K, R, D_out); a layer that is missing is itself."""
        self.scales: Tensor | None = None
        """(K, 1, 1): alpha / rank of each slot."""


class AttachedHere(Attached, threading.local):
    """The same for each thread on its own, so that several can run passes of one model."""


class BankedLinear(_Wrapper):
    """A frozen linear layer whose input rows are grouped by adapter; without factors it is the layer itself.

    Rows are grouped by slot: an input (1, K * L, D_in) or (K * N, T, D_in) is read as (K, -1, D_in).
    """

    def __init__(self, base: Any, name: str, attached: Attached) -> None:
        """Wrap the layer called `name` in what is attached to the model."""
        super().__init__(base)
        self._plain = type(base) in LINEAR
        self._name = name
        self._attached = attached

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output of x's leading shape, with each slot's low-rank part added to its rows."""
        found, scales = self._attached.factors.get(self._name), self._attached.scales
        if found is None or scales is None:
            return self.base(x)  # type: ignore[no-any-return]
        a, b = found
        grouped = x.reshape(a.shape[0], -1, x.shape[-1])
        if self._plain and grouped.dtype == a.dtype:
            y = _BankedProduct.apply(  # type: ignore[no-untyped-call]
                grouped, self.rows, self.bias, a, b, scales
            )
        else:  # A half-precision base, whose factors are float32 as in PEFT, or a quantised layer.
            reduced = torch.bmm(grouped.to(a.dtype), a.transpose(1, 2)) * scales
            base = self.base(grouped)
            y = (base + torch.bmm(reduced, b)).to(base.dtype)
        return y.view(*x.shape[:-1], y.shape[-1])  # type: ignore[no-any-return]


class _FrozenHeadLoss(torch.autograd.Function):
    """Weighted cross-entropy of a linear head that has no gradient itself.

    Because the head is frozen, the gradient with respect to the hidden states is known as soon as the logits are:
    (softmax - target) W. It is made in the forward pass, some rows at a time, so that the whole (L, V) logits never
    exist (the idea of Liger's fused linear cross-entropy, arXiv 2410.10989).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        gradient = torch.empty_like(hidden)
        losses = torch.empty_like(weights)
        rows = _rows_at_once(weight.shape[0], hidden.device)
        for start in range(0, len(labels), rows):
            part = slice(start, start + rows)
            logits = frozen_product(hidden[part], weight, bias).to(weights.dtype)
            log_probabilities = logits.log_softmax(-1)
            factor = weights[part, None]
            if labels.ndim == 2:
                wanted = frozen_product(labels[part], weight, bias).to(weights.dtype).log_softmax(-1)
                target = wanted.exp()
                losses[part] = wanted.sub_(log_probabilities).mul_(target).sum(-1).mul_(weights[part])
                d_logits = log_probabilities.exp_().sub_(target).mul_(factor)
                gradient[part] = frozen_product(d_logits.to(weight.dtype), weight.t())
                continue
            target = labels[part, None]
            losses[part] = log_probabilities.gather(1, target).mul_(factor).neg_().squeeze(1)
            d_logits = log_probabilities.exp_().mul_(factor).scatter_add_(1, target, -factor)
            gradient[part] = frozen_product(d_logits.to(weight.dtype), weight.t())
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * d_total.to(gradient.dtype), None, None, None, None


def _rows_at_once(vocabulary: int, device: torch.device) -> int:
    """Return of how many labels logits are made at a time."""
    if device.type != "cpu":
        return max(16, _DEVICE_LOGITS // vocabulary)
    cached = _CACHED_LOGITS // vocabulary
    return cached if cached >= _FEWEST_ROWS else max(_FEWEST_ROWS, _STREAMED_LOGITS // vocabulary)


def frozen_head_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of label losses, and each label's weighted loss (L,) without gradient, in nats.

    Only `hidden` (L, D) gets a gradient: `weight` (V, D) and `bias` (V,) are those of the frozen output head. `weights`
    (L,) are the factors of the losses of `labels` (L,); their type is that of the softmax. Hidden states as labels
    (L, D) stand for the distributions that the same head makes of them: the loss is the KL divergence from these.
    """
    total, losses = _FrozenHeadLoss.apply(hidden, weight, bias, labels, weights)  # type: ignore[no-untyped-call]
    return total, losses


def weighted_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same as `frozen_head_loss` from logits (L, V), for models whose head is more than a linear layer.

    Labels (L, V) are logits, too.
    """
    if labels.ndim == 2:
        got, wanted = (each.to(weights.dtype).log_softmax(-1) for each in (logits, labels))
        losses = nn.functional.kl_div(got, wanted, reduction="none", log_target=True).sum(-1) * weights
        return losses.sum(), losses.detach()
    losses = nn.functional.cross_entropy(logits.to(weights.dtype), labels, reduction="none") * weights
    return losses.sum(), losses.detach()
