"""The training loop of a bank: slots that are done leave it, and new ones take their place."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from student.banked_linear import FlatLayout
from student.banked_model import BankedModel
from student.batching import SlotWork
from student.config import UpdateRecipe
from student.memory import MemoryPlan, bytes_of_slot
from student.optimizer import SlotAdamW, SlotStep
from student.passes import GradientPasses


class BankLimits(NamedTuple):
    """How much a bank may do at once."""

    max_slots: int
    max_pass_places: int
    """Places of one forward and backward pass, padding included; a slot alone may have more."""
    plan: MemoryPlan

    def slots(self, widest: int, slot_bytes: int) -> int:
        """Return how many slots fit in memory beside the activations of one of them, at least 1.

        Args:
            widest: Places of the fullest slot.
            slot_bytes: Of a slot's factors, gradients and moments.
        """
        room = (self.plan.budget - widest * self.plan.place_bytes) // slot_bytes
        return max(1, min(self.max_slots, room))

    def pass_places(self, slots: int, slot_bytes: int) -> int:
        """Return how many places fit in one pass beside so many slots' factors, at least 1."""
        room = (self.plan.budget - slots * slot_bytes) // self.plan.place_bytes
        return max(1, min(self.max_pass_places, room))


class TrainedSlot(NamedTuple):
    """A slot after its last step."""

    flat: Tensor
    """(P,) factors in the bank's layout, on the CPU."""
    losses: list[float]
    """Of each of its steps."""
    tokens: int
    """Places computed that were not padding, over all steps."""
    places: int
    """Places computed, padding included."""
    failure: str
    """Why it was given up: memory; empty for a slot that went through all its steps."""


@dataclass
class BankUsage:
    """What training in a bank took."""

    slots: int = 0
    """Most slots at once."""
    steps: int = 0
    """Steps of the bank."""
    tokens: int = 0
    """Places computed that were not padding."""
    places: int = 0
    """Places computed."""
    splits: int = 0
    """Passes that ran out of memory and were split."""
    estimated_bytes: int = 0
    """Most memory that a step was expected to take, the base left out."""
    peak_bytes: int | None = None
    """Growth of memory as measured; None where it cannot be."""

    def merged(self, other: BankUsage, peak_bytes: int | None) -> BankUsage:
        """Return this usage and that of another bank after it, whose memory grew by `peak_bytes`."""
        peaks = [peak for peak in (self.peak_bytes, peak_bytes) if peak is not None]
        return BankUsage(
            max(self.slots, other.slots),
            self.steps + other.steps,
            self.tokens + other.tokens,
            self.places + other.places,
            self.splits + other.splits,
            max(self.estimated_bytes, other.estimated_bytes),
            max(peaks, default=None),
        )

    @property
    def padding_share(self) -> float:
        """Share of the places computed that were padding, in [0, 1)."""
        return 1 - self.tokens / self.places if self.places else 0.0


@dataclass
class _Lane:
    """A slot in the bank."""

    index: int
    """Of its work."""
    work: SlotWork
    step: int = 0
    losses: list[Tensor] = field(default_factory=list)
    tokens: int = 0
    places: int = 0


def initial_factors(layout: FlatLayout, recipe: UpdateRecipe, seed: int, layers: Sequence[str] | None = None) -> Tensor:
    """Return a slot's (P,) starting point: A uniform in +-1 / sqrt(D_in) as PEFT draws it, B zero.

    All A's are drawn in float32 on the CPU, in the order of the layers, each as (rank, D_in); so they depend on seed,
    rank and shapes alone.

    Args:
        layout: The bank's.
        recipe: Gives the rank.
        seed: Of the draws.
        layers: Those that the slot adapts, in the model's order; None is all of the layout.
    """
    generator = torch.Generator().manual_seed(seed)
    flat = torch.zeros(1, layout.size)
    views = layout.views(flat)
    for name in layout.shapes if layers is None else layers:
        d_in = layout.shapes[name].d_in
        views[name][0][0, : recipe.rank].uniform_(-(d_in**-0.5), d_in**-0.5, generator=generator)
    return flat[0]


