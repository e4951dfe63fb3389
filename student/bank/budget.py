"""How many slots a bank may train at once: memory estimated before, measured after."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import torch

from student.bank.layout import FlatLayout
from student.bank.model import BankedModel
from student.bank.packing import lay_out, probe_line

_PROBE_PLACES = 64
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
    layout = FlatLayout(student.shapes, 1)
    saved = [_saved_bytes(student, layout, places) for places in (_PROBE_PLACES // 4, _PROBE_PLACES)]
    place = (saved[1] - saved[0]) / (_PROBE_PLACES - _PROBE_PLACES // 4)
    if student.checkpoints:  # A layer's input for each layer, and all of one layer at a time.
        layers = max(1, int(getattr(student.model.config, "num_hidden_layers", 1)))
        itemsize = student.model.get_input_embeddings().weight.element_size()
        place = place / layers + layers * itemsize * int(student.model.config.hidden_size)
    if memory_bytes is None:
        import psutil  # type: ignore[import-untyped]

        on_cuda = student.device.type == "cuda"
        free = torch.cuda.mem_get_info(student.device)[0] if on_cuda else psutil.virtual_memory().available
        memory_bytes = int(free * _FREE_SHARE[student.device.type])
    return BankLimits(max_slots, max_pass_places, memory_bytes, max(1, int(place * _TRANSIENT)))


def _saved_bytes(student: BankedModel, layout: FlatLayout, places: int) -> int:
    """Return the bytes that a forward pass over one line saves for its backward pass."""
    batch = lay_out([[probe_line(student.model, places)]], student.device, packed=student.packed)
    flat = torch.zeros(1, layout.size, dtype=student.dtype, device=student.device, requires_grad=True)
    known = {parameter.untyped_storage().data_ptr() for parameter in student.model.parameters()}
    found: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with student.attached(layout.views(flat), [1.0]), hooks:
        total, _ = student.loss(batch, torch.ones(len(batch.labels), dtype=student.dtype, device=student.device))
    del total
    return sum(found.values())


class PeakMemory:
    """Context manager that measures by how much memory grew at its highest.

    On a GPU what PyTorch allocated, on Linux the resident memory of the process. `grown` is None where neither can be
    read; memory that the process held in reserve before is not seen. The peak is the process's own: of two such
    contexts, the outer one sees what came after the inner one had begun.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = 0
        self.grown: int | None = None
        """Bytes, after the context."""

    def __enter__(self) -> Self:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._start = torch.cuda.memory_allocated(self._device)
        else:
            self._start = _resident_peak(reset=True) or 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._device.type == "cuda":
            self.grown = torch.cuda.max_memory_allocated(self._device) - self._start
        elif self._start:
            peak = _resident_peak(reset=False)
            self.grown = None if peak is None else max(0, peak - self._start)


def _resident_peak(*, reset: bool) -> int | None:
    """Return the highest resident memory of the process in bytes since the last reset; None where it is unknown."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text(_CLEAR_PEAK)
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    kilobytes = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), None)
    return None if kilobytes is None else 1024 * int(kilobytes)
