"""Measuring: time, memory, and the machine's rate of matrix products."""

from __future__ import annotations

import ctypes
import gc
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_CLEAR_PEAK = "5"
"""What `clear_refs` takes to set the peak of resident memory to what is resident now (man proc_pid_clear_refs)."""
_SIDE = {"cpu": 2048, "cuda": 8192}
"""Rows and columns at which a matrix product runs at its best rate."""


def timed(work: Callable[[], T], device: torch.device) -> tuple[float, T]:
    """Return the seconds that `work` takes, until the device is done with it, and what it returns."""
    gc.collect()  # What the work before has left behind is not this one's to clear away.
    return _clocked(work, device)


def _clocked(work: Callable[[], T], device: torch.device) -> tuple[float, T]:
    _wait_for(device)
    started = time.perf_counter()
    result = work()
    _wait_for(device)
    return time.perf_counter() - started, result


def peak_growth(work: Callable[[], T], device: torch.device) -> tuple[int | None, T]:
    """Return by how many bytes memory grew at its highest during `work`, and what it returns.

    On a GPU this is what PyTorch allocated there; on a CPU the resident memory of the process, for which free memory
    that the process keeps is given back first. On Linux the peak is set back before; elsewhere it is that of the whole
    process so far, so that work which stays below it counts as 0. None where the system tells neither.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = work()
        _wait_for(device)
        return torch.cuda.max_memory_allocated(device) - before, result
    _give_back_free_memory()
    start = _resident_peak()
    result = work()
    end = _resident_peak(reset=False)
    return (None if start is None or end is None else max(0, end - start)), result


def matrix_product_rate(device: torch.device, dtype: torch.dtype, *, side: int | None = None) -> float:
    """Return the FLOP/s of a large square matrix product, the best of several within about a second.

    Args:
        device: Where, with torch's present number of threads.
        dtype: Of both factors.
        side: Rows and columns; None is a size at which the device is at its best.
    """
    n = side or _SIDE[device.type]
    left, right = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    best, until = math.inf, time.perf_counter() + 1.0
    torch.mm(left, right)  # The first product of a size pays for its preparation.
    for repeat in range(100):
        seconds, _ = _clocked(lambda: torch.mm(left, right), device)
        best = min(best, seconds)
        if repeat >= 2 and time.perf_counter() > until:
            break
    return 2.0 * n**3 / best


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _give_back_free_memory() -> None:
    """Let glibc return what is free to the kernel: growth into memory that is kept would not be seen."""
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):  # musl has neither the file nor the function
            return


def _resident_peak(*, reset: bool = True) -> int | None:
    """Return the peak of resident memory in bytes, set back to what is resident now where the system can do that."""
    try:
        if reset:
            _CLEAR.write_text(_CLEAR_PEAK)
        fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
        return int(fields["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit
