"""The machine: what torch computes with and how fast, GPUs, cores and memory that this process may use."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.doctor.checks import Check, late
from pipelines.doctor.children import Outcome
from pipelines.doctor.limits import Limits
from pipelines.doctor.remedies import Remedies
from pipelines.report import counted

AREA = "machine"
LEAST_MEMORY = 3e9
"""Bytes that the demo takes."""
_MOST_ERROR = 1e-4
"""Relative error of a float32 product above which the library computes wrongly; rounding makes some 1e-6."""
_NATIVE_BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16")
"""What processors call instructions for bfloat16: Intel's two, and ARM's."""
_SHOWN_FLAGS = ("avx2", "avx512f", *_NATIVE_BFLOAT16)


def has_gpu(gpus: Outcome | None, torch: Outcome | None) -> bool:
    """Return whether the driver or torch shows an NVIDIA GPU."""
    by_driver = gpus is not None and gpus.data is not None and bool(gpus.data["gpus"])
    return by_driver or (torch is not None and torch.data is not None and bool(torch.data["devices"]))


def torch_checks(outcome: Outcome, version: str | None, remedies: Remedies, root: Path = Path("/")) -> Iterator[Check]:
    """Yield what torch is and how it multiplies matrices here.

    Args:
        outcome: Of the probe `torch`.
        version: Of the installed distribution; without one there is nothing to say here.
        remedies: Writes the commands.
        root: Of the file system, to read the processor's features from.
    """
    if version is None:
        return
    if outcome.late is not None:
        yield Check(area=AREA, name="torch", status="warning", found=late(outcome.late))
        return
    if outcome.data is None:
        text, fix = f"{version} cannot be imported: {outcome.error}", remedies.reinstall("torch", version)
        yield Check(area=AREA, name="torch", status="broken", found=text, fix=fix)
        return
    data = outcome.data
    build = f"for CUDA {data['cuda']}" if data["cuda"] else "for CPU"
    text = f"{data['version']}, built {build}, {counted(data['threads'], 'thread')}"
    yield Check(area=AREA, name="torch", status="ok", found=text)
    yield _product(f"CPU, {data['capability']}", "float32 on CPU", data["cpu"], remedies, version)
    flags = cpu_flags(root)
    shown = ", ".join(flag for flag in _SHOWN_FLAGS if flag in flags) or "none of those asked for"
    text = f"{'native' if native_bfloat16(root) else 'not native, so slower than float32'} (CPU features: {shown})"
    yield Check(area=AREA, name="bfloat16 on CPU", status="ok", found=text)


def _product(where: str, name: str, product: Any, remedies: Remedies, version: str) -> Check:
    """Return whether a product of matrices was right, and its rate."""
    if not product["error"] < _MOST_ERROR:
        text = f"wrong: a product of matrices is off by {product['error']:.1g} of itself"
        return Check(area=AREA, name=name, status="broken", found=text, fix=remedies.reinstall("torch", version))
    return Check(area=AREA, name=name, status="ok", found=f"{product['gflops']:,.0f} GFLOP/s ({where})")


def gpu_checks(gpus: Outcome | None, torch: Outcome, version: str | None, remedies: Remedies) -> Iterator[Check]:
    """Yield the GPUs, and whether torch can use them.

    Args:
        gpus: Of the probe `gpus`; None where there is no `nvidia-smi`.
        torch: Of the probe `torch`.
        version: Of torch's distribution.
        remedies: Writes the commands.
    """
    if gpus is not None and gpus.late is not None:
        yield Check(area=AREA, name="GPU", status="warning", found=f"nvidia-smi: {late(gpus.late)}")
    elif gpus is not None and gpus.data is None:
        yield Check(area=AREA, name="GPU", status="warning", found=f"the driver does not answer: {gpus.error}")
    data = torch.data or {}
    devices = data.get("devices", [])
    if not has_gpu(gpus, torch):
        if gpus is None:
            yield Check(area=AREA, name="GPU", status="optional", found="none shown; models run on the CPU")
        return
    by_driver = gpus.data["gpus"] if gpus is not None and gpus.data else []
    for gpu in by_driver:
        text = f"{gpu['name']}, {gpu.get('memory', '?')}, driver {gpu.get('driver', '?')}"
        yield Check(area=AREA, name="GPU", status="ok", found=text)
    for device in [] if by_driver else devices:
        yield Check(area=AREA, name="GPU", status="ok", found=f"{device['name']}, {device['bytes'] / 1e9:.0f} GB")
    if devices:
        yield _product(devices[0]["name"], "float32 on GPU", data["gpu"], remedies, version or "")
    elif data and not data["cuda"]:
        text = f"torch {version} is built for CPU and leaves the GPU idle; the index has the build for CUDA"
        fix = remedies.reinstall("torch", version or "")
        yield Check(area=AREA, name="torch on GPU", status="warning", found=text, fix=fix)
    elif data:
        text = f"torch {version} cannot use it; a newer driver may help: {data['cuda_error'] or 'no reason given'}"
        yield Check(area=AREA, name="torch on GPU", status="warning", found=text)


def cpu_flags(root: Path = Path("/")) -> frozenset[str]:
    """Return the processor's features as Linux names them; empty elsewhere."""
    try:
        lines = (root / "proc" / "cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    named = [line.partition(":")[2] for line in lines if line.lower().startswith(("flags", "features"))]
    return frozenset(named[0].split()) if named else frozenset()


def native_bfloat16(root: Path = Path("/")) -> bool:
    """Return whether the processor has instructions for bfloat16."""
    return not cpu_flags(root).isdisjoint(_NATIVE_BFLOAT16)


def core_check(limits: Limits) -> Iterator[Check]:
    """Yield the cores this process may use; threads above a quota of CPU time only stop one another."""
    import psutil  # type: ignore[import-untyped]

    all_cores = os.cpu_count() or 1
    own = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else all_cores
    asked = os.environ.get("OMP_NUM_THREADS", "")
    yield from quota_check(all_cores, own, limits.cores, int(asked) if asked.isdigit() else own)


def quota_check(all_cores: int, own: int, quota: float | None, threads: int) -> Iterator[Check]:
    """Yield whether `threads` fit the cores and the quota of CPU time.

    Args:
        all_cores: Of the machine.
        own: That this process may run on.
        quota: CPU seconds for each second; None is no limit.
        threads: That torch starts with.
    """
    text = f"{own} of {all_cores}" + ("" if quota is None else f", CPU time of {quota:g}")
    fitting = max(1, math.floor(own if quota is None else min(own, quota)))
    if threads > fitting:
        text += f"; {threads} threads would wait for one another"
        fix = f"export OMP_NUM_THREADS={fitting}"
        yield Check(area=AREA, name="cores", status="warning", found=text, fix=fix)
    else:
        yield Check(area=AREA, name="cores", status="ok", found=text)


def memory_check(limits: Limits) -> Iterator[Check]:
    """Yield the memory that is free for this process."""
    import psutil

    machine = psutil.virtual_memory()
    total, free, note = machine.total, machine.available, ""
    if limits.memory is not None and limits.memory < total:
        total, free = limits.memory, min(free, max(0, limits.memory - limits.memory_used))
        note = f" (a limit of this container or service; the machine has {machine.total / 1e9:.1f})"
    text = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free{note}"
    if free < LEAST_MEMORY:
        text += f"; the demo takes {LEAST_MEMORY / 1e9:.0f} GB"
        yield Check(area=AREA, name="memory", status="warning", found=text)
    else:
        yield Check(area=AREA, name="memory", status="ok", found=text)
