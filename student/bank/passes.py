"""Gradients of many slots in as few passes as memory allows: estimated before, split on failure, measured after."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from student.bank.layers import FlatLayout
from student.bank.model import BankedModel
from student.bank.packing import LabelledTokens, lay_out, probe_line
from student.bank.reuse import KnownStates

PASS_COST = 128
"""Fixed cost of a pass, in places of padding that it is worth."""
_NO_MEMORY = ("can't allocate memory", "out of memory", "not enough memory")
"""What PyTorch's allocators say when they fail without an exception type of their own."""
_PROBE_PLACES = (16, 64)
_COPIES = 5
"""Of a slot's factors: themselves, two moments, their gradients, and the gradients as autograd gathers them."""
_TRANSIENT = 2.0
"""What a pass takes for each byte that it saves for its backward pass; 1.4 to 2.1 with glibc's allocator."""
_FREE_SHARE = {"cuda": 0.85, "cpu": 0.5}
"""Share of the free memory that a bank takes when no budget is given: others use a machine's main memory, too."""
_CLEAR_PEAK = "5"
"""What `clear_refs` takes to set the peak of resident memory to what is resident now (man proc_pid_clear_refs)."""


class BankLimits(NamedTuple):
    """How much a bank may do at once."""

    max_slots: int
    max_pass_places: int
    """Places of one forward and backward pass, padding included; a slot alone may have more."""
    memory_bytes: int
    """For slots and activations, the base left out."""
    place_bytes: int
    """Activations of one place, saved and passing."""

    def slots(self, widest: int, slot_bytes: int) -> int:
        """Return how many slots fit in memory beside activations of `widest` places (passes that run at once), >= 1."""
        room = (self.memory_bytes - widest * self.place_bytes) // slot_bytes
        return max(1, min(self.max_slots, room))

    def pass_places(self, slots: int, slot_bytes: int) -> int:
        """Return how many places fit in one pass beside so many slots' factors, >= 1."""
        room = (self.memory_bytes - slots * slot_bytes) // self.place_bytes
        return max(1, min(self.max_pass_places, room))


def bytes_of_slot(layout: FlatLayout, dtype: torch.dtype) -> int:
    """Return the bytes of one slot's factors, moments and gradients."""
    return _COPIES * layout.size * dtype.itemsize


def plan_limits(student: BankedModel, max_slots: int, max_pass_places: int, memory_bytes: int | None) -> BankLimits:
    """Return the limits of a bank; the memory of a place on this model is measured by two small passes.

    `memory_bytes` None takes a share of what is free.
    """
    few, many = (_saved_bytes(student, places) for places in _PROBE_PLACES)
    place = (many - few) / (_PROBE_PLACES[1] - _PROBE_PLACES[0])
    if student.checkpoints:  # A layer's input for each layer, and all of one layer at a time.
        config = student.model.config.get_text_config()
        layers = max(1, int(getattr(config, "num_hidden_layers", 1)))
        itemsize = student.model.get_input_embeddings().weight.element_size()
        place = place / layers + layers * itemsize * int(config.hidden_size)
    if memory_bytes is None:
        import psutil  # type: ignore[import-untyped]

        on_cuda = student.device.type == "cuda"
        free = torch.cuda.mem_get_info(student.device)[0] if on_cuda else psutil.virtual_memory().available
        memory_bytes = int(free * _FREE_SHARE[student.device.type])
    return BankLimits(max_slots, max_pass_places, memory_bytes, max(1, int(place * _TRANSIENT)))


def _saved_bytes(student: BankedModel, places: int) -> int:
    """Return the bytes that a forward pass over one line saves for its backward pass."""
    layout = FlatLayout(student.shapes, 1)
    batch = lay_out([[probe_line(student.model, places)]], student.device, packed=student.packed)
    flat = torch.zeros(1, layout.size, dtype=student.dtype, device=student.device, requires_grad=True)
    known = {parameter.untyped_storage().data_ptr() for parameter in student.model.parameters()}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with student.attached(layout.views(flat), [1.0]), hooks:
        total, _ = student.loss(batch, torch.ones(len(batch.labels), dtype=student.dtype, device=student.device))
    del total
    return sum(found.values())


def peak_bytes(device: torch.device, *, reset: bool = False) -> int | None:
    """Return the most memory in use since the last reset; `reset` starts anew from what is in use now.

    On a GPU what PyTorch allocated, on Linux the resident memory of the process; None where neither can be read.
    """
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text(_CLEAR_PEAK)
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    kilobytes = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), None)
    return None if kilobytes is None else 1024 * int(kilobytes)


class SlotGradients(NamedTuple):
    """One step of K slots before the optimizer."""

    gradients: Tensor
    """(K, P); zero for slots that failed."""
    losses: Tensor
    """(K,) token means in nats, without gradient."""
    tokens: list[int]
    """Of each slot, places that were not padding."""
    places: list[int]
    """Of each slot, padding included."""
    failed: set[int]
    """Slots whose step does not fit in memory even alone, a line at a time."""


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an exception says that an allocation failed, on whatever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def split_into_passes(sizes: Sequence[int], most_places: int) -> list[list[int]]:
    """Return the slots of each pass, so that padding and the fixed cost of a pass together are smallest.

    A pass pads its slots (of `sizes` places) to the fullest, up to `most_places` in all unless one slot has more.
    Sorted by size, the best passes are runs of neighbours, found by dynamic programming over their ends.
    """
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    best: list[tuple[int, int]] = [(0, 0)]  # For the first n slots: cost, and where their last pass begins.
    for end in range(1, len(order) + 1):
        found = (best[end - 1][0] + sizes[order[end - 1]] + PASS_COST, end - 1)
        for begin in range(end - 2, -1, -1):
            places = (end - begin) * sizes[order[begin]]
            if places > most_places:
                break
            found = min(found, (best[begin][0] + places + PASS_COST, begin))
        best.append(found)
    passes, end = [], len(order)
    while end:
        begin = best[end][1]
        passes.append(sorted(order[begin:end]))
        end = begin
    return passes[::-1]


