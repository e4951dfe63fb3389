"""Simulated nights as a table, a sentence or two, and a figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.statistics import known_mean
from pipelines.nights.simulate import Arm, night_name
from pipelines.plots import new_figure, save_figure

if TYPE_CHECKING:
    from rich.table import Table


def arms_table(arms: Sequence[Arm]) -> Table:
    """Return the arms side by side."""
    from pipelines.report import plain_table

    table = plain_table(
        title="Nights in a row",
        caption="In %. Then and now: accuracy on all true documents that the student holds, right after their nights "
        "and after the last night; kept: now as a share of then. Base and probes: general knowledge of the base "
        "student and of the last one.",
    )
    for heading in ("arm", "promoted", "held", "rejected", "then", "now", "kept", "base", "probes"):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for arm in arms:
        outcomes = [night.outcome for night in arm.nights]
        last = arm.nights[-1]
        counts = [str(outcomes.count(outcome)) for outcome in ("promoted", "held", "rejected")]
        first = known_mean([then_of(arm, name) for name in arm.honest])
        now = known_mean(list(arm.honest.values()))
        shares = (first, now, arm.kept, last.probes_base, last.probes)
        table.add_row(arm.name, *counts, *map(_percent, shares))
    return table


def then_of(arm: Arm, night: str) -> float | None:
    """Return the accuracy on a night's documents when a student in use first held them."""
    return next((each.groups[night] for each in arm.nights if night in each.groups), None)


def sentences(arms: Sequence[Arm]) -> Iterator[str]:
    """Yield what became of the night of wrong documents in each arm."""
    for arm in arms:
        if arm.poisoned is not None:
            night = arm.nights[arm.poisoned]
            yield f"{arm.name}: the night of wrong documents was {night.outcome}."


def draw_matrix(arms: Sequence[Arm], path: Path) -> None:
    """Write a figure: for each arm, accuracy on each night's documents (rows) after each night (columns).

    Args:
        arms: At least one.
        path: PNG file to write; its directory exists.
    """
    from matplotlib.ticker import MaxNLocator

    count, columns = len(arms[0].nights), min(len(arms), 3)
    rows_of_panels = -(-len(arms) // columns)
    figure = new_figure(
        3.1 * columns + 0.8,
        0.6 + 3.4 * rows_of_panels,
        "What is known of each night's documents",
        "accuracy in %, by night",
    )
    panels = figure.subplots(rows_of_panels, columns, squeeze=False).ravel()
    for axes in panels[len(arms) :]:
        axes.set_visible(False)
    for axes, arm in zip(panels, arms, strict=False):
        rows = [[100 * night.groups.get(night_name(g), float("nan")) for night in arm.nights] for g in range(count)]
        image = axes.imshow(
            rows, vmin=0, vmax=100, cmap="viridis", origin="upper", extent=(0.5, count + 0.5, count + 0.5, 0.5)
        )
        axes.set_title(f"{arm.name}: kept {_percent(arm.kept)} %", fontsize=10)
        axes.set_xlabel("after night")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
        for number, night in enumerate(arm.nights, start=1):
            if night.outcome in ("rejected", "held"):
                axes.axvline(number, color="white", linestyle=":" if night.outcome == "held" else "-", linewidth=1)
    for axes in panels[::columns]:
        axes.set_ylabel("documents of night")
    figure.colorbar(image, ax=list(panels), shrink=0.8, label="%")
    save_figure(figure, path)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
