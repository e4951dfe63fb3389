"""`preceptor bench bank`: the bank and its two rivals on the same work, pair by pair."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from pipelines.bench.arms import (
    PUBLISHED,
    SEQUENTIAL,
    Arm,
    Places,
    bank_name,
    build_arms,
    factor_difference,
    train_in_bank,
)
from pipelines.bench.measure import machine_record, matrix_product_rate, peak_growth, timed
from pipelines.bench.profiling import profile_run
from pipelines.bench.records import BankBench, BankBenchResult, Work
from pipelines.bench.summary import JobFacts, Measured, summarise
from pipelines.bench.workloads import Workload, load_workload
from pipelines.model_sizes import ModelSize, training_flops
from pipelines.progress import Reporter
from pipelines.report import counted
from student.updates import UpdateJob


def bench_bank(bench: BankBench, work_dir: Path, console: Console, *, profile: bool = False) -> BankBenchResult:
    """Time all arms and return what they show.

    Args:
        bench: What to time.
        work_dir: For what the preparation leaves behind.
        console: Gets progress.
        profile: Also run the largest bank once under the profiler.

    Raises:
        ConfigError: The configuration is refused.
        UpdateError: An update failed, so that its time would mean nothing.
    """
    console.print(f"preparing the {bench.workload} workload", highlight=False)
    workload = load_workload(bench, work_dir)
    weight = workload.student.model.get_input_embeddings().weight
    device, dtype = weight.device, weight.dtype
    # Every arm freezes the base; here it is done for all, so that none finds it as another has left it.
    workload.student.model.eval().requires_grad_(False)
    arms = build_arms(bench, workload)
    with Reporter(console, total=len(arms) * (bench.pairs + 1)) as reporter:
        rate = matrix_product_rate(device, dtype)
        reporter.say(_opening(bench, workload, rate))
        facts = job_facts(workload, bench.sizes[-1])
        reporter.say(f"the same work: a bank and a sequential loop end {facts.difference:.1e} apart (relative)")
        measured = _measure(arms, bench, device, reporter)
        # The better of two, so that a disturbance at the start does not flatter the arms.
        rate = max(rate, matrix_product_rate(device, dtype))
        found = None
        if profile:
            found = profile_run(partial(train_in_bank, workload, bench.sizes[-1], workload.jobs), device)
            reporter.say(f"profiled one run of the bank, K = {bench.sizes[-1]}")
    machine = machine_record(device, dtype, rate)
    return summarise(bench, arms, measured, facts, _work(bench, workload, facts), machine, found)


def job_facts(workload: Workload, slots: int) -> JobFacts:
    """Return tokens and useful FLOPs of each job as a bank counts them, from one training of all."""
    results = train_in_bank(workload, slots, workload.jobs)
    parameters = sum(parameter.numel() for parameter in workload.student.model.parameters())
    flops = {}
    for result in results:
        assert result.adapter is not None
        factors = sum(a.numel() + b.numel() for a, b in result.adapter.factors.values())
        flops[result.key] = result.tokens * training_flops(ModelSize(parameters, factors))
    first = results[0].adapter
    assert first is not None
    return JobFacts(
        tokens={result.key: result.tokens for result in results},
        flops=flops,
        steps=statistics.fmean(result.steps for result in results),
        parameters=parameters,
        difference=factor_difference(workload, slots, first),
    )


def _measure(arms: Sequence[Arm], bench: BankBench, device: torch.device, reporter: Reporter) -> dict[str, Measured]:
    """Return memory, token places and times of every arm; the order of the arms turns with every pair."""
    memory: dict[str, int | None] = {}
    places: dict[str, Places] = {}
    seconds: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for arm in arms:
        reporter.begin(f"warm-up: {arm.label}")
        memory[arm.name], _ = peak_growth(partial(arm.run, arm.warm_up), device)
        reporter.done()
    for pair in range(bench.pairs):
        for arm in arms if pair % 2 == 0 else reversed(arms):
            reporter.begin(f"pair {pair + 1} of {bench.pairs}: {arm.label}")
            taken, places[arm.name] = timed(partial(arm.run, arm.jobs), device)
            seconds[arm.name].append(taken)
            reporter.done()
        reporter.say(_pair_line(arms, bench, pair, seconds))
    return {arm.name: Measured(tuple(seconds[arm.name]), places[arm.name], memory[arm.name]) for arm in arms}


def _pair_line(arms: Sequence[Arm], bench: BankBench, pair: int, seconds: dict[str, list[float]]) -> str:
    """Return what one pair took: seconds an adapter of the largest bank and of the rivals."""
    named = {bank_name(bench.sizes[-1]): "bank", SEQUENTIAL: "sequential", PUBLISHED: "published"}
    took = [f"{named[arm.name]} {seconds[arm.name][pair] / len(arm.jobs):.3g} s" for arm in arms if arm.name in named]
    return f"pair {pair + 1} of {bench.pairs}: {', '.join(took)} an adapter"


def _opening(bench: BankBench, workload: Workload, rate: float) -> str:
    work = f"{counted(len(workload.jobs), 'adapter')} ({bench.workload} workload)"
    threads = counted(torch.get_num_threads(), "CPU thread")
    return f"{work}, {threads}, matrix products at {rate / 1e9:,.0f} GFLOP/s"


def _work(bench: BankBench, workload: Workload, facts: JobFacts) -> Work:
    jobs: Sequence[UpdateJob] = workload.jobs
    return Work(
        name=bench.workload,
        student=workload.name,
        parameters=facts.parameters,
        adapters=len(jobs),
        lines=statistics.fmean(len(job.sequences) for job in jobs),
        steps=facts.steps,
        tokens=statistics.fmean(facts.tokens.values()),
        flops=statistics.fmean(facts.flops.values()),
        factor_difference=facts.difference,
    )
