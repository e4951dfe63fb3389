"""AdamW over a bank's flat parameters, each slot with a state of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from student.config import UpdateRecipe

_BLOCK = 1 << 16
"""Parameters, gradients and moments of this many numbers stay in a core's cache between the operations on them."""


class SlotStep(NamedTuple):
    """Where one slot is in its own schedule."""

    recipe: UpdateRecipe
    step: int
    """Optimizer steps that it has done."""
    total: int
    """Those that it will have done."""


class _Factors(NamedTuple):
    """What the update of K slots multiplies by, each (K, 1)."""

    minus_rate: Tensor
    """Step size over the first moment's bias correction, negative."""
    shrink: Tensor | None
    """1 - step size * weight decay; None where no slot decays."""
    new_first: Tensor
    """1 - beta1, made in double precision: in single, 1 - 0.999 is off by a hundred thousandth."""
    keep_second: Tensor
    new_second: Tensor
    second_correction: Tensor
    """Square root of the second moment's bias correction."""
    epsilon: Tensor

    def rows(self, block: slice) -> _Factors:
        """Return the factors of some slots."""
        return _Factors(*(None if part is None else part[block] for part in self))  # type: ignore[arg-type]


def _factors(slots: Sequence[SlotStep], like: Tensor) -> _Factors:
    """Return the factors of each slot's next update, made in double precision."""
    table = []
    for recipe, step, total in slots:
        rate, (beta1, beta2) = recipe.learning_rate_at(step, total), recipe.adam_betas
        correction = 1 - beta1 ** (step + 1), (1 - beta2 ** (step + 1)) ** 0.5
        decay = 1 - rate * recipe.weight_decay
        second = beta2, 1 - beta2, correction[1]
        table.append((-rate / correction[0], decay, 1 - beta1, *second, recipe.adam_epsilon))
    columns = torch.tensor(table, dtype=torch.float64).to(like).unbind(1)
    minus_rate, shrink, *others = (column[:, None] for column in columns)
    decays = any(slot.recipe.weight_decay for slot in slots)
    return _Factors(minus_rate, shrink if decays else None, *others)


class SlotAdamW:
    """AdamW (arXiv 1711.05101) over a bank's flat parameters.

    Step size, schedule, decay, moments, number of steps and clipping norm are each slot's own, so a slot that comes in
    late is where it would be alone.
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
        """Move the first K slots by one step.

        Args:
            gradients: (K, P), overwritten.
            slots: Where each of the K slots is in its schedule.
        """
        norms = [slot.recipe.max_gradient_norm for slot in slots]
        scales = None
        if any(norms):  # As torch.nn.utils.clip_grad_norm_.
            limits = torch.tensor([float("inf") if norm is None else norm for norm in norms]).to(gradients)
            scales = (limits / (torch.linalg.vector_norm(gradients, dim=1) + 1e-6)).clamp_(max=1.0)[:, None]
        factors = _factors(slots, gradients)
        on_cpu = gradients.device.type == "cpu"
        rows = max(1, _BLOCK // gradients.shape[1]) if on_cpu else len(slots)
        for start in range(0, len(slots), rows):
            block = slice(start, min(start + rows, len(slots)))
            self._step_block(block, gradients[block], None if scales is None else scales[block], factors.rows(block))

    def _step_block(self, block: slice, g: Tensor, scales: Tensor | None, by: _Factors) -> None:
        """Move the slots of a block, in the order of operations of torch.optim.AdamW."""
        p, m, v = self._parameters[block], self._first[block], self._second[block]
        if scales is not None:
            g.mul_(scales)
        if by.shrink is not None:
            p.mul_(by.shrink)
        m.lerp_(g, by.new_first)
        v.mul_(by.keep_second).add_(g.square_().mul_(by.new_second))
        denominator = torch.sqrt(v, out=g).div_(by.second_correction).add_(by.epsilon)
        p.addcmul_(torch.div(m, denominator, out=g), by.minus_rate)
