"""Threads that work beside each other on one small model, each on work of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

T = TypeVar("T")

_SMALL_MODEL = 50_000_000
"""Parameters up to which threads work apart."""


def threads_apart(model: Any, device: torch.device, most: int) -> int:
    """Return how many threads should work on shares of their own, at most `most` and at least 1.

    Threads that share the small products of a small model spend more time meeting than computing: with two, an adapter
    of the micro student took longer than with one. Large products are better shared, and a GPU is one worker.
    """
    small = sum(parameter.numel() for parameter in model.parameters()) <= _SMALL_MODEL
    return max(1, min(most, torch.get_num_threads())) if small and device.type == "cpu" else 1


def run_apart(works: Sequence[Callable[[threading.Event], T]]) -> list[T]:
    """Return what each of the works returns, each computed by a thread of its own with torch's operations on it alone.

    Args:
        works: At least one; a single one is called here, with all of torch's threads. Each gets an event that is set
            when another has failed or the caller is interrupted, and should then end early: its result is dropped.

    Raises:
        Exception: That of the first work that failed.
    """
    stop = threading.Event()
    if len(works) == 1:
        return [works[0](stop)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(len(works)) as pool:
            futures = [pool.submit(_guarded, work, stop) for work in works]
            try:
                return [future.result() for future in futures]
            finally:
                stop.set()
    finally:
        torch.set_num_threads(threads)


def _guarded(work: Callable[[threading.Event], T], stop: threading.Event) -> T:
    """Return the work's result; let the others know when it fails."""
    try:
        return work(stop)
    except BaseException:
        stop.set()
        raise
