"""What all benchmarks share: the machine, repeated measurements and their ratios; importable without torch."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from pydantic import BaseModel, ConfigDict


def demo_config() -> Path:
    """Return the demo's configuration as it ships."""
    return Path(str(files("configs") / "demo.yaml"))


class Record(BaseModel):
    """A frozen record of a benchmark."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Spread(Record):
    """Repeated measurements of one figure."""

    median: float
    low: float
    """The lowest one."""
    high: float
    """The highest one."""


class Machine(Record):
    """Where it ran."""

    device: str
    """`cpu`, or the name of the GPU."""
    dtype: str
    threads: int
    """CPU threads of torch."""
    cores: int | None
    """Logical ones of the machine."""
    matrix_product_rate: float
    """FLOP/s of a large matrix product in the same run."""
    torch: str


def spread(values: Sequence[float]) -> Spread:
    """Return median, lowest and highest of at least one value."""
    return Spread(median=statistics.median(values), low=min(values), high=max(values))


def paired_ratios(slower: Sequence[float], faster: Sequence[float]) -> Spread:
    """Return the spread of the ratios slower / faster, each of two measurements of the same pair."""
    return spread([above / below for above, below in zip(slower, faster, strict=True)])
