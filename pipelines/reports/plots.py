"""PNG figures of a run: reward by round, accuracy by variant.

Figures have their own canvases, so pyplot's global state stays untouched. The colours are Okabe and Ito's
(jfly.uni-koeln.de/color), which colour-blind readers can tell apart; no meaning rests on colour alone.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evaluation.common.storage import replacing
from evaluation.statistics import Interval, known_mean
from pipelines.records import Round, VariantComparison, VariantScores
from pipelines.reports.format import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#8A8A8A", "#222222"

_DPI = 150


def plot_rewards(rounds: Sequence[Round], path: Path) -> None:
    """Write a PNG of the rewards by round, and below it the share of self-edits with a reward and the KL."""
    from matplotlib.ticker import MaxNLocator

    numbers = [record.round for record in rounds]
    figure = new_figure(7.2, 5.6, "Reward of the teacher's self-edits by round", _extent(rounds))
    rewards, scored, divergence = figure.subplots(3, 1, sharex=True, height_ratios=(3.2, 1, 1))
    _draw_rewards(rewards, rounds, numbers)
    rewarded = [known_mean(c.reward is not None for c in record.candidates) for record in rounds]
    _line(scored, numbers, [None if share is None else 100 * share for share in rewarded], GREEN)
    scored.set(ylabel="scored (%)", ylim=(-4, 108), yticks=(0, 50, 100))
    _line(divergence, numbers, [record.learning.kl for record in rounds], INK)
    divergence.set(ylabel="KL (nats\nper token)", xlabel="round")
    divergence.set_ylim(bottom=-0.06 * divergence.get_ylim()[1])
    divergence.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    divergence.set_xlim(min(numbers, default=0) - 0.5, max(numbers, default=0) + 0.5)
    figure.align_ylabels()
    save_figure(figure, path)


def plot_accuracy(
    comparison: VariantComparison, variants: Sequence[VariantScores], path: Path, what: str = "variant"
) -> None:
    """Write a PNG of each variant's accuracy with its interval, every document as a dot behind it.

    Variants are drawn from top to bottom, those that are not in the comparison without an interval.
    """
    figure = new_figure(
        7.2,
        1.7 + 0.62 * max(len(variants), 1),
        f"Accuracy by {what} on {counted(comparison.documents, 'test document')}",
        f"line: mean with {100 * comparison.confidence:g} % bootstrap interval over documents · dots: single documents",
    )
    axes = figure.subplots()
    places = range(len(variants))
    for place, variant in zip(places, variants, strict=True):
        scores = sorted(100 * score for score in variant.accuracy.values())
        strip = [place + shift for shift in _spread(scores)]
        axes.scatter(scores, strip, s=14, color=GREY, alpha=0.42, linewidths=0, zorder=2, clip_on=False)
        if variant.name in comparison.variants:
            draw_interval(axes, place, comparison.variants[variant.name])
        else:
            right = axes.get_yaxis_transform()
            axes.text(1.03, place, "no scores", transform=right, va="center", color=GREY, fontsize=9)
    seen = [score for variant in variants for score in variant.accuracy.values()]
    seen += [interval.high for interval in comparison.variants.values()]
    end = 10 * math.ceil(10 * max(seen, default=1.0)) or 10
    axes.set(xlim=(-0.02 * end, 1.02 * end), ylim=(len(variants) - 0.45, -0.55), yticks=places)
    axes.set_xlabel("questions answered exactly (%)")
    axes.text(1.03, 1.0, "mean", transform=axes.transAxes, va="bottom", color=BLUE, fontsize=9)
    axes.set_yticklabels([_tick_label(variant.label) for variant in variants])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#E4E4E4", linewidth=0.8)
    axes.spines["left"].set_visible(False)
    save_figure(figure, path)


def _tick_label(text: str) -> str:
    """Return a label in short lines, such as one that is a path; a dollar would begin a formula."""
    lines = (line for part in text.replace(" (", "\n(").split("\n") for line in textwrap.wrap(part, 38) or [part])
    return "\n".join(lines).replace("$", r"\$")


def _draw_rewards(axes: Axes, rounds: Sequence[Round], numbers: Sequence[int]) -> None:
    """Draw the mean, the spread between candidates and the student's reward without an update."""
    values = [[c.reward for c in record.candidates if c.reward is not None] or [math.nan] for record in rounds]
    low, high = ([float(np.quantile(rewards, share)) for rewards in values] for share in (0.1, 0.9))
    label = "middle 80 % of self-edits"
    if len(rounds) == 1:
        axes.vlines(numbers, low, high, color=BLUE, alpha=0.25, linewidth=10, label=label)
    else:
        axes.fill_between(numbers, low, high, color=BLUE, alpha=0.18, linewidth=0, label=label)
    _line(axes, numbers, [record.mean_reward for record in rounds], BLUE, "their mean")
    base = np.array([record.base_reward for record in rounds], dtype=float)
    axes.plot(numbers, base, "--s", color=ORANGE, linewidth=1.6, markersize=4, label="student without an update")
    axes.set_ylabel("reward")
    if rounds:
        layout = {"ncols": 3, "frameon": False, "fontsize": 9, "borderaxespad": 0.2, "columnspacing": 1.4}
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), **layout)