class GradientPasses:
    """Runs the passes of one thread's slots and remembers how large one may be.

    A pass that runs out of memory is split, slots first, then the lines of a single slot, and tried again; later steps
    begin with smaller passes. Splitting changes results by rounding alone: a slot's loss is a sum of its labels' losses
    with weights that are fixed before.
    """

    def __init__(self, student: BankedModel, layout: FlatLayout, most_places: int, first: int = 0) -> None:
        """Prepare passes of at most `most_places`, padding included, wherever a slot alone has no more.

        Blocks below `first` (`LowerBlocks.first_of`) read each sequence once.
        """
        self._student, self._layout, self._most_places = student, layout, most_places
        self.known = KnownStates(student.lower, first)
        self.splits = 0

    def run(self, flat: Tensor, scales: Sequence[float], lines: Sequence[Sequence[LabelledTokens]]) -> SlotGradients:
        """Return the gradients of K slots' losses on the lines of their step, with factors `flat` (K, P)."""
        k, sizes = len(lines), [sum(len(line.ids) for line in slot) for slot in lines]
        whole: SlotGradients | None = None
        todo = split_into_passes(sizes, self._most_places)
        while todo:
            part = todo.pop()
            # All slots in one pass: neither factors nor gradients are copied.
            rows = torch.tensor(part, device=flat.device) if len(part) < k else slice(None)
            factors, chosen = flat[rows], [lines[i] for i in part]
            found = self._try(factors, [scales[i] for i in part], chosen)
            if found is None and len(part) > 1:
                half = len(part) // 2
                self._most_places = min(self._most_places, half * max(sizes[i] for i in part))
                todo += [part[:half], part[half:]]
                continue
            if found is None:
                found = self._alone(factors, [scales[i] for i in part], chosen[0])
            if found is not None and len(part) == k:
                return found
            if whole is None:
                whole = SlotGradients(torch.zeros_like(flat), flat.new_zeros(k), [0] * k, [0] * k, set())
            if found is None:
                whole.failed.add(part[0])
                continue
            whole.gradients[rows], whole.losses[rows] = found.gradients, found.losses
            for i, slot in enumerate(part):
                whole.tokens[slot], whole.places[slot] = found.tokens[i], found.places[i]
        assert whole is not None
        return whole

    def _alone(self, flat: Tensor, scales: Sequence[float], lines: Sequence[LabelledTokens]) -> SlotGradients | None:
        """Return the step of one slot a few lines at a time, summed; None when a single line does not fit."""
        labels, size = [_labels(lines)], len(lines)
        while True:
            parts, kept_little = [], self._student.checkpoints
            for start in range(0, len(lines), size):
                part = self._try(flat, scales, [lines[start : start + size]], labels)
                if part is None:
                    break
                parts.append(part)
            else:
                return SlotGradients(
                    torch.stack([part.gradients for part in parts]).sum(0),
                    torch.stack([part.losses for part in parts]).sum(0),
                    [sum(part.tokens[0] for part in parts)],
                    [sum(part.places[0] for part in parts)],
                    set(),
                )
            if size > 1:
                size = -(-size // 2)
            elif kept_little or not self._student.checkpoint():
                return None

    def _try(
        self,
        flat: Tensor,
        scales: Sequence[float],
        lines: Sequence[Sequence[LabelledTokens]],
        labels: Sequence[int] | None = None,
    ) -> SlotGradients | None:
        """Return one pass over K slots, or None when memory does not suffice.

        Each slot's loss is divided by the labels of its whole step: `labels`, or those of `lines`.
        """
        try:
            return self._pass(flat, scales, lines, labels or [_labels(slot) for slot in lines])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        self.splits += 1
        gc.collect()  # The exception's traceback has let go of the tensors by now.
        if flat.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _pass(
        self, flat: Tensor, scales: Sequence[float], lines: Sequence[Sequence[LabelledTokens]], labels: Sequence[int]
    ) -> SlotGradients:
        batch = lay_out(lines, flat.device, packed=self._student.packed)
        active = flat.detach().requires_grad_()
        shares = (1.0 / torch.tensor(labels, dtype=torch.float64)).to(flat)
        with self._student.attached(self._layout.views(active), scales), self.known.used(lines, batch):
            total, losses = self._student.loss(batch, shares.index_select(0, batch.label_slots))
            (gradients,) = torch.autograd.grad(total, active)
        by_slot = losses.new_zeros(len(lines)).index_add_(0, batch.label_slots, losses)
        return SlotGradients(gradients, by_slot, batch.tokens, [batch.places] * len(lines), set())


def _labels(lines: Sequence[LabelledTokens]) -> int:
    return sum(int((line.labels >= 0).sum()) for line in lines)
