"""What the bank's benchmark says in the terminal: the arms side by side, ratios, growth, targets, the next command.

Reads at 80 columns and without colour, as all reports do.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.bench.common import demo_config
from pipelines.bench.records import BankBench, BankBenchResult, Growth, Profile
from pipelines.bench.wording import bulleted, three_digits, times
from pipelines.report import counted, plain_table

SAME = 0.01
"""Relative difference of two trainings of one adapter below which they count as the same work."""
_UNKNOWN = "-"


def print_bank_report(console: Console, result: BankBenchResult, bench: BankBench, plot: Path) -> None:
    """Print everything that was found.

    Args:
        console: Where to.
        result: What to print.
        bench: What was asked for; decides what to type next.
        plot: Where the figure is.
    """
    console.print(arms_table(result))
    if result.profile is not None:
        console.print(profile_table(result.profile))
    for line in closing_lines(result, bench, plot):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def arms_table(result: BankBenchResult) -> Table:
    """Return the arms side by side."""
    work, machine = result.work, result.machine
    table = plain_table(
        title=f"{counted(work.adapters, 'adapter')} of {escape(work.student)}: {work.name} workload",
        caption=f"Medians of {counted(result.pairs, 'run')}. FLOPs: useful ones (4 P + 6 L a token), in % of the "
        f"{machine.matrix_product_rate / 1e9:,.0f} GFLOP/s that a large matrix product reaches here. "
        "Padding: of the token places computed. Memory: growth at its highest.",
    )
    table.add_column("\nWay to train", overflow="fold")
    for name in ("Adapters\na minute", "Seconds an\nadapter", "Tokens\na second"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("FLOPs\n%", "Padding\n%", "Memory\nMB"):
        table.add_column(name, justify="right", no_wrap=True)
    for arm in result.arms.values():
        memory = _UNKNOWN if arm.peak_memory_bytes is None else f"{arm.peak_memory_bytes / 1e6:,.0f}"
        count = "" if arm.adapters == work.adapters else f", {counted(arm.adapters, 'adapter')}"
        table.add_row(
            f"{arm.label}{count}",
            three_digits(arm.adapters_per_minute),
            three_digits(arm.seconds_per_adapter.median),
            f"{arm.useful_tokens_per_second:,.0f}",
            f"{100 * arm.useful_flop_share:.1f}",
            f"{100 * arm.padding_share:.0f}",
            memory,
        )
    return table


def profile_table(profile: Profile) -> Table:
    """Return where the time of one run of the largest bank goes."""
    table = plain_table(
        title="Where the time of the largest bank goes",
        caption=f"One run of {profile.seconds:.2f} s on {counted(profile.threads, 'thread')} under the profiler, which "
        "makes it slower.",
    )
    table.add_column("What", overflow="fold")
    table.add_column("Calls", justify="right", no_wrap=True)
    table.add_column("Share %", justify="right", no_wrap=True)
    for group, share in profile.shares.items():
        table.add_row(group, "", f"{100 * share:.1f}")
        for operation in profile.operations:
            if operation.group == group:
                table.add_row(
                    f"  {operation.name.removeprefix('aten::')}",
                    f"{operation.calls:,}",
                    _part(operation.seconds, profile.seconds),
                )
    return table


def closing_lines(result: BankBenchResult, bench: BankBench, plot: Path) -> list[str]:
    """Return the last words: what was found, what it means, and what to type next."""
    lines = ["", "What was found", *bulleted(_findings(result, bench)), "", "Targets (demo workload, 2 CPU threads)"]
    if result.targets:
        lines += [
            f"  {'met    ' if target.met else 'NOT MET'} {target.what}: {target.measured:.2f}, wanted {target.wanted}"
            for target in result.targets
        ]
    else:
        lines += bulleted(iter(["They say nothing about this workload, student or machine."]))
    lines += ["", "Where it is", f"  figure: {plot}", "", "Next"]
    if result.profile is None:
        return [*lines, "  See where the time goes:", f"    {_command(bench)} --profile"]
    other = f"preceptor bench bank --workload synthetic --lines {bench.lines} --tokens {4 * bench.tokens} --profile"
    return [*lines, "  See what longer lines change:", f"    {other}"]


def _findings(result: BankBenchResult, bench: BankBench) -> Iterator[str]:
    """Yield a sentence or two for each thing that was found."""
    work, machine, sizes = result.work, result.machine, bench.sizes
    yield (
        f"On {machine.device}, {machine.dtype}, {counted(machine.threads, 'CPU thread')}, torch {machine.torch}. "
        f"An adapter has {work.lines:.1f} lines, {work.steps:.0f} steps and, over all of them, {work.tokens:,.0f} "
        "useful tokens (means)."
    )
    yield (
        f"Bank (K = {sizes[-1]}) over the sequential loop: {times(result.ratios.bank_over_sequential)} as fast "
        f"(median of {counted(result.pairs, 'pair')} [lowest, highest])."
    )
    same = "so the work is the same" if work.factor_difference < SAME else "more than rounding: compare with care"
    yield f"Trained by both from one start, an adapter differs by {work.factor_difference:.1e} of its change: {same}."
    if result.ratios.bank_over_published is not None:
        yield f"Bank (K = {sizes[-1]}) over the published loop: {times(result.ratios.bank_over_published)} as fast."
    if len(sizes) > 1:
        each = "; ".join(f"K = {k}: {times(ratio)}" for k, ratio in result.ratios_by_slots.items())
        yield f"By size of the bank, over the sequential loop: {each}."
    if result.growth.exponent is not None:
        yield _growth_sentence(result.growth)
    yield (
        f"Useful FLOPs alone would take {work.flops / machine.matrix_product_rate:.3g} s an adapter at the rate of a "
        f"large matrix product: the ratio to the sequential loop cannot exceed {result.ceiling:.1f}."
    )


def _growth_sentence(growth: Growth) -> str:
    points = [
        f"{count} in {three_digits(one.median)} s ({1000 * one.median / count:.1f} ms each)"
        for count, one in zip(growth.adapters, growth.seconds, strict=True)
    ]
    power = f"time grows as their number to the power {growth.exponent:.2f}"
    return f"Growth with the candidates: {', '.join(points)}; {power}."


def _command(bench: BankBench) -> str:
    """Return the command line that repeats the benchmark."""
    default = BankBench(config=bench.config)
    options = {"workload": "--workload", "lines": "--lines", "tokens": "--tokens", "epochs": "--epochs"}
    options |= {"rank": "--rank", "student": "--student", "device": "--device", "dtype": "--dtype"}
    options |= {"adapters": "--adapters", "pairs": "--pairs", "seed": "--seed"}
    words = ["preceptor", "bench", "bank"]
    if bench.config != demo_config():
        words += ["--config", str(bench.config)]
    for field, option in options.items():
        if getattr(bench, field) != getattr(default, field):
            words += [option, str(getattr(bench, field))]
    if bench.slots != default.slots:
        words += [word for k in bench.slots for word in ("--slots", str(k))]
    return shlex.join([*words, *([] if bench.published else ["--skip-published"])])


def _part(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f}"
