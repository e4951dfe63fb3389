"""From many predictions of one output to the two attempts that ARC allows, and how good they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from evaluation.grids.tasks import Grid

ATTEMPTS = 2
"""Outputs that may be handed in for a test input; one of them must be right (ARC Prize rules)."""
_FINALISTS = 3
"""Candidates that each view sends on."""


def vote(predictions: Mapping[str, Sequence[Grid | None]], attempts: int = ATTEMPTS) -> tuple[Grid, ...]:
    """Return the outputs to hand in, the best first, by votes in two rounds (after arXiv 2411.07279).

    First each view (a transformation under which the task was answered, its answers turned back) sends on its most
    frequent predictions; then they are voted on with a voice for each view, and ties go to what was predicted more
    often in all, then to what came first. So a view that was asked more often has no larger say.

    Args:
        predictions: By view, in order; None is an answer that was no grid and votes for nothing.
        attempts: Outputs that may be handed in, at least 1.

    Returns:
        At most so many different grids; fewer where there are fewer predictions.
    """
    counts = Counter(grid for answers in predictions.values() for grid in answers if grid is not None)
    first = {grid: place for place, grid in enumerate(counts)}
    voices: Counter[Grid] = Counter()
    for answers in predictions.values():
        mine = Counter(grid for grid in answers if grid is not None)
        ranked = sorted(mine, key=lambda grid: (-mine[grid], first[grid]))
        voices.update(ranked[:_FINALISTS])
    ranked = sorted(voices, key=lambda grid: (-voices[grid], -counts[grid], first[grid]))
    return tuple(ranked[:attempts])


def is_solved(attempts: Sequence[Grid], gold: Grid) -> bool:
    """Return whether one of the attempts is the gold output, cell by cell."""
    return gold in attempts


def cell_accuracy(prediction: Grid | None, gold: Grid) -> float:
    """Return the share of the gold output's cells that a prediction has right, in [0, 1]; 0 for another shape."""
    if prediction is None or (len(prediction), len(prediction[0])) != (len(gold), len(gold[0])):
        return 0.0
    hits = sum(a == b for mine, own in zip(prediction, gold, strict=True) for a, b in zip(mine, own, strict=True))
    return hits / (len(gold) * len(gold[0]))
