"""The training loop of a bank: slots that are done leave it, and new ones take their place."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
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
from student.threads import run_apart, threads_apart


class BankLimits(NamedTuple):
    """How much a bank may do at once."""

    max_slots: int
    max_pass_places: int
    """Places of one forward and backward pass, padding included; a slot alone may have more."""
    plan: MemoryPlan

    def slots(self, widest: int, slot_bytes: int) -> int:
        """Return how many slots fit in memory beside the activations of the passes that run at once, at least 1.

        Args:
            widest: Places of the fullest slot, times the passes at once.
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
    """Steps of the bank; of each thread's part of it, added up."""
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

    def add_beside(self, other: BankUsage) -> None:
        """Count in the usage of a part that another thread trained at the same time, memory left out."""
        self.slots += other.slots
        self.steps += other.steps
        self.splits += other.splits
        self.tokens += other.tokens
        self.places += other.places

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

    def train(self, works: Sequence[SlotWork], start: Callable[[int], Tensor]) -> list[TrainedSlot]:
        """Return all slots trained, in order.

        Rows and columns beyond a slot's rank, and layers that it does not adapt, are zero and stay zero: their
        gradients are products with each other.

        Args:
            works: At least one.
            start: Gives the (P,) starting point of a slot when its turn comes; called by any thread.
        """
        slot_bytes, widest = bytes_of_slot(self._layout, self._student.dtype), max(work.places for work in works)
        threads = threads_apart(self._student.model, self._student.device, len(works))
        while threads > 1 and self._limits.slots(threads * widest, slot_bytes) < threads:
            threads -= 1
        capacity = min(self._limits.slots(threads * widest, slot_bytes), len(works))
        places = self._limits.pass_places(capacity, slot_bytes)
        # The longest first, as in any schedule that should end early; dealt out before, so that which slots share a
        # pass does not depend on which thread is faster.
        order = sorted(range(len(works)), key=lambda i: -works[i].steps * works[i].places)
        parts = []
        for i in range(threads):
            slots = -(-(capacity - i) // threads)
            parts.append(_Lanes(self._student, self._layout, slots, max(1, places // threads)))
        found = run_apart([partial(part.train, order[i::threads], works, start) for i, part in enumerate(parts)])
        for part in parts:
            self.usage.add_beside(part.usage)
        self.usage.estimated_bytes = capacity * slot_bytes + self._limits.plan.place_bytes * sum(
            part.widest_pass for part in parts
        )
        done = {index: slot for slots in found for index, slot in slots.items()}
        return [done[i] for i in range(len(works))]


class _Lanes:
    """The slots that one thread trains side by side."""

    def __init__(self, student: BankedModel, layout: FlatLayout, capacity: int, most_places: int) -> None:
        self._flat = torch.zeros(capacity, layout.size, device=student.device, dtype=student.dtype)
        self._optimizer = SlotAdamW(self._flat)
        self._passes = GradientPasses(student, layout, most_places)
        self._lanes: list[_Lane] = []
        self.usage = BankUsage()
        self.widest_pass = 0
        """Places of the largest pass so far."""

    def train(
        self,
        indices: Sequence[int],
        works: Sequence[SlotWork],
        start: Callable[[int], Tensor],
        stop: threading.Event,
    ) -> dict[int, TrainedSlot]:
        """Return the slots of `indices` trained, in which order they come to their turn; fewer when told to stop."""
        queue, lanes, done = deque(indices), self._lanes, dict[int, TrainedSlot]()
        while (queue or lanes) and not stop.is_set():
            while queue and len(lanes) < len(self._flat):
                index = queue.popleft()
                self._flat[len(lanes)].copy_(start(index))
                self._optimizer.reset(len(lanes))
                lanes.append(_Lane(index, works[index]))
            failed = self._step()
            for i in reversed(range(len(lanes))):
                if lanes[i].step == lanes[i].work.steps or i in failed:
                    done[lanes[i].index] = _finished(lanes[i], self._flat[i], failed=i in failed)
                    if i < len(lanes) - 1:
                        self._optimizer.move(len(lanes) - 1, i)
                        lanes[i] = lanes[-1]
                    lanes.pop()
        self.usage.splits = self._passes.splits
        return done

    def _step(self) -> frozenset[int]:
        """Move all slots by one step and return those that do not fit in memory."""
        lanes, k = self._lanes, len(self._lanes)
        lines = [lane.work.at(lane.step) for lane in lanes]
        found = self._passes.run(self._flat[:k], [lane.work.recipe.scale for lane in lanes], lines)
        self._optimizer.step(found.gradients, [SlotStep(n.work.recipe, n.step, n.work.steps) for n in lanes])
        for i, lane in enumerate(lanes):
            lane.step += 1
            lane.losses.append(found.losses[i])
            lane.tokens += found.tokens[i]
            lane.places += found.places[i]
        usage = self.usage
        usage.slots, usage.steps = max(usage.slots, k), usage.steps + 1
        usage.tokens, usage.places = usage.tokens + sum(found.tokens), usage.places + sum(found.places)
        self.widest_pass = max(self.widest_pass, found.widest_pass)
        return found.failed


def _finished(lane: _Lane, flat: Tensor, *, failed: bool) -> TrainedSlot:
    """Return what a slot leaves behind."""
    failure = f"step {lane.step - 1} does not fit in memory, even one line at a time" if failed else ""
    losses = torch.stack(lane.losses).tolist()
    return TrainedSlot(flat.detach().cpu().clone(), losses, lane.tokens, lane.places, failure)
