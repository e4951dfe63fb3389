"""The training loop of a bank: slots that have finished leave it, and waiting ones take their place.

AdamW works on the bank's flat parameters, each slot with a state of its own.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from student.adapters import Adapter
from student.bank.distillation import with_targets
from student.bank.layers import FlatLayout, initial_factors, stack, unstack
from student.bank.model import BankedModel
from student.bank.packing import LabelledTokens
from student.bank.passes import BankLimits, GradientPasses, bytes_of_slot
from student.config import MAX_GRADIENT_NORM
from student.updates import BankUsage, UpdateRequest

T = TypeVar("T")

EPSILON = 1e-8
"""Added to AdamW's denominator."""
_BLOCK = 1 << 16
"""Parameters, gradients and moments of this many numbers stay in a core's cache between the operations on them."""

_SMALL_MODEL = 50_000_000
"""Parameters of a model up to which each thread trains slots of its own."""


class Slot:
    """One update in a bank: what it trains on, its progress, and its factors once it has finished."""

    def __init__(self, request: UpdateRequest, layers: Sequence[str]) -> None:
        """Prepare the update of `request`, which adapts `layers`, in the model's order."""
        self.request, self.layers = request, layers
        self.steps = request.recipe.total_steps(len(request.sequences))
        lengths = sorted((len(sequence.tokens) - 1 for sequence in request.sequences), reverse=True)
        self.places = sum(lengths[: request.recipe.batch_size])
        """Most places of a step, were its longest sequences to come together."""
        self.all_places = sum(lengths)
        """Places of all its sequences."""
        self.step = self.tokens = self.padded_tokens = 0
        self.losses: list[Tensor] = []
        self.failure = ""
        """Why it was given up: memory; empty for a slot that went through all its steps."""
        self.flat: Tensor
        """(P,) factors after the last step, on the CPU."""

    def start(self, layout: FlatLayout) -> Tensor:
        """Return the (P,) factors before the first step."""
        request = self.request
        if request.initial is not None:
            return stack(layout, [request.initial])[0]
        return initial_factors(layout, request.recipe.rank, request.seed, self.layers)

    def lines(self) -> list[LabelledTokens]:
        """Return the sequences of the next step; each comes once an epoch."""
        size = self.request.recipe.batch_size
        epoch, part = divmod(self.step, -(-len(self.request.sequences) // size))
        return [self.sequences[i] for i in self._orders[epoch][part * size : (part + 1) * size]]

    def read(self, student: BankedModel, most_places: int) -> bool:
        """Read the passage in context where it is distilled; return whether that fits in memory."""
        if self.request.recipe.objective == "context_distillation":
            lines = with_targets(student, self.request.sequences, most_places)
            self.sequences = lines or ()
            return lines is not None
        return True

    def finish(self, flat: Tensor, *, failed: bool) -> None:
        """Keep the (P,) factors of a slot that leaves the bank."""
        self.flat = flat.detach().cpu().clone()
        what = f"step {self.step - 1}" if self.step else "the passage in context"
        self.failure = f"{what} does not fit in memory, even one line at a time" if failed else ""

    def adapter(self, layout: FlatLayout, base_digest: str) -> Adapter:
        """Return the adapter of a slot that has finished."""
        recipe = self.request.recipe
        return Adapter(unstack(layout, self.flat, recipe.rank, self.layers), recipe.rank, recipe.alpha, base_digest)

    @cached_property
    def sequences(self) -> tuple[LabelledTokens, ...]:
        """All that it trains on."""
        return tuple(LabelledTokens.of(sequence.tokens, sequence.loss_mask) for sequence in self.request.sequences)

    @cached_property
    def _orders(self) -> list[list[int]]:
        return sequence_order(len(self.request.sequences), self.request.seed, self.request.recipe.epochs)


def sequence_order(count: int, seed: int, epoch_count: int) -> list[list[int]]:
    """Return the order of `count` sequences in each epoch, shuffled anew each time from one seed."""
    generator = random.Random(seed)
    orders = []
    for _ in range(epoch_count):
        order = list(range(count))
        generator.shuffle(order)
        orders.append(order)
    return orders


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

    def step(self, gradients: Tensor, slots: Sequence[Slot]) -> None:
        """Move the first K slots by one step of `gradients` (K, P), which are overwritten."""
        norms = torch.linalg.vector_norm(gradients, dim=1)
        # As torch.nn.utils.clip_grad_norm_.
        scales = (torch.full_like(norms, MAX_GRADIENT_NORM) / (norms + 1e-6)).clamp_(max=1.0)[:, None]
        # Made in double precision: in single, 1 - 0.999 is off by a hundred thousandth.
        table = torch.tensor([_factors(slot) for slot in slots], dtype=torch.float64).to(gradients)
        factors = [column[:, None] for column in table.unbind(1)]
        on_cpu = gradients.device.type == "cpu"
        rows = max(1, _BLOCK // gradients.shape[1]) if on_cpu else len(slots)
        for start in range(0, len(slots), rows):
            block = slice(start, min(start + rows, len(slots)))
            p, m, v, g = self._parameters[block], self._first[block], self._second[block], gradients[block]
            minus_rate, new_first, keep_second, new_second, second_correction = (factor[block] for factor in factors)
            # In the order of operations of torch.optim.AdamW.
            g.mul_(scales[block])
            m.lerp_(g, new_first)
            v.mul_(keep_second).add_(g.square_().mul_(new_second))
            denominator = torch.sqrt(v, out=g).div_(second_correction).add_(EPSILON)
            p.addcmul_(torch.div(m, denominator, out=g), minus_rate)


def _factors(slot: Slot) -> tuple[float, ...]:
    """Return what a slot's next update multiplies by."""
    recipe, (beta1, beta2) = slot.request.recipe, slot.request.recipe.adam_betas
    corrections = 1 - beta1 ** (slot.step + 1), (1 - beta2 ** (slot.step + 1)) ** 0.5
    return -recipe.learning_rate_at(slot.step, slot.steps) / corrections[0], 1 - beta1, beta2, 1 - beta2, corrections[1]


def bytes_of_slots(student: BankedModel, layout: FlatLayout, slots: Sequence[Slot]) -> int:
    """Return the bytes of one slot, with the hidden states that the one with the most sequences reuses."""
    states = student.lower.state_bytes(student.lower.first_of(layout.shapes))
    return bytes_of_slot(layout, student.dtype) + states * max(slot.all_places for slot in slots)


def train_slots(student: BankedModel, layout: FlatLayout, limits: BankLimits, slots: Sequence[Slot]) -> BankUsage:
    """Train any number of slots, as many at once as limits and padding allow; return the usage without its peak.

    The rank of `layout` is at least that of every slot. Rows and columns beyond a slot's rank, and layers that it does
    not adapt, are zero and stay zero: their gradients are products with each other.
    """
    first = student.lower.first_of(layout.shapes)
    slot_bytes, widest = bytes_of_slots(student, layout, slots), max(slot.places for slot in slots)
    threads = threads_apart(student.model, student.device, len(slots))
    while threads > 1 and limits.slots(threads * widest, slot_bytes) < threads:
        threads -= 1
    capacity = min(limits.slots(threads * widest, slot_bytes), len(slots))
    places = limits.pass_places(capacity, slot_bytes)
    # The longest first, as in any schedule that should end early; dealt out before, so that which slots share a pass
    # does not depend on which thread is faster.
    order = sorted(slots, key=lambda slot: -slot.steps * slot.places)
    parts = [
        _Part(student, layout, -(-(capacity - i) // threads), max(1, places // threads), first) for i in range(threads)
    ]
    run_apart([partial(part.train, order[i::threads]) for i, part in enumerate(parts)])
    return BankUsage(
        slots=sum(part.most for part in parts),
        tokens=sum(slot.tokens for slot in slots),
        places=sum(slot.padded_tokens for slot in slots),
        splits=sum(part.passes.splits for part in parts),
    )


class _Part:
    """The slots that one thread trains side by side."""

    def __init__(self, student: BankedModel, layout: FlatLayout, capacity: int, most_places: int, first: int) -> None:
        self._layout, self._student, self._most_places = layout, student, most_places
        self._flat = torch.zeros(capacity, layout.size, device=student.device, dtype=student.dtype)
        self._optimizer = SlotAdamW(self._flat)
        self._slots: list[Slot] = []
        self.passes = GradientPasses(student, layout, most_places, first)
        self.most = 0

    def train(self, waiting: Sequence[Slot], stop: threading.Event) -> None:
        """Train slots as they come to their turn; end early when `stop` is set."""
        queue, slots = deque(waiting), self._slots
        while (queue or slots) and not stop.is_set():
            while queue and len(slots) < len(self._flat):
                slot = queue.popleft()
                if not slot.read(self._student, self._most_places):
                    slot.finish(slot.start(self._layout), failed=True)
                    continue
                self._flat[len(slots)].copy_(slot.start(self._layout))
                self._optimizer.reset(len(slots))
                slots.append(slot)
            failed = self._step() if slots else set()
            for i in reversed(range(len(slots))):
                if slots[i].step == slots[i].steps or i in failed:
                    slots[i].finish(self._flat[i], failed=i in failed)
                    self.passes.known.forget(slots[i].sequences)
                    if i < len(slots) - 1:
                        self._optimizer.move(len(slots) - 1, i)
                        slots[i] = slots[-1]
                    slots.pop()

    def _step(self) -> set[int]:
        """Move all slots by one step and return the places of those that do not fit in memory."""
        slots, k = self._slots, len(self._slots)
        scales, lines = [slot.request.recipe.scale for slot in slots], [slot.lines() for slot in slots]
        found = self.passes.run(self._flat[:k], scales, lines)
        self._optimizer.step(found.gradients, slots)
        for i, slot in enumerate(slots):
            slot.step += 1
            slot.losses.append(found.losses[i])
            slot.tokens += found.tokens[i]
            slot.padded_tokens += found.places[i]
        self.most = max(self.most, k)
        return found.failed


def threads_apart(model: Any, device: torch.device, most: int) -> int:
    """Return how many threads should train slots of their own, at most `most` and at least 1.

    Threads that share the small products of a small model spend more time meeting than computing: with two, an adapter
    of the micro student took longer than with one. Large products are better shared, and a GPU is one worker.
    """
    small = sum(parameter.numel() for parameter in model.parameters()) <= _SMALL_MODEL
    return max(1, min(most, torch.get_num_threads())) if small and device.type == "cpu" else 1


def run_apart(works: Sequence[Callable[[threading.Event], T]]) -> list[T]:
    """Return the results of some works, each computed in a thread of its own with torch's operations on it alone.

    A single work is called here, with all of torch's threads. Each gets an event that is set when another has failed or
    the caller is interrupted, and should then end early: the exception of the first that failed is raised.
    """
    stop = threading.Event()
    if len(works) == 1:
        return [works[0](stop)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(len(works)) as pool:
            futures = [pool.submit(work, stop) for work in works]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                stop.set()
        return [future.result() for future in futures]
    finally:
        torch.set_num_threads(threads)
