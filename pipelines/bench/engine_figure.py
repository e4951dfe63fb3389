"""The figure of the engines: new tokens a second by prompts of a call, and the paired ratio of the two engines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.bench.engine_records import ENGINES, LABELS, EngineBenchResult, EngineName
from pipelines.bench.engine_summary import token_rates
from pipelines.bench.wording import three_digits
from pipelines.plots import BLUE, GREY, INK, ORANGE, new_figure, save_figure
from pipelines.report import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

_LINES: dict[EngineName, tuple[str, str]] = {"transformers": (ORANGE, "--s"), "vllm": (BLUE, "-o")}
_ABOVE, _BELOW = 10, -17
"""How far the figure of the faster and of the slower engine stands above the end of its bar, in points."""


def plot_engines(result: EngineBenchResult, path: Path) -> None:
    """Write the figure as PNG; its directory exists."""
    work, machine = result.work, result.machine
    figure = new_figure(
        9.6,
        4.6,
        f"Sampling from {work.teacher}: up to {counted(work.max_new_tokens, 'new token')}, "
        f"{counted(work.samples, 'sample')} a prompt",
        f"{machine.device}, {machine.dtype}, {counted(machine.threads, 'CPU thread')} · median of "
        f"{counted(result.pairs, 'pair')}, bars: lowest to highest · without start-up",
    )
    rate, ratio = figure.subplots(1, 2, width_ratios=(1.5, 1))
    _draw_rates(rate, result)
    _draw_ratios(ratio, result)
    save_figure(figure, path)


def _draw_rates(axes: Axes, result: EngineBenchResult) -> None:
    """Draw new tokens a second against prompts, on two logarithmic axes, with each engine's start in the legend."""
    sizes = list(result.ratios)
    axes.set_yscale("log")
    seen: list[float] = []
    for engine in ENGINES:
        color, style = _LINES[engine]
        rates = [result.tokens_per_second[engine][size] for size in sizes]
        each = [token_rates(result.runs[engine][size]) for size in sizes]
        label = f"{LABELS[engine]} (first start: {three_digits(result.startup_seconds[engine].first)} s)"
        axes.plot(sizes, rates, style, color=color, linewidth=2, markersize=6, label=label)
        axes.vlines(sizes, [min(one) for one in each], [max(one) for one in each], color=color, linewidth=4, alpha=0.5)
        seen += [value for one in each for value in one]
    for size in sizes:
        _write_rates(axes, result, size)
    axes.set(ylim=(min(seen) / 1.8, max(seen) * 1.8), ylabel="new tokens a second")
    axes.yaxis.set_major_formatter(lambda value, _: three_digits(value))
    _place_sizes(axes, sizes)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=9, borderaxespad=0.2)


def _write_rates(axes: Axes, result: EngineBenchResult, size: int) -> None:
    """Write both figures of a number of prompts, away from each other."""
    slower, faster = sorted(ENGINES, key=lambda engine: result.tokens_per_second[engine][size])
    for engine, end, shift in ((slower, min, _BELOW), (faster, max, _ABOVE)):
        text, (color, _) = three_digits(result.tokens_per_second[engine][size]), _LINES[engine]
        place = (size, end(token_rates(result.runs[engine][size])))
        axes.annotate(text, place, (0, shift), textcoords="offset points", ha="center", color=color, fontsize=9)


def _draw_ratios(axes: Axes, result: EngineBenchResult) -> None:
    """Draw the paired ratios of new tokens a second; the line at 1 is where both are as fast."""
    sizes, ratios = list(result.token_ratios), list(result.token_ratios.values())
    axes.axhline(1.0, color=GREY, linewidth=1, linestyle="--")
    axes.vlines(sizes, [one.low for one in ratios], [one.high for one in ratios], color=INK, linewidth=4, alpha=0.4)
    axes.plot(sizes, [one.median for one in ratios], "-o", color=INK, linewidth=2, markersize=6)
    axes.set_ylim(0, 1.2 * max(1.0, *(one.high for one in ratios)))
    axes.set_ylabel("vLLM over transformers")
    axes.set_title("above the broken line: vLLM is faster", fontsize=9, loc="left")
    _place_sizes(axes, sizes)


def _place_sizes(axes: Axes, sizes: Sequence[int]) -> None:
    """Put the numbers of prompts, and nothing else, on a logarithmic axis."""
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log", base=2)
    axes.set_xlim(min(sizes) / 1.5, max(sizes) * 1.5)
    axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("prompts in a call")
    axes.grid(axis="y", color="#E4E4E4", linewidth=0.8)