def draw_interval(axes: Axes, place: float, interval: Interval) -> None:
    """Draw an interval of shares as a horizontal line in percent, its mean as a dot and in figures at the right."""
    mean, low, high = (100 * end for end in (interval.mean, interval.low, interval.high))
    axes.plot([low, high], [place, place], color=BLUE, linewidth=3.2, solid_capstyle="butt", zorder=3)
    axes.plot(mean, place, "o", color=BLUE, markersize=8.5, markeredgecolor="white", markeredgewidth=1.2, zorder=4)
    right = axes.get_yaxis_transform()
    axes.text(1.03, place, f"{mean:.1f}", transform=right, va="center", fontweight="bold", color=BLUE)


def _line(axes: Axes, x: Sequence[int], y: Sequence[float | None], color: str, label: str | None = None) -> None:
    """Draw a line with a gap where a value is not known."""
    axes.plot(x, np.array(y, dtype=float), "-o", color=color, linewidth=2, markersize=4.5, label=label)
    axes.grid(axis="y", color="#E4E4E4", linewidth=0.8)


def new_figure(width: float, height: float, title: str, subtitle: str) -> Figure:
    """Return a figure (inches) with title and subtitle at a fixed distance from the top, needing no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08, rect=(0, 0, 1, 1 - 0.58 / height))
    figure = Figure(figsize=(width, height), dpi=_DPI, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(0.02, 1 - 0.10 / height, title, va="top", fontsize=13, fontweight="bold", color=INK)
    figure.text(0.02, 1 - 0.38 / height, subtitle, va="top", fontsize=9.5, color="#555555")
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write the figure atomically, and free it."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    try:
        with replacing(path) as staging:
            figure.savefig(staging, format="png")
    finally:
        figure.clear()


def _extent(rounds: Sequence[Round]) -> str:
    candidates = sum(len(record.candidates) for record in rounds)
    documents = len({document for record in rounds for document in record.document_ids})
    parts = (len(rounds), "round"), (candidates, "self-edit"), (documents, "training document")
    return " · ".join(itertools.starmap(counted, parts))


def _spread(scores: Sequence[float], reach: float = 0.28, step: float = 0.06) -> list[float]:
    """Return the vertical offset of each of the ascending `scores`, so that equal ones stay apart."""
    places: list[float] = []
    for _, equal in itertools.groupby(scores, key=lambda score: round(score, 6)):
        count = len(list(equal))
        gap = min(step, 2 * reach / max(count - 1, 1))
        places += [gap * (i - (count - 1) / 2) for i in range(count)]
    return places


def draw_figures(
    place: Path,
    rounds: Sequence[Round],
    comparison: VariantComparison,
    variants: Sequence[VariantScores],
) -> list[Path]:
    """Write the figures of a run into a directory and return their paths."""
    place.mkdir(parents=True, exist_ok=True)
    plot_accuracy(comparison, variants, place / "accuracy.png")
    if rounds:
        plot_rewards(rounds, place / "rewards.png")
    return [place / name for name in ("rewards.png", "accuracy.png") if rounds or name == "accuracy.png"]
