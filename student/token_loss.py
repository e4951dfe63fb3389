"""Cross-entropy under a frozen output head, summed over slots."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from student.frozen_product import frozen_product

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

    Args:
        hidden: (L, D) hidden states; the only input that gets a gradient.
        weight: (V, D) of the frozen output head.
        bias: (V,) or None.
        labels: (L,) token ids.
        weights: (L,) factors of the labels' losses; their type is that of the softmax.
    """
    total, losses = _FrozenHeadLoss.apply(hidden, weight, bias, labels, weights)  # type: ignore[no-untyped-call]
    return total, losses


def weighted_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same as `frozen_head_loss` from logits (L, V), for models whose head is more than a linear layer."""
    losses = nn.functional.cross_entropy(logits.to(weights.dtype), labels, reduction="none") * weights
    return losses.sum(), losses.detach()
