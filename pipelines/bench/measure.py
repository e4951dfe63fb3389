"""Measuring: time, memory, the machine and its rate of matrix products."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import torch

from pipelines.bench.common import Machine
from student.memory import PeakMemory

T = TypeVar("T")

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

    As `PeakMemory` tells it, after free memory that the process keeps was given back: growth into that would not be
    seen. None where the system does not tell.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        _give_back_free_memory()
    with PeakMemory(device) as peak:
        result = work()
        _wait_for(device)
    return peak.grown, result


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


def machine_record(device: torch.device, dtype: torch.dtype, rate: float) -> Machine:
    """Return where this runs, with the rate of matrix products that was measured here."""
    return Machine(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        dtype=str(dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        cores=os.cpu_count(),
        matrix_product_rate=rate,
        torch=torch.__version__,
    )


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _give_back_free_memory() -> None:
    """Let glibc return what is free to the kernel."""
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):  # musl has neither the file nor the function
            return
