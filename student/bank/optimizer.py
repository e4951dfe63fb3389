"""AdamW over a bank's flat parameters, each slot with a state of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from student.config import MAX_GRADIENT_NORM, UpdateRecipe

EPSILON = 1e-8
"""Added to AdamW's denominator."""
_BLOCK = 1 << 16
"""Parameters, gradients and moments of this many numbers stay in a core's cache between the operations on them."""


class SlotStep(NamedTuple):
    """A slot that has done `step` of its `total` optimizer steps."""

    recipe: UpdateRecipe
    step: int
    total: int


def _factors(slots: Sequence[SlotStep], like: Tensor) -> list[Tensor]:
    """Return what each slot's next update multiplies by, (K, 1) each.

    Made in double precision: in single, 1 - 0.999 is off by a hundred thousandth.
    """
    table = []
    for recipe, step, total in slots:
        rate, (beta1, beta2) = recipe.learning_rate_at(step, total), recipe.adam_betas
        corrections = 1 - beta1 ** (step + 1), (1 - beta2 ** (step + 1)) ** 0.5
        table.append((-rate / corrections[0], 1 - beta1, beta2, 1 - beta2, corrections[1]))
    return [column[:, None] for column in torch.tensor(table, dtype=torch.float64).to(like).unbind(1)]


class SlotAdamW:
    """AdamW (arXiv 1711.05101) without weight decay over a bank's flat parameters.

    Step size, schedule, moments and number of steps are each slot's own, so a slot that comes in late is where it would
    be alone.
    """

    def __init__(self, parameters: Tensor) -> None:
        """Prepare the state of all slots; `parameters` (K, P) are changed in place by `step`."""
        self._parameters = parameters
        self._first, self._second = torch.zeros_like(parameters), torch.zeros_like(parameters)

    def reset(self, slot: int) -> None:
        """Forget the moments of a slot, whose parameters are those of a new adapter."""
        self._first[slot].zero_()
        self._second[slot].zero_()

    def move(self, source: int, target: int) -> None:
        """Put the state and the parameters of one slot in the place of another."""
        for tensor in (self._parameters, self._first, self._second):
            tensor[target].copy_(tensor[source])

    def step(self, gradients: Tensor, slots: Sequence[SlotStep]) -> None:
        """Move the first K slots by one step of `gradients` (K, P), which are overwritten."""
        norms = torch.linalg.vector_norm(gradients, dim=1)
        # As torch.nn.utils.clip_grad_norm_.
        scales = (torch.full_like(norms, MAX_GRADIENT_NORM) / (norms + 1e-6)).clamp_(max=1.0)[:, None]
        factors = _factors(slots, gradients)
        on_cpu = gradients.device.type == "cpu"
        rows = max(1, _BLOCK // gradients.shape[1]) if on_cpu else len(slots)
        for start in range(0, len(slots), rows):
            block = slice(start, min(start + rows, len(slots)))
            gradients[block].mul_(scales[block])
            self._step_block(block, gradients[block], [factor[block] for factor in factors])

    def _step_block(self, block: slice, g: Tensor, factors: Sequence[Tensor]) -> None:
        """Move the slots of a block, in the order of operations of torch.optim.AdamW."""
        p, m, v = self._parameters[block], self._first[block], self._second[block]
        minus_rate, new_first, keep_second, new_second, second_correction = factors
        m.lerp_(g, new_first)
        v.mul_(keep_second).add_(g.square_().mul_(new_second))
        denominator = torch.sqrt(v, out=g).div_(second_correction).add_(EPSILON)
        p.addcmul_(torch.div(m, denominator, out=g), minus_rate)
