"""What the benchmark of the sampling engines says in the terminal: rates side by side, ratios, start-up, next command.

Reads at 80 columns and without colour, as all reports do.
"""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.bench.common import Spread, demo_config
from pipelines.bench.engine_records import ENGINES, LABELS, EngineBench, EngineBenchResult, SamplingWork
from pipelines.bench.engine_summary import samples_to_break_even
from pipelines.bench.wording import bulleted, three_digits, times
from pipelines.report import counted, plain_table


def print_engine_report(console: Console, result: EngineBenchResult, bench: EngineBench, plot: Path) -> None:
    """Print everything that was found.

    Args:
        console: Where to.
        result: What to print.
        bench: What was asked for; decides what to type next.
        plot: Where the figure is.
    """
    console.print(rates_table(result))
    console.print(ratios_table(result))
    for line in closing_lines(result, bench, plot):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def rates_table(result: EngineBenchResult) -> Table:
    """Return the engines side by side at each number of prompts."""
    work = result.work
    table = plain_table(
        title=f"Sampling from {escape(work.teacher)} with an adapter of rank {work.rank}",
        caption=f"Medians of {counted(result.pairs, 'call')}, {counted(work.samples, 'sample')} a prompt. Tokens are "
        "new ones; the engines draw different samples.",
    )
    table.add_column("\nPrompts", justify="right", no_wrap=True)
    table.add_column("\nEngine", no_wrap=True)
    for name in ("Seconds\na call", "Samples\na second", "Tokens\na second", "Tokens\na sample"):
        table.add_column(name, justify="right", no_wrap=True)
    for size in result.ratios:
        for engine in ENGINES:
            runs = result.runs[engine][size]
            table.add_row(
                str(size) if engine == ENGINES[0] else "",
                LABELS[engine],
                three_digits(statistics.median(runs.seconds)),
                three_digits(result.samples_per_second[engine][size]),
                three_digits(result.tokens_per_second[engine][size]),
                three_digits(statistics.fmean(runs.new_tokens) / runs.samples),
            )
    return table


def ratios_table(result: EngineBenchResult) -> Table:
    """Return how many times as fast vLLM is, by samples and by tokens."""
    table = plain_table(
        title="vLLM over transformers",
        caption=escape(
            f"Median of {counted(result.pairs, 'pair')} [lowest, highest]; above 1: vLLM is faster. By tokens it does "
            "not matter which engine happened to draw longer samples."
        ),
    )
    table.add_column("Prompts", justify="right", no_wrap=True)
    for name in ("Samples a second", "Tokens a second"):
        table.add_column(name, no_wrap=True)
    for size, ratio in result.ratios.items():
        table.add_row(str(size), escape(times(ratio)), escape(times(result.token_ratios[size])))
    return table


def closing_lines(result: EngineBenchResult, bench: EngineBench, plot: Path) -> list[str]:
    """Return the last words: what was found, what it means, and what to type next."""
    found = ["", "What was found", *bulleted(_findings(result))]
    return [*found, "", "Where it is", f"  figure: {plot}", "", "Next", *_next(result, bench)]


def _findings(result: EngineBenchResult) -> Iterator[str]:
    """Yield a sentence or two for each thing that was found."""
    work, machine = result.work, result.machine
    versions = ", ".join(f"{LABELS[engine]} {result.versions[engine]}" for engine in ENGINES)
    yield (
        f"On {machine.device}, {machine.dtype}, {counted(machine.threads, 'CPU thread')}, torch {machine.torch}, "
        f"{versions}; a large matrix product reaches {machine.matrix_product_rate / 1e9:,.0f} GFLOP/s."
    )
    yield (
        f"Prompts have {work.prompt_tokens:.0f} tokens (mean), completions at most {work.max_new_tokens}, drawn at "
        f"temperature {work.temperature:g}, top_p {work.top_p:g}."
    )
    yield _greedy_sentence(result)
    for size, ratio in result.token_ratios.items():
        faster = _faster(ratio)
        yield f"{counted(size, 'prompt')} a call: vLLM writes {times(ratio)} as many tokens a second; {faster}."
    yield from _startup_sentences(result)
    known = {engine: grown for engine, grown in result.peak_memory_bytes.items() if grown is not None}
    if known:
        grew = " and ".join(f"{grown / 1e6:,.0f} MB with {LABELS[engine]}" for engine, grown in known.items())
        yield f"Opening the engine and the largest call took at most {grew}."


def _greedy_sentence(result: EngineBenchResult) -> str:
    share, count = result.greedy_equal_share, result.work.greedy_prompts
    equal = f"{round(share * count)} of {counted(count, 'greedy completion')} have the same tokens from both engines"
    if share == 1.0:
        return f"{equal}: they compute the same teacher."
    if result.machine.dtype == "float32":
        return f"{equal}. In float32 that is more than rounding explains often: compare with care."
    return f"{equal}. In {result.machine.dtype} rounding lets them part where two tokens are nearly as likely."


def _faster(ratio: Spread) -> str:
    if ratio.low > 1.0:
        return "vLLM is faster in every pair"
    return "transformers is faster in every pair" if ratio.high < 1.0 else "neither is faster in every pair"


def _startup_sentences(result: EngineBenchResult) -> Iterator[str]:
    took = "; ".join(
        f"{LABELS[engine]} {three_digits(one.first)} s, opened again {three_digits(one.again)} s"
        for engine, one in result.startup_seconds.items()
    )
    yield f"From nothing to the first completion: {took}. None of it is in the rates."
    size = max(result.ratios)
    samples = samples_to_break_even(result)
    made_up = "never makes" if samples is None else f"takes {math.ceil(samples):,} samples to make"
    yield f"At {counted(size, 'prompt')} a call vLLM {made_up} up for its first start."


def _next(result: EngineBenchResult, bench: EngineBench) -> list[str]:
    """Return what to type: a run with vLLM where it is faster at the most prompts in every pair, else a larger call."""
    size = max(result.ratios)
    if result.ratios[size].low > 1.0 and result.token_ratios[size].low > 1.0:
        words = ["preceptor", "train-teacher", str(bench.config)]
        if result.work.configured != "vllm":
            words += ["--set", _vllm_setting(result.work)]
        return ["  Run with vLLM:", f"    {shlex.join(words)}"]
    larger = bench.model_copy(update={"prompts": (size,), "samples": 4 * bench.samples})
    return ["  See what larger calls change:", f"    {_command(larger)}"]


def _vllm_setting(work: SamplingWork) -> str:
    """Return the setting that changes the engine and nothing else that was timed; the other's own settings must go."""
    common = f"temperature: {work.temperature:g}, top_p: {work.top_p:g}, max_new_tokens: {work.max_new_tokens}"
    return f"teacher.sampling={{type: vllm, {common}}}"


def _command(bench: EngineBench) -> str:
    """Return the command line that runs the benchmark."""
    words = ["preceptor", "bench", "engines"]
    if bench.config != demo_config():
        words += ["--config", str(bench.config)]
    words += [word for size in bench.prompts for word in ("--prompts", str(size))]
    for field in ("samples", "pairs", "seed"):
        if getattr(bench, field) != EngineBench.model_fields[field].default:
            words += [f"--{field}", str(getattr(bench, field))]
    return shlex.join(words)
