"""AdamW over a bank's flat parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from student.config import UpdateRecipe

_BLOCK = 1 << 16
"""Parameters, gradients and moments of this many numbers stay in a core's cache between the operations on them."""


class SlotAdamW:
    """AdamW (arXiv 1711.05101) over a bank's flat parameters, with a step size, decay and clipping norm per slot.

    All active slots have done the same number of steps, because finished ones leave, so the bias correction is common.
    """

    def __init__(self, parameters: Tensor, recipes: Sequence[UpdateRecipe], totals: Sequence[int]) -> None:
        """Prepare the state of K slots.

        Args:
            parameters: (K, P), changed in place by `step`.
            recipes: K recipes with the same `adam_betas` and `adam_epsilon`.
            totals: K numbers of steps, falling.
        """
        self._parameters = parameters
        self._first, self._second = torch.zeros_like(parameters), torch.zeros_like(parameters)
        self._betas, self._epsilon = recipes[0].adam_betas, recipes[0].adam_epsilon
        rates = [
            [r.learning_rate_at(s, n) for s in range(n)] + [0.0] * (totals[0] - n)
            for r, n in zip(recipes, totals, strict=True)
        ]
        by_step = torch.tensor(rates, dtype=torch.float64).t()[..., None]  # (steps, K, 1)
        decays = torch.tensor([recipe.weight_decay for recipe in recipes], dtype=torch.float64)[:, None]
        self._shrink = (1 - by_step * decays).to(parameters) if bool(decays.any()) else None
        self._minus_rates = by_step.neg().to(parameters)
        norms = [recipe.max_gradient_norm for recipe in recipes]
        limits = torch.tensor([float("inf") if norm is None else norm for norm in norms])
        self._norms = limits.to(parameters) if any(norms) else None
        self._done = 0

    def step(self, gradients: Tensor) -> None:
        """Move the first `len(gradients)` slots by one step; `gradients` (K, P) are overwritten."""
        k, step = len(gradients), self._done
        self._done += 1
        scales = None
        if self._norms is not None:  # As torch.nn.utils.clip_grad_norm_.
            norms = torch.linalg.vector_norm(gradients, dim=1)
            scales = (self._norms[:k] / (norms + 1e-6)).clamp_(max=1.0)[:, None]
        on_cpu = gradients.device.type == "cpu"
        rows = max(1, _BLOCK // gradients.shape[1]) if on_cpu else k
        for start in range(0, k, rows):
            block = slice(start, min(start + rows, k))
            self._step_block(block, gradients[block], None if scales is None else scales[block], step)

    def _step_block(self, block: slice, g: Tensor, scales: Tensor | None, step: int) -> None:
        """Move the slots of a block, in the order of operations of torch.optim.AdamW."""
        beta1, beta2 = self._betas
        p, m, v = self._parameters[block], self._first[block], self._second[block]
        if scales is not None:
            g.mul_(scales)
        if self._shrink is not None:
            p.mul_(self._shrink[step, block])
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        denominator = torch.sqrt(v, out=g).div_((1 - beta2 ** (step + 1)) ** 0.5).add_(self._epsilon)
        update = torch.div(m, denominator, out=g)
        p.addcmul_(update, self._minus_rates[step, block].div(1 - beta1 ** (step + 1)))
