"""Pictures of the document: variants, accuracy against tokens, rewards by round, arms. Colours of Okabe and Ito."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.statistics import Interval
from pipelines.evidence import over_seeds
from pipelines.evidence.arms import ArmReading
from pipelines.evidence.cells import in_order, variant
from pipelines.evidence.over_seeds import Results
from pipelines.plots import BLUE, GREEN, GREY, INK, ORANGE, new_figure, save_figure
from pipelines.report import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SKY, _YELLOW, _PINK = "#56B4E9", "#E69F00", "#CC79A7"
_GRID = "#E4E4E4"


def _marks() -> Iterator[tuple[str, str]]:
    """Yield a marker and a colour for each line; no meaning rests on colour alone."""
    return itertools.cycle(
        (("o", BLUE), ("s", ORANGE), ("^", GREEN), ("D", _PINK), ("v", _YELLOW), ("P", _SKY), ("X", GREY))
    )


def plot_variants(results: Results, path: Path) -> None:
    """Write a figure of each variant's accuracy over all seeds with its interval, every seed as a dot below it.

    Args:
        results: By seed, at least one.
        path: PNG file to write; its directory exists.
    """
    names = in_order({name for result in results.values() for name in result.variants})
    figure = new_figure(
        8.2,
        1.5 + 0.42 * len(names),
        "Accuracy by variant",
        f"line: mean with 95 % interval over {counted(len(results), 'seed')} and documents · dots: single seeds",
    )
    axes = figure.subplots()
    for place, name in enumerate(names):
        seen = [100 * r.variants[name].mean for r in results.values() if name in r.variants]
        axes.scatter(seen, [place + 0.3] * len(seen), s=14, color=GREY, linewidths=0, alpha=0.8)
        found = over_seeds.accuracy(results, name)
        if found is not None:
            _interval(axes, place, found, BLUE)
    _rows(axes, [variant(name).strip("*") for name in names], "questions answered exactly (%)")
    axes.set_xlim(left=min(-1.0, axes.get_xlim()[0]))
    save_figure(figure, path)


def plot_budgets(results: Results, path: Path) -> None:
    """Write a figure of accuracy against the tokens of self-edits, a line a variant, with intervals over all seeds.

    Args:
        results: By seed, with curves.
        path: PNG file to write; its directory exists.
    """
    curves = over_seeds.budgets(results)
    figure = new_figure(
        8.2,
        4.6,
        "Accuracy against the tokens of a self-edit",
        f"the same documents at each length · bars: 95 % intervals over {counted(len(results), 'seed')} and documents",
    )
    axes = figure.subplots()
    names = in_order({name for found in curves.values() for name in found})
    for name, (mark, colour) in zip(names, _marks(), strict=False):
        points = [found[name] for found in curves.values() if name in found]
        means = [100 * point.accuracy.mean for point in points]
        ends = [
            [100 * (point.accuracy.mean - point.accuracy.low) for point in points],
            [100 * (point.accuracy.high - point.accuracy.mean) for point in points],
        ]
        tokens = [point.tokens for point in points]
        axes.errorbar(tokens, means, yerr=ends, marker=mark, color=colour, capsize=3, label=variant(name).strip("*"))
    axes.set(xlabel="tokens of a self-edit, mean", ylabel="accuracy (%)")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.legend(frameon=False, loc="upper left")
    save_figure(figure, path)


def plot_rounds(results: Results, path: Path) -> None:
    """Write a figure of the mean reward by round, a line a seed, with the student's without an update below it.

    Args:
        results: By seed, with rounds.
        path: PNG file to write; its directory exists.
    """
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(
        8.2, 4.4, "Mean reward by round", "solid: the teacher's self-edits · dashed: the student without an update"
    )
    axes = figure.subplots()
    for (seed, result), (mark, colour) in zip(results.items(), _marks(), strict=False):
        for key, line, label in (("mean_reward", "-", f"seed {seed}"), ("base_reward", "--", None)):
            known = [(n, value) for n, r in enumerate(result.rounds) if (value := r.get(key)) is not None]
            numbers, values = [n for n, _ in known], [value for _, value in known]
            marker = mark if label else ""
            axes.plot(numbers, values, line, marker=marker, color=colour, linewidth=1.6, markersize=4.5, label=label)
    axes.set(xlabel="round", ylabel="reward")
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.legend(frameon=False, loc="upper left")
    save_figure(figure, path)


def plot_arms(reference: str, groups: Mapping[str, Sequence[ArmReading]], path: Path) -> None:
    """Write a figure of each arm less the reference with its interval.

    Args:
        reference: What the reference is called.
        groups: Arms by heading, at least one arm in all.
        path: PNG file to write; its directory exists.
    """
    arms = [(group, arm) for group, found in groups.items() for arm in found]
    figure = new_figure(
        8.2, 1.5 + 0.42 * len(arms), f"Arms less '{reference}'", "accuracy with the trained teacher, 95 % intervals"
    )
    axes = figure.subplots()
    axes.axvline(0.0, color=INK, linewidth=1)
    colours = dict(zip(groups, (BLUE, GREEN, _PINK, _YELLOW, _SKY), strict=False))
    for place, (group, arm) in enumerate(arms):
        _interval(axes, place, arm.interval, colours.get(group, GREY), sign="+")
    _rows(axes, [arm.name for _, arm in arms], f"points of accuracy less '{reference}'")
    save_figure(figure, path)


def _interval(axes: Axes, place: int, found: Interval, colour: str, sign: str = "") -> None:
    """Draw a mean with its interval in one row, its figure beside it."""
    mean, low, high = (100 * end for end in (found.mean, found.low, found.high))
    axes.plot([low, high], [place, place], color=colour, linewidth=3.0, solid_capstyle="butt", zorder=3)
    axes.plot(mean, place, "o", color=colour, markersize=7.5, markeredgecolor="white", markeredgewidth=1.1, zorder=4)
    where = axes.get_yaxis_transform()
    axes.text(1.02, place, f"{mean:{sign}.1f}", transform=where, va="center", fontweight="bold", color=colour)


def _rows(axes: Axes, labels: Sequence[str], x: str) -> None:
    axes.set(ylim=(len(labels) - 0.5, -0.5), yticks=range(len(labels)))
    axes.set_xlabel(x)
    axes.set_yticklabels(labels)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=_GRID, linewidth=0.8)
    axes.spines["left"].set_visible(False)


def draw(results: Results, reference: str, arms: Mapping[str, Sequence[ArmReading]], place: Path) -> dict[str, Path]:
    """Write all pictures that there are figures for, and return them by name.

    Args:
        results: By seed, at least one.
        reference: What the reference of the arms is called.
        arms: By heading.
        place: Directory of the pictures; made where it is missing.
    """
    place.mkdir(parents=True, exist_ok=True)
    made = {"variants": place / "variants.png"}
    plot_variants(results, made["variants"])
    if over_seeds.budgets(results):
        made["budgets"] = place / "budgets.png"
        plot_budgets(results, made["budgets"])
    if any(result.rounds for result in results.values()):
        made["rounds"] = place / "rounds.png"
        plot_rounds(results, made["rounds"])
    if any(arms.values()):
        made["arms"] = place / "arms.png"
        plot_arms(reference, arms, made["arms"])
    return made
