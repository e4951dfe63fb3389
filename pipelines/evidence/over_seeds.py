"""What seeds and arms say together: paired differences by document, and intervals over seeds and documents."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from evaluation.across_seeds import RandomEffects, kept_share_over_seeds, random_effects
from evaluation.errors import InputError
from evaluation.statistics import Interval, hierarchical_bootstrap_mean
from pipelines.results import CurvePoint, RunResult

RESAMPLES = 10_000
"""Of the intervals over seeds and documents."""

_SEED = 0
"""Of the resamples of each interval, so that a new table changes no other figure."""

Results = Mapping[int, RunResult]
"""By seed."""

Scores = Mapping[str, Mapping[str, float]]
"""By variant and document id."""

LEARNED = ("trained_teacher", "untrained_teacher")


class OverSeeds(NamedTuple):
    """A difference over all seeds, by two methods."""

    bootstrap: Interval
    """Over seeds and documents (`hierarchical_bootstrap_mean`)."""
    effects: RandomEffects | None
    """With seeds as random effects (`random_effects`); None for one seed, and where no documents differ."""


def shared(scores: Scores, names: Sequence[str]) -> list[str]:
    """Return the ids of the documents on which all the named variants have a score, sorted; none for no names."""
    sets = [set(scores.get(name, {})) for name in names]
    return sorted(set.intersection(*sets)) if sets else []


def compared(result: RunResult) -> dict[str, dict[str, float]]:
    """Return the accuracy by variant and document on which every compared variant has a score."""
    names = [name for name in result.variants if name in result.document_accuracy]
    documents = shared(result.document_accuracy, names)
    return {name: {d: result.document_accuracy[name][d] for d in documents} for name in names}


def pooled(groups: Sequence[Sequence[float]], *, low: float = -1.0, high: float = 1.0) -> Interval | None:
    """Return the mean over seeds and documents with its 95 % interval; None where some seed has no value.

    Args:
        groups: By seed, values by document in [low, high].
        low: Smallest value that there can be.
        high: Largest value that there can be.
    """
    if not groups or not all(groups):
        return None
    generator = np.random.default_rng(_SEED)
    return hierarchical_bootstrap_mean(groups, generator, resamples=RESAMPLES, bounds=(low, high))


def accuracy(results: Results, name: str) -> Interval | None:
    """Return a variant's accuracy over seeds and documents, in [0, 1]; None where a seed lacks it."""
    return pooled([list(compared(result).get(name, {}).values()) for result in results.values()], low=0.0)


def sides(key: str, names: Sequence[str]) -> tuple[str, str] | None:
    """Return the two variants behind the key of a gain, such as `trained_minus_untrained`; None for other keys."""
    found = [next((name for name in (part, f"{part}_teacher") if name in names), None) for part in key.split("_minus_")]
    return (found[0], found[1]) if len(found) == 2 and found[0] and found[1] else None


def paired(scores: Scores, left: str, right: str) -> list[float]:
    """Return left - right by document, over the documents that both have."""
    return [scores[left][d] - scores[right][d] for d in shared(scores, (left, right))]


def gain(results: Results, key: str) -> OverSeeds | None:
    """Return a difference of two variants over the seeds; None where a seed lacks one of them."""
    groups = []
    for result in results.values():
        scores = compared(result)
        found = sides(key, list(scores))
        groups.append([] if found is None else paired(scores, *found))
    return over_seeds(groups)


def over_seeds(groups: Sequence[Sequence[float]], *, bound: float = 1.0) -> OverSeeds | None:
    """Return what differences by document, in [-bound, bound], say over the seeds, see `pooled`."""
    found = pooled(groups, low=-bound, high=bound)
    return None if found is None else OverSeeds(found, _effects(groups))


def _effects(groups: Sequence[Sequence[float]]) -> RandomEffects | None:
    if len(groups) < 2 or any(len(values) < 2 for values in groups):
        return None
    errors = [float(np.std(values, ddof=1)) / math.sqrt(len(values)) for values in groups]
    try:
        return random_effects([float(np.mean(values)) for values in groups], errors)
    except InputError:  # no document differs from another in any seed, so nothing tells how much they vary
        return None


