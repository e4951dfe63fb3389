"""Products with frozen weights: linear layers that K LoRA adapters share, and the loss under a frozen output head."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_FEWEST_ROWS = 64
"""Below this, the call's own cost outweighs the faster kernel."""


_ONEDNN = (
    torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
"""Whether oneDNN's float32 kernel can be called, and the processor has the instructions it gains from."""


def frozen_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `x W^T + b` without gradients, (N, D_out).

    PyTorch sends float32 products to MKL, which keeps to AVX2 on processors of other makers; on an AMD EPYC with
    AVX-512, oneDNN does 210 GFLOP/s on one core where MKL does 90. Each row's result depends on that row of `x`
    (N, D_in) alone; `weight` (D_out, D_in) may be a transposed view.
    """
    if _ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32 and len(x) >= _FEWEST_ROWS:
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


_CACHED_LOGITS = 1 << 18
"""Logits made at a time on a CPU, so that they stay in a core's cache until their gradient is done."""
_DEVICE_LOGITS = 1 << 27
"""Logits made at a time on another device: half a gigabyte in float32."""


class _FrozenHeadLoss(torch.autograd.Function):
    """Weighted cross-entropy of a linear head that has no gradient itself.

    Because the head is frozen, the gradient with respect to the hidden states is known as soon as the logits are:
    (softmax - one-hot) W. It is made in the forward pass, some rows at a time, so that the whole (L, V) logits never
    exist (the idea of Liger's fused linear cross-entropy, arXiv 2410.10989).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        gradient = torch.empty_like(hidden)
        losses = torch.empty_like(weights)
        limit = _CACHED_LOGITS if hidden.device.type == "cpu" else _DEVICE_LOGITS
        rows = max(16, limit // weight.shape[0])
        for start in range(0, len(labels), rows):
            part = slice(start, start + rows)
            logits = frozen_product(hidden[part], weight, bias).to(weights.dtype)
            log_probabilities = logits.log_softmax(-1)
            target, factor = labels[part, None], weights[part, None]
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


def frozen_head_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of label losses, and each label's weighted loss (L,) without gradient, in nats.

    Only `hidden` (L, D) gets a gradient: `weight` (V, D) and `bias` (V,) are those of the frozen output head. `weights`
    (L,) are the factors of the losses of `labels` (L,); their type is that of the softmax.
    """
    total, losses = _FrozenHeadLoss.apply(hidden, weight, bias, labels, weights)  # type: ignore[no-untyped-call]
    return total, losses


def weighted_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same as `frozen_head_loss` from logits (L, V), for models whose head is more than a linear layer."""
    losses = nn.functional.cross_entropy(logits.to(weights.dtype), labels, reduction="none") * weights
    return losses.sum(), losses.detach()