class BankTrainer:
    """Trains any number of slots, as many at once as limits and padding allow."""

    def __init__(self, student: BankedModel, layout: FlatLayout, limits: BankLimits) -> None:
        """Prepare a bank of `layout`, whose rank is at least that of every slot."""
        self._student, self._layout, self._limits = student, layout, limits
        self.usage = BankUsage()
        self._widest_pass = 0

    def train(self, works: Sequence[SlotWork], start: Callable[[int], Tensor]) -> list[TrainedSlot]:
        """Return all slots trained, in order.

        Rows and columns beyond a slot's rank, and layers that it does not adapt, are zero and stay zero: their
        gradients are products with each other.

        Args:
            works: At least one.
            start: Gives the (P,) starting point of a slot when its turn comes.
        """
        slot_bytes, widest = bytes_of_slot(self._layout, self._student.dtype), max(work.places for work in works)
        capacity = min(self._limits.slots(widest, slot_bytes), len(works))
        places = self._limits.pass_places(capacity, slot_bytes)
        passes = GradientPasses(self._student, self._layout, capacity, places)
        flat = torch.zeros(capacity, self._layout.size, device=self._student.device, dtype=self._student.dtype)
        optimizer = SlotAdamW(flat)
        # The longest first, as in any schedule that should end early.
        queue = deque(sorted(range(len(works)), key=lambda i: -works[i].steps * works[i].places))
        lanes: list[_Lane] = []
        done: dict[int, TrainedSlot] = {}
        with passes:
            while queue or lanes:
                while queue and len(lanes) < capacity:
                    index = queue.popleft()
                    flat[len(lanes)].copy_(start(index))
                    optimizer.reset(len(lanes))
                    lanes.append(_Lane(index, works[index]))
                failed = self._step(flat, optimizer, passes, lanes)
                for i in reversed(range(len(lanes))):
                    if lanes[i].step == lanes[i].work.steps or i in failed:
                        done[lanes[i].index] = _finished(lanes[i], flat[i], failed=i in failed)
                        if i < len(lanes) - 1:
                            optimizer.move(len(lanes) - 1, i)
                            lanes[i] = lanes[-1]
                        lanes.pop()
        self.usage.splits = passes.splits
        at_once = passes.threads * self._widest_pass
        self.usage.estimated_bytes = capacity * slot_bytes + at_once * self._limits.plan.place_bytes
        return [done[i] for i in range(len(works))]

    def _step(
        self, flat: Tensor, optimizer: SlotAdamW, passes: GradientPasses, lanes: Sequence[_Lane]
    ) -> frozenset[int]:
        """Move all slots in the bank by one step and return those that do not fit in memory."""
        k = len(lanes)
        lines = [lane.work.at(lane.step) for lane in lanes]
        found = passes.run(flat[:k], [lane.work.recipe.scale for lane in lanes], lines)
        optimizer.step(found.gradients, [SlotStep(n.work.recipe, n.step, n.work.steps) for n in lanes])
        for i, lane in enumerate(lanes):
            lane.step += 1
            lane.losses.append(found.losses[i])
            lane.tokens += found.tokens[i]
            lane.places += found.places[i]
        usage = self.usage
        usage.slots, usage.steps = max(usage.slots, k), usage.steps + 1
        usage.tokens, usage.places = usage.tokens + sum(found.tokens), usage.places + sum(found.places)
        self._widest_pass = max(self._widest_pass, found.widest_pass)
        return found.failed


def _finished(lane: _Lane, flat: Tensor, *, failed: bool) -> TrainedSlot:
    """Return what a slot leaves behind."""
    failure = f"step {lane.step - 1} does not fit in memory, even one line at a time" if failed else ""
    losses = torch.stack(lane.losses).tolist()
    return TrainedSlot(flat.detach().cpu().clone(), losses, lane.tokens, lane.places, failure)