def forgetting(results: Results, name: str) -> Interval | None:
    """Return the share of retention probes that a variant loses, in [-1, 1]; None where a seed has none."""
    return pooled([list(r.document_forgetting.get(name, {}).values()) for r in results.values()])


def forgetting_gain(results: Results, left: str = LEARNED[0], right: str = LEARNED[1]) -> OverSeeds | None:
    """Return how much more of the retention probes `left` loses than `right`, by document, in [-2, 2]."""
    return over_seeds([paired(result.document_forgetting, left, right) for result in results.values()], bound=2.0)


def lost_per_learned(results: Results, name: str) -> Interval | None:
    """Return a variant's share of probes lost over its gain in accuracy over the base, a ratio with its interval.

    None where a seed has not both, and where the gain is not above 0: what teaches nothing has no such price.
    """
    groups = []
    for result in results.values():
        lost, scores = result.document_forgetting.get(name, {}), result.document_accuracy
        both = sorted(set(lost) & set(shared(scores, ("base", name))))
        if not both:
            return None
        groups.append(([lost[d] for d in both], [scores[name][d] - scores["base"][d] for d in both]))
    return kept_share_over_seeds(groups, np.random.default_rng(_SEED), resamples=RESAMPLES) if groups else None


def transferred(results: Results) -> dict[int, dict[str, dict[str, float]]]:
    """Return by seed the other student's accuracy by variant, on the documents that all of its variants have."""
    found = {}
    for seed, result in results.items():
        if result.transfer is not None:
            scores = {name: values for name, values in result.transfer.document_accuracy.items() if values}
            documents = shared(scores, list(scores))
            found[seed] = {name: {d: values[d] for d in documents} for name, values in scores.items()}
    return found


def kept(results: Results) -> Interval | None:
    """Return which share of trained less untrained the other student keeps (`kept_share_over_seeds`).

    None where a seed has no other student or lacks a variant, and where the gain here is not above 0.
    """
    groups = []
    for result in results.values():
        there = {} if result.transfer is None else result.transfer.document_accuracy
        both = sorted(set(shared(there, LEARNED)) & set(shared(result.document_accuracy, LEARNED)))
        if not both:
            return None
        left, right = LEARNED
        gains = [[scores[left][d] - scores[right][d] for d in both] for scores in (there, result.document_accuracy)]
        groups.append((gains[0], gains[1]))
    return kept_share_over_seeds(groups, np.random.default_rng(_SEED), resamples=RESAMPLES) if groups else None


class BudgetPoint(NamedTuple):
    """A variant at one length of self-edits, over the seeds."""

    tokens: float
    """Mean tokens taken, over seeds."""
    accuracy: Interval
    documents: tuple[dict[str, float], ...]
    """By seed, accuracy by document id."""


def budgets(results: Results) -> dict[int, dict[str, BudgetPoint]]:
    """Return by budget and variant what all seeds say; what some seed lacks is missing."""
    found: dict[int, dict[str, list[CurvePoint]]] = {}
    for result in results.values():
        for name, curve in result.curve.items():
            for point in curve:
                found.setdefault(point.budget, {}).setdefault(name, []).append(point)
    curves: dict[int, dict[str, BudgetPoint]] = {}
    for budget in sorted(found):
        for name, points in found[budget].items():
            if len(points) == len(results) and all(point.document_accuracy for point in points):
                curves.setdefault(budget, {})[name] = _over_points(points)
    return curves


def _over_points(points: Sequence[CurvePoint]) -> BudgetPoint:
    interval = pooled([list(point.document_accuracy.values()) for point in points], low=0.0)
    assert interval is not None
    tokens = float(np.mean([point.tokens for point in points]))
    return BudgetPoint(tokens, interval, tuple(dict(point.document_accuracy) for point in points))


def budget_gain(left: BudgetPoint, right: BudgetPoint) -> Interval | None:
    """Return left - right by document, over seeds and documents."""
    pairs = zip(left.documents, right.documents, strict=True)
    return pooled([paired({"left": a, "right": b}, "left", "right") for a, b in pairs])
