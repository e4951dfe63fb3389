"""`preceptor bench engines`: both local sampling engines on the same prompts and the same teacher, pair by pair."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from pipelines.bench import engine_summary as summary
from pipelines.bench.common import Machine
from pipelines.bench.engine_records import (
    ENGINES,
    LABELS,
    EngineBench,
    EngineBenchResult,
    EngineName,
    Runs,
    SamplingWork,
    Startup,
)
from pipelines.bench.engine_work import Engines, check_enough, cut_prompts, perturb_adapter, sampling_of
from pipelines.bench.measure import machine_record, matrix_product_rate, peak_growth, timed
from pipelines.config import RunConfig, load_config
from pipelines.progress import Reporter
from pipelines.report import counted

_GREEDY_PROMPTS = 8
"""Prompts on which the engines are compared, or as many as the largest call has if these are fewer."""

Prompts = Mapping[int, tuple[str, ...]]
"""Prompts of a call -> the prompts."""


def bench_engines(bench: EngineBench, work_dir: Path, console: Console) -> EngineBenchResult:
    """Compare both engines' greedy completions, then time their sampling, and return what it shows.

    The engines are opened twice, first at temperature 0 and then to be timed, which gives both start-up times.

    Args:
        bench: What to time.
        work_dir: Of the workspace; nothing is left there.
        console: Gets progress.

    Raises:
        ConfigError: The configuration is refused, or has too few documents.
        InputError: Its documents are refused.
        ModelError: The teacher or an engine cannot be opened.
        GenerationError: An engine failed, so that times would mean nothing.
    """
    config = load_config(bench.config, [f"seed={bench.seed}"])
    device, dtype = torch.device(config.device), getattr(torch, config.dtype)
    steps = 2 * len(ENGINES) + len(ENGINES) * len(bench.sizes) * (bench.pairs + 1)
    with Reporter(console, total=steps) as reporter:
        with Engines(config, work_dir, greedy=True) as engines:
            check_enough(bench.sizes, engines.documents)
            first = _open(engines, device, reporter)
            cut = cut_prompts(engines.prompts(), bench.sizes)
            greedy = cut[bench.sizes[-1]][:_GREEDY_PROMPTS]
            share = _compare(engines, greedy)
            reporter.say(f"{100 * share:.0f} % of {counted(len(greedy), 'greedy completion')} equal in both engines")
            work = _work(engines, config, bench, cut, len(greedy))
        with Engines(config, work_dir, greedy=False) as engines:
            memory, again = _reopen(engines, cut[bench.sizes[-1]], bench.samples, device, reporter)
            # In a quiet moment of both engines, with the number of threads that they leave.
            machine = machine_record(device, dtype, matrix_product_rate(device, dtype))
            runs = _measure(engines, cut, bench, device, reporter)
    starts = {engine: Startup(first=first[engine], again=again[engine]) for engine in ENGINES}
    return _result(bench, runs, starts, share, memory, work, machine)


def _open(engines: Engines, device: torch.device, reporter: Reporter) -> dict[EngineName, float]:
    """Open both engines and return the seconds that each took to its first completion."""
    seconds = {}
    for engine in ENGINES:
        reporter.begin(f"starting {LABELS[engine]}")
        seconds[engine], _ = timed(partial(engines.open, engine), device)
        reporter.say(f"{LABELS[engine]}: {seconds[engine]:.1f} s to its first completion")
        reporter.done()
    return seconds


def _reopen(
    engines: Engines, prompts: tuple[str, ...], n: int, device: torch.device, reporter: Reporter
) -> tuple[dict[EngineName, int | None], dict[EngineName, float]]:
    """Open both engines and let each make its largest call; return the growth of memory and the seconds of opening."""
    memory: dict[EngineName, int | None] = {}
    seconds = {}
    for engine in ENGINES:
        reporter.begin(f"starting {LABELS[engine]} again")
        memory[engine], seconds[engine] = peak_growth(partial(_fill, engines, engine, prompts, n, device), device)
        reporter.done()
    return memory, seconds


def _fill(engines: Engines, engine: EngineName, prompts: tuple[str, ...], n: int, device: torch.device) -> float:
    """Open an engine, let it make its largest call, and return the seconds that opening took."""
    seconds, _ = timed(partial(engines.open, engine), device)
    engines.sample(engine, prompts, n=n, seed=engines.seed("largest"))
    return seconds


def _compare(engines: Engines, prompts: tuple[str, ...]) -> float:
    """Return the share of equal greedy completions, with an adapter that is not empty."""
    perturb_adapter(engines.policy, engines.seed("adapter", "greedy"))
    first, second = (engines.sample(engine, prompts, n=1, seed=0) for engine in ENGINES)
    return summary.equal_share(first, second)


def _measure(
    engines: Engines, cut: Prompts, bench: EngineBench, device: torch.device, reporter: Reporter
) -> dict[EngineName, dict[int, Runs]]:
    """Return the timed calls; the order of the engines turns with every pair.

    Each pair has an adapter of its own, as each round of a run has, so that vLLM finds no keys and values of an earlier
    pair in its cache. Both take it up before the clock starts. The pair before the first warms up.
    """
    seconds: dict[EngineName, dict[int, list[float]]] = {engine: {size: [] for size in cut} for engine in ENGINES}
    tokens: dict[EngineName, dict[int, list[int]]] = {engine: {size: [] for size in cut} for engine in ENGINES}
    for pair in range(bench.pairs + 1):
        name = f"pair {pair} of {bench.pairs}" if pair else "warm-up"
        perturb_adapter(engines.policy, engines.seed("adapter", pair))
        for engine in ENGINES:
            engines.use_spare(engine)
        for size, prompts in cut.items():
            for engine in ENGINES if pair % 2 else reversed(ENGINES):
                reporter.begin(f"{name}: {LABELS[engine]}, {counted(size, 'prompt')}")
                call = partial(engines.sample, engine, prompts, n=bench.samples, seed=engines.seed("pair", pair))
                taken, written = timed(call, device)
                if pair:
                    seconds[engine][size].append(taken)
                    tokens[engine][size].append(sum(len(one.token_ids) for one in written))
                reporter.done()
        if pair:
            took = (f"{LABELS[engine]} {seconds[engine][bench.sizes[-1]][-1]:.3g} s" for engine in ENGINES)
            reporter.say(f"{name}: {', '.join(took)} for {counted(bench.sizes[-1], 'prompt')}")
    return {
        engine: {
            size: Runs(
                samples=size * bench.samples,
                seconds=tuple(seconds[engine][size]),
                new_tokens=tuple(tokens[engine][size]),
            )
            for size in cut
        }
        for engine in ENGINES
    }


def _work(engines: Engines, config: RunConfig, bench: EngineBench, cut: Prompts, greedy: int) -> SamplingWork:
    sampling = sampling_of(config, "transformers")
    policy = engines.policy
    learning = sum(weight.numel() for weight in policy.adapter_parameters())
    return SamplingWork(
        teacher=config.teacher.model,
        configured=config.teacher.sampling.type,
        parameters=sum(weight.numel() for weight in policy.model.parameters()) - learning,
        rank=policy.config.rank,
        samples=bench.samples,
        prompt_tokens=statistics.fmean(engines.count_tokens(prompt) for part in cut.values() for prompt in part),
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        greedy_prompts=greedy,
    )


def _result(
    bench: EngineBench,
    runs: dict[EngineName, dict[int, Runs]],
    starts: dict[EngineName, Startup],
    share: float,
    memory: dict[EngineName, int | None],
    work: SamplingWork,
    machine: Machine,
) -> EngineBenchResult:
    import transformers
    import vllm

    return EngineBenchResult(
        ratios=summary.sample_ratios(runs),
        token_ratios=summary.token_ratios(runs),
        samples_per_second=summary.samples_per_second(runs),
        tokens_per_second=summary.tokens_per_second(runs),
        startup_seconds=starts,
        greedy_equal_share=share,
        peak_memory_bytes=memory,
        runs=runs,
        pairs=bench.pairs,
        work=work,
        machine=machine,
        versions={"transformers": transformers.__version__, "vllm": vllm.__version__},
    )
