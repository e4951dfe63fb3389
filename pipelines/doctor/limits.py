"""What control groups (cgroups) allow this process, which the machine's own figures do not tell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Limits(NamedTuple):
    """What a container or a service manager allows this process; None is no limit."""

    memory: int | None = None
    """Bytes."""
    memory_used: int = 0
    """Bytes of it that are taken and cannot be reclaimed."""
    cores: float | None = None
    """CPU time for each second."""


def read_limits(root: Path = Path("/")) -> Limits:
    """Return the tightest limits among the control groups (cgroups, either version) that hold this process.

    Args:
        root: Of the file system.
    """
    try:
        lines = (root / "proc" / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return Limits()
    base = root / "sys" / "fs" / "cgroup"
    memories: list[tuple[int, int]] = []
    cores: list[float] = []
    for line in lines:
        _, names, path = line.split(":", 2)
        controllers = set(names.split(","))
        home = base / names if names else base
        for place in _upwards(home, path):
            if not names or "memory" in controllers:
                memories += _memory(place)
            if not names or "cpu" in controllers:
                cores += _cores(place)
    memory, used = min(memories, default=(None, 0), key=lambda pair: pair[0] or 0)
    return Limits(memory, used, min(cores, default=None))


def _upwards(home: Path, path: str) -> Iterator[Path]:
    """Yield a group's directory and those above it; inside a container only `home` may be there."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for count in range(len(parts), -1, -1):
        yield home.joinpath(*parts[:count])


def _memory(place: Path) -> list[tuple[int, int]]:
    """Return a group's limit and what is used of it, in bytes; nothing where it has no limit."""
    version_2 = (place / "memory.max").exists()
    limit = _number(place / ("memory.max" if version_2 else "memory.limit_in_bytes"))
    if limit is None:
        return []
    used = _number(place / ("memory.current" if version_2 else "memory.usage_in_bytes")) or 0
    reclaimable = "inactive_file" if version_2 else "total_inactive_file"
    try:
        words = (place / "memory.stat").read_text(encoding="utf-8").split()
        used -= int(dict(zip(words[::2], words[1::2], strict=True)).get(reclaimable, 0))
    except (OSError, ValueError):
        pass
    return [(limit, max(0, used))]


def _cores(place: Path) -> list[float]:
    """Return a group's CPU time for each second; nothing where it has no limit."""
    try:
        quota, period = (place / "cpu.max").read_text(encoding="utf-8").split()
        return [] if quota == "max" else [int(quota) / int(period)]
    except (OSError, ValueError):
        period_us, quota_us = _number(place / "cpu.cfs_period_us"), _number(place / "cpu.cfs_quota_us")
        return [quota_us / period_us] if period_us and quota_us and quota_us > 0 else []


def _number(path: Path) -> int | None:
    """Return a file's number; None where there is none."""
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
