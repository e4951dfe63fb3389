"""Where the time of one run goes, by kind of operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from pipelines.bench.measure import timed
from pipelines.bench.records import Operation, Profile

PYTHON = "Python and what lies between operations"
ELEMENTWISE = "element-wise work and sums, the optimizer's among them"
_PARTS = {
    "attention": ("attention", "flash"),
    "matrix products": ("mm", "linear", "matmul"),
    "loss": ("softmax", "nll_loss", "cross_entropy", "logsumexp"),
    "copies and gathers": ("copy", "clone", "index", "gather", "scatter", "cat", "stack", "fill", "zero", "embedding"),
    "allocation and views": (
        *("empty", "view", "strided", "select", "slice", "transpose", "aten::t", "expand", "resize", "split"),
        *("reshape", "alias", "squeeze", "detach", "permute", "narrow", "chunk", "unbind", "aten::to"),
    ),
}
"""Group -> parts of the names of torch's own operations, looked for in this order."""
_OWN = "aten::"
_SHOWN = 12


def profile_run(work: Callable[[], Any], device: torch.device) -> Profile:
    """Return where the time of `work` goes: of the GPU's for a GPU, else of the CPU's, which then runs one thread.

    What no operation accounts for is Python and waiting, which the profiler itself makes larger. It does not see what
    threads started by `work` do, so on a CPU nothing is shared out while it looks.
    """
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    usual = torch.get_num_threads()
    threads = usual if on_gpu else 1
    torch.set_num_threads(threads)
    try:
        with profile(activities=activities) as recorded:
            seconds, _ = timed(work, device)
    finally:
        torch.set_num_threads(usual)
    operations = []
    for event in recorded.key_averages():
        # On a GPU a kernel's time is told twice: by the kernel and by the operation that started it.
        if event.device_type.name == "CPU":
            micro = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            name = event.key
            operations.append(Operation(name=name, group=group_of(name), calls=event.count, seconds=micro / 1e6))
    operations.sort(key=lambda operation: -operation.seconds)
    return Profile(
        seconds=seconds,
        threads=threads,
        shares=group_shares(operations, seconds),
        operations=tuple(operations[:_SHOWN]),
    )


def group_of(name: str) -> str:
    """Return the group of an operation, by the profiler's name for it.

    Beside torch's own there are functions written in Python, whose own time is Python's, and fused kernels.
    """
    if "fused" in name:
        return ELEMENTWISE
    if not name.startswith(_OWN):
        return PYTHON
    return next((group for group, parts in _PARTS.items() if any(_fits(name, part) for part in parts)), ELEMENTWISE)


def _fits(name: str, part: str) -> bool:
    return name == part if part.startswith(_OWN) else part in name


def group_shares(operations: Sequence[Operation], seconds: float) -> dict[str, float]:
    """Return the share of each group in a run of so many seconds, largest first; they add up to 1.

    Where operations overlap, so that they take longer together than the run, the shares are of their sum.
    """
    sums: dict[str, float] = {}
    for operation in operations:
        sums[operation.group] = sums.get(operation.group, 0.0) + operation.seconds
    sums[PYTHON] = sums.get(PYTHON, 0.0) + max(0.0, seconds - sum(sums.values()))
    whole = sum(sums.values())
    return dict(sorted(((group, taken / whole) for group, taken in sums.items()), key=lambda share: -share[1]))
