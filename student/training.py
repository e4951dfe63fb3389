"""The training loop of a bank: one batched step for all slots, each with its own schedule, clipping and AdamW."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor, nn

from student.adapters import Adapter
from student.banked_linear import BankedModel, FlatLayout
from student.batching import GroupBatches, SlotWork
from student.config import UpdateRecipe
from student.sequences import SkippedLine, TrainingSequence


class UpdateOutcome(StrEnum):
    """How an update ended; only `ok` has an adapter."""

    OK = "ok"
    EMPTY_EDIT = "empty_edit"
    SEQUENCE_TOO_LONG = "sequence_too_long"
    INITIAL_MISMATCH = "initial_mismatch"
    NON_FINITE = "non_finite"
    CANARY_FAILED = "canary_failed"


@dataclass(frozen=True, eq=False)
class UpdateJob:
    """One self-edit to take into an adapter."""

    key: str
    """Names the job in results and messages."""
    sequences: tuple[TrainingSequence, ...]
    recipe: UpdateRecipe
    """Resolved: the self-edit's training spec is already in it."""
    seed: int
    """Of the initial A and of the order of sequences."""
    skipped: tuple[SkippedLine, ...] = ()
    """Lines that did not become sequences."""
    initial: Adapter | None = None
    """Continue from this adapter of the same rank, alpha and layers; None starts from a new one."""


@dataclass(frozen=True, eq=False)
class UpdateResult:
    """What became of one job."""

    key: str
    outcome: UpdateOutcome
    detail: str = ""
    """Why it failed, or what was left out of a success; empty when there is nothing to say."""
    adapter: Adapter | None = None
    losses: tuple[float, ...] = ()
    """Token mean of the loss in nats before each optimizer step."""
    steps: int = 0
    """Optimizer steps done."""
    tokens: int = 0
    """Token places computed that were not padding, over all steps."""
    padded_tokens: int = 0
    """Token places computed, padding included."""


class TrainedGroup(NamedTuple):
    """A group of slots after training."""

    flat: Tensor
    """(K, P) factors in the group's layout."""
    losses: list[list[float]]
    """For each slot the loss of each of its steps."""
    tokens: list[int]
    padded_tokens: list[int]


def initial_factors(layout: FlatLayout, recipe: UpdateRecipe, seed: int) -> Tensor:
    """Return a slot's (P,) starting point: A uniform in +-1 / sqrt(D_in) as PEFT draws it, B zero.

    All A's are drawn in float32 on the CPU, in the order of the layers, each as (rank, D_in); so they depend on seed,
    rank and shapes alone.
    """
    generator = torch.Generator().manual_seed(seed)
    flat = torch.zeros(1, layout.size)
    for name, (a, _) in layout.views(flat).items():
        d_in = layout.shapes[name].d_in
        a[0, : recipe.rank].uniform_(-(d_in**-0.5), d_in**-0.5, generator=generator)
    return flat[0]


class SlotAdamW:
    """AdamW (arXiv 1711.05101) over a bank's flat parameters, with a step size, decay and clipping norm per slot.

    All active slots have done the same number of steps, because finished ones leave, so the bias correction is common.
    """

    # Parameters, gradients and moments of this many numbers stay in a core's cache between the operations on them.
    _BLOCK = 1 << 16

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
        rates = [[r.learning_rate_at(s, n) for s in range(n)] + [0.0] * (totals[0] - n) for r, n in zip(recipes, totals, strict=True)]
        as_tensor = {"dtype": parameters.dtype, "device": parameters.device}
        self._rates = torch.tensor(rates, dtype=torch.float64).t()[..., None].contiguous()
        decays = torch.tensor([recipe.weight_decay for recipe in recipes], dtype=torch.float64)
        self._shrink = (1 - self._rates * decays[:, None]).to(**as_tensor) if bool(decays.any()) else None
        self._rates = self._rates.neg().to(**as_tensor)
        norms = [recipe.max_gradient_norm for recipe in recipes]
        infinite = [float("inf") if norm is None else norm for norm in norms]
        self._norms = torch.tensor(infinite, **as_tensor) if any(norms) else None  # type: ignore[call-overload]
        self._done = 0

    def step(self, gradients: Tensor) -> None:
        """Move the first `len(gradients)` slots by one step; `gradients` (K, P) are overwritten."""
        k, step = len(gradients), self._done
        self._done += 1
        scales = None
        if self._norms is not None:  # As torch.nn.utils.clip_grad_norm_.
            norms = torch.linalg.vector_norm(gradients, dim=1)
            scales = (self._norms[:k] / (norms + 1e-6)).clamp_(max=1.0)[:, None]
        rows = max(1, self._BLOCK // gradients.shape[1])
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
        p.addcmul_(update, self._rates[step, block].div(1 - beta1 ** (step + 1)))


def train_group(student: BankedModel, layout: FlatLayout, slots: Sequence[SlotWork], flat: Tensor) -> TrainedGroup:
    """Train K slots at once and return their factors and losses.

    Args:
        student: The wrapped base; its factors are detached afterwards.
        layout: Of the flat factors, its rank at least each slot's.
        slots: By falling number of steps, so that the active ones are always the first; same AdamW constants.
        flat: (K, P) starting points, overwritten. Rows and columns beyond a slot's rank are zero and stay zero: their
            gradients are products with each other.
    """
    batches = GroupBatches(slots, student.dtype, student.device)
    scales = torch.tensor([slot.recipe.scale for slot in slots], dtype=student.dtype, device=student.device)
    optimizer = SlotAdamW(flat, [slot.recipe for slot in slots], [slot.steps for slot in slots])
    tokens, padded = [0] * len(slots), [0] * len(slots)
    curves: list[Tensor] = []
    try:
        for step in range(len(batches)):
            batch = batches[step]
            active = flat[: batch.slots].detach().requires_grad_()
            student.attach(layout.views(active), scales[: batch.slots, None, None])
            logits = student.label_logits(batch.input_ids, batch.positions)
            losses = nn.functional.cross_entropy(logits, batch.labels, reduction="none") * batch.weights
            (gradients,) = torch.autograd.grad(losses.sum(), active)
            optimizer.step(gradients)
            curves.append(losses.new_zeros(batch.slots).index_add_(0, batch.label_slots, losses.detach()))
            for k in range(batch.slots):
                tokens[k] += int(batch.tokens[k])
                padded[k] += batch.padded_tokens
    finally:
        student.detach()
    steps = [curve.tolist() for curve in curves]
    return TrainedGroup(flat, [[row[k] for row in steps if k < len(row)] for k in range(len(slots))], tokens, padded)
