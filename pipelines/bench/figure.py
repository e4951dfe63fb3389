"""The benchmark's figure: adapters a minute by size of the bank, and the time of an adapter by number of candidates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.bench.records import BankBenchResult
from pipelines.plots import BLUE, GREEN, GREY, ORANGE, new_figure, save_figure
from pipelines.report import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RIVALS = {"sequential": (ORANGE, "--"), "published": (GREEN, ":")}


def plot_bank(result: BankBenchResult, path: Path) -> None:
    """Write the figure as PNG; its directory exists."""
    work, machine = result.work, result.machine
    figure = new_figure(
        9.6,
        4.6,
        f"Training {counted(work.adapters, 'adapter')} of {work.student} ({work.name} workload)",
        f"{machine.device}, {machine.dtype}, {counted(machine.threads, 'CPU thread')} · median of "
        f"{counted(result.pairs, 'run')}, bars and bands: lowest to highest",
    )
    rate, growth = figure.subplots(1, 2, width_ratios=(1.5, 1))
    _draw_rates(rate, result)
    _draw_growth(growth, result)
    save_figure(figure, path)


def _draw_rates(axes: Axes, result: BankBenchResult) -> None:
    """Draw adapters a minute against K, on two logarithmic axes, with the rivals across."""
    from matplotlib.ticker import NullLocator

    sizes = list(result.adapters_per_minute)
    spreads = [result.arms[f"bank-{k}"].seconds_per_adapter for k in sizes]
    rates = list(result.adapters_per_minute.values())
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.plot(sizes, rates, "-o", color=BLUE, linewidth=2, markersize=6, label="bank")
    axes.vlines(sizes, [60 / one.high for one in spreads], [60 / one.low for one in spreads], color=BLUE, linewidth=5)
    for k, rate in zip(sizes, rates, strict=True):
        axes.annotate(_round(rate), (k, rate), (0, 9), textcoords="offset points", ha="center", color=BLUE, fontsize=9)
    for name, (color, style) in _RIVALS.items():
        if name in result.arms:
            arm = result.arms[name]
            label = f"{arm.label}: {_round(arm.adapters_per_minute)}"
            axes.axhline(arm.adapters_per_minute, color=color, linestyle=style, linewidth=2, label=label)
    seen = [*rates, *(result.arms[name].adapters_per_minute for name in _RIVALS if name in result.arms)]
    axes.set(ylim=(min(seen) / 1.6, max(seen) * 2.2), xlabel="adapters in the bank, K", ylabel="adapters a minute")
    axes.set_xlim(min(sizes) / 1.4, max(sizes) * 1.4)
    axes.set_xticks(sizes, [str(k) for k in sizes], minor=False)
    axes.yaxis.set_major_formatter(lambda value, _: _round(value))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y", color="#E4E4E4", linewidth=0.8)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=9, borderaxespad=0.2)


def _draw_growth(axes: Axes, result: BankBenchResult) -> None:
    """Draw the largest bank's time for one adapter against the number of candidates: level is linear growth."""
    growth = result.growth
    middle = [1000 * one.median / n for n, one in zip(growth.adapters, growth.seconds, strict=True)]
    low = [1000 * one.low / n for n, one in zip(growth.adapters, growth.seconds, strict=True)]
    high = [1000 * one.high / n for n, one in zip(growth.adapters, growth.seconds, strict=True)]
    axes.fill_between(growth.adapters, low, high, color=BLUE, alpha=0.18, linewidth=0)
    axes.plot(growth.adapters, middle, "-o", color=BLUE, linewidth=2, markersize=6)
    axes.axhline(middle[-1], color=GREY, linewidth=1, linestyle="--")
    axes.set(xlabel="candidates", ylabel="milliseconds an adapter", xticks=growth.adapters)
    axes.set_ylim(0, 1.25 * max(high))
    axes.set_xlim(0, 1.1 * max(growth.adapters))
    axes.grid(axis="y", color="#E4E4E4", linewidth=0.8)
    axes.set_title(
        f"largest bank (K = {max(result.adapters_per_minute)}); level: linear growth", fontsize=9, loc="left"
    )


def _round(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
