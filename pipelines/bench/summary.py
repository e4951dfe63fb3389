"""From measurements to figures: rates, ratios with their spread, growth, ceiling and targets."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pipelines.bench.arms import PUBLISHED, SEQUENTIAL, Arm, Places, bank_name, growth_counts
from pipelines.bench.common import Machine, Spread, paired_ratios, spread
from pipelines.bench.records import (
    ArmResult,
    BankBench,
    BankBenchResult,
    Growth,
    Profile,
    Ratios,
    Target,
    Work,
)

OVER_SEQUENTIAL, OVER_PUBLISHED = 4.0, 20.0
"""Wanted ratios on two cores at the demo's workload."""
EXPONENT = 1.1
"""Highest growth that counts as linear."""
NO_SLOWER = 1.05
"""Highest ratio of times that counts as no slower; one twentieth is left to noise."""


class JobFacts(NamedTuple):
    """What the bank says of the jobs."""

    tokens: dict[str, int]
    """Key of a job -> useful token places, over all steps."""
    flops: dict[str, float]
    """Key of a job -> useful FLOPs."""
    steps: float
    """Optimizer steps of a job, mean."""
    parameters: int
    """Of the frozen student."""
    difference: float
    """See `arms.factor_difference`."""


class Measured(NamedTuple):
    """One arm's measurements."""

    seconds: tuple[float, ...]
    """Of each pair."""
    places: Places
    memory: int | None
    """Bytes."""


def growth_exponent(numbers: Sequence[int], seconds: Sequence[float]) -> float | None:
    """Return the slope of log time over log number by least squares, 1 for linear; None for one number alone."""
    x, y = [math.log(number) for number in numbers], [math.log(second) for second in seconds]
    if len(set(x)) < 2:
        return None
    return statistics.linear_regression(x, y).slope


def summarise(
    bench: BankBench,
    arms: Sequence[Arm],
    measured: Mapping[str, Measured],
    facts: JobFacts,
    work: Work,
    machine: Machine,
    profile: Profile | None = None,
) -> BankBenchResult:
    """Return the figures that the measurements show.

    Args:
        bench: What was asked for.
        arms: All that were timed.
        measured: Arm -> its measurements.
        facts: Of the jobs.
        work: Goes into the result.
        machine: Goes into the result; its rate is what shares are of.
        profile: Goes into the result.
    """
    each = {arm.name: [s / len(arm.jobs) for s in measured[arm.name].seconds] for arm in arms}
    results = {arm.name: _arm_result(arm, measured[arm.name], facts, machine.matrix_product_rate) for arm in arms}
    sizes, largest = bench.sizes, bank_name(bench.sizes[-1])
    by_slots = {k: paired_ratios(each[SEQUENTIAL], each[bank_name(k)]) for k in sizes}
    ratios = Ratios(
        bank_over_sequential=by_slots[sizes[-1]],
        bank_over_published=paired_ratios(each[PUBLISHED], each[largest]) if PUBLISHED in each else None,
    )
    growth = _growth(bench, work.adapters, measured)
    return BankBenchResult(
        ratios=ratios,
        adapters_per_minute={k: results[bank_name(k)].adapters_per_minute for k in sizes},
        useful_flop_share=results[largest].useful_flop_share,
        padding_share=results[largest].padding_share,
        peak_memory_bytes=results[largest].peak_memory_bytes,
        ratios_by_slots=by_slots,
        ceiling=statistics.median(each[SEQUENTIAL]) * machine.matrix_product_rate / work.flops,
        growth=growth,
        pairs=bench.pairs,
        targets=_targets(ratios, growth, each, sizes[-1]) if targets_apply(work, machine) else (),
        arms=results,
        work=work,
        machine=machine,
        profile=profile,
    )


def targets_apply(work: Work, machine: Machine) -> bool:
    """Return whether the targets were set for this: the demo's workload, the micro student, two CPU threads."""
    place = (machine.device, machine.dtype, machine.threads)
    return (work.name, work.student) == ("demo", "micro-student") and place == ("cpu", "float32", 2)


def _arm_result(arm: Arm, measured: Measured, facts: JobFacts, rate: float) -> ArmResult:
    """Return an arm's figures; tokens and FLOPs are those of its jobs as a bank counts them, in every arm."""
    whole = statistics.median(measured.seconds)
    one = spread([seconds / len(arm.jobs) for seconds in measured.seconds])
    return ArmResult(
        label=arm.label,
        adapters=len(arm.jobs),
        seconds=measured.seconds,
        seconds_per_adapter=one,
        adapters_per_minute=60.0 / one.median,
        useful_tokens_per_second=sum(facts.tokens[job.key] for job in arm.jobs) / whole,
        useful_flop_share=sum(facts.flops[job.key] for job in arm.jobs) / whole / rate,
        padding_share=1.0 - measured.places.tokens / measured.places.padded_tokens,
        peak_memory_bytes=measured.memory,
    )


def _growth(bench: BankBench, adapters: int, measured: Mapping[str, Measured]) -> Growth:
    """Return the largest bank's time for a quarter, a half and all of the candidates."""
    largest = bench.sizes[-1]
    names = {count: bank_name(largest, count) for count in growth_counts(adapters)} | {adapters: bank_name(largest)}
    spreads = tuple(spread(measured[name].seconds) for name in names.values())
    return Growth(
        adapters=tuple(names),
        seconds=spreads,
        exponent=growth_exponent(tuple(names), [one.median for one in spreads]),
    )


def _targets(ratios: Ratios, growth: Growth, each: Mapping[str, Sequence[float]], largest: int) -> tuple[Target, ...]:
    """Return the targets with what was measured; those that this run did not measure are left out."""
    found = [_at_least("times as fast as the sequential loop", OVER_SEQUENTIAL, ratios.bank_over_sequential)]
    if ratios.bank_over_published is not None:
        found.append(_at_least("times as fast as the published loop", OVER_PUBLISHED, ratios.bank_over_published))
    if growth.exponent is not None:
        found.append(_at_most("growth with the candidates (1 is linear)", EXPONENT, growth.exponent))
    small = bank_name(16)
    if small in each and largest > 16:
        slower = paired_ratios(each[bank_name(largest)], each[small]).median
        found.append(_at_most(f"time of an adapter, K = {largest} over K = 16", NO_SLOWER, slower))
    return tuple(found)


def _at_least(what: str, bound: float, ratio: Spread) -> Target:
    return Target(what=what, wanted=f">= {bound:g}", measured=ratio.median, met=ratio.median >= bound)


def _at_most(what: str, bound: float, value: float) -> Target:
    return Target(what=what, wanted=f"<= {bound:g}", measured=value, met=value <= bound)
