"""What the benchmark of the bank is asked for and what it found, as frozen records; importable without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from pipelines.bench.common import Machine, Record, Spread

WorkloadName = Literal["demo", "synthetic"]


class BankBench(Record):
    """What `preceptor bench bank` is asked to time."""

    config: Path
    """YAML file that gives recipe, teacher, prompt and documents."""
    workload: WorkloadName = "demo"
    """`demo`: self-edits that the untrained teacher writes; `synthetic`: random tokens of a chosen amount."""
    lines: int = Field(default=8, ge=1, le=4096)
    """Training sequences of an adapter in the synthetic workload."""
    tokens: int = Field(default=24, ge=4, le=1_000_000)
    """Mean tokens of such a sequence; lengths are within a quarter of it."""
    epochs: int | None = Field(default=None, ge=1, le=1000)
    """Passes of the synthetic workload; None is the recipe's."""
    rank: int | None = Field(default=None, ge=1, le=256)
    """LoRA rank of the synthetic workload; None is the recipe's."""
    student: str | None = None
    """Directory, hub name or `micro-student`; None is the configuration's."""
    device: Literal["cpu", "cuda"] | None = None
    """None is the configuration's."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Number format of the base; None is the configuration's."""
    adapters: int = Field(default=64, ge=1, le=4096)
    """Candidates in the timed work, N."""
    slots: tuple[int, ...] = Field(default=(1, 4, 16, 64), min_length=1)
    """Sizes K of the bank; one above N counts as N."""
    pairs: int = Field(default=5, ge=1, le=1000)
    """Runs of every arm, half of them in the opposite order."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of everything that is random, in [0, 2^31)."""
    published: bool = True
    """Whether the published loop runs, which takes most of the time."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of the bank that are run, ascending."""
        return tuple(sorted({min(size, self.adapters) for size in self.slots}))


class Ratios(Record):
    """How many times less time the largest bank takes for an adapter than a rival, pair by pair."""

    bank_over_sequential: Spread
    bank_over_published: Spread | None
    """None where the published loop was left out."""


class ArmResult(Record):
    """One way to train the adapters, over all pairs."""

    label: str
    adapters: int
    """Trained in each measurement."""
    seconds: tuple[float, ...]
    """Of each measurement, in the order of the pairs."""
    seconds_per_adapter: Spread
    adapters_per_minute: float
    """From the median."""
    useful_tokens_per_second: float
    """Places that carry a token, counted in the same way in every arm; from the median."""
    useful_flop_share: float
    """Of the measured matrix-product rate, in [0, 1]; from the median."""
    padding_share: float
    """Of the token places computed, in [0, 1]."""
    peak_memory_bytes: int | None
    """Growth of memory at its highest, in the warm-up; None where it cannot be measured."""


class Growth(Record):
    """Time of the largest bank against the number of candidates."""

    adapters: tuple[int, ...]
    seconds: tuple[Spread, ...]
    exponent: float | None
    """Slope of log time over log number: 1 is linear. None where there is one number alone."""


class Target(Record):
    """A figure that was promised for the demo's workload on two cores."""

    what: str
    wanted: str
    measured: float
    met: bool


class Operation(Record):
    """One kind of operation in a profiled run."""

    name: str
    group: str
    calls: int
    seconds: float
    """Without the operations that it calls."""


class Profile(Record):
    """Where the time of one run of the largest bank goes."""

    seconds: float
    """Of the run under the profiler, which makes it slower."""
    threads: int
    """One on a CPU, where the profiler does not see what further threads do."""
    shares: dict[str, float]
    """Group of operations -> share of the run, in [0, 1]."""
    operations: tuple[Operation, ...]
    """The most expensive ones, by falling time."""


class Work(Record):
    """The timed work; figures of an adapter are means."""

    name: WorkloadName
    student: str
    parameters: int
    """Of the frozen student, P."""
    adapters: int
    lines: float
    """Training sequences of an adapter."""
    steps: float
    """Optimizer steps of an adapter."""
    tokens: float
    """Useful token places of an adapter, over all steps."""
    flops: float
    """Useful FLOPs of an adapter, 4 P + 6 L a token."""
    factor_difference: float
    """Of one adapter trained in the bank and one trained alone from the same start: norm of the difference of their
    weight changes over the norm of the change."""


class BankBenchResult(Record):
    """Everything that `preceptor bench bank` found."""

    ratios: Ratios
    adapters_per_minute: dict[int, float]
    """Size K of the bank -> adapters a minute."""
    useful_flop_share: float
    """Of the largest bank, as are the next two; see `ArmResult`."""
    padding_share: float
    peak_memory_bytes: int | None
    ratios_by_slots: dict[int, Spread]
    """Size K of the bank -> ratio to the sequential loop."""
    ceiling: float
    """Ratio to the sequential loop that useful FLOPs at the measured matrix-product rate would reach."""
    growth: Growth
    pairs: int
    """Runs of every arm."""
    targets: tuple[Target, ...]
    """Empty where the targets do not apply."""
    arms: dict[str, ArmResult]
    """`published`, `sequential` and `bank-K`."""
    work: Work
    machine: Machine
    profile: Profile | None = None
