"""Where updates are spent: successive halving, and what choosing the best of noisy rewards is really worth.

The reward of one update is mostly luck of its seed. So the best of several self-edits is partly the luckiest (winner's
curse), and a further update is worth more on a self-edit that may still be the best than on one that is out of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from teacher.rewards import Reliability

Allocation: TypeAlias = Sequence[tuple[int, int]]
"""Stages as pairs (self-edits of a document that take part, further updates of each); in the first all take part.

Both `((5, 3),)`, equal shares, and `((5, 1), (3, 2), (2, 2))` spend 15 updates on the 5 self-edits of a document.
"""

_PLACES = 9
"""Rewards that are equal to so many places are equal: the means of 0.4, 0.6, 0.8 and of three 0.6 differ as floats."""


def leaders(groups: Sequence[str], rewards: Sequence[float | None], keep: int) -> list[int]:
    """Return the `keep` best of each group so far, as indices in the order given: one stage of successive halving.

    Karnin, Koren and Somekh 2013, "Almost optimal exploration in multi-armed bandits", algorithm 1; Jamieson and
    Talwalkar 2016, arXiv 1502.07943, for rewards that need not be identically distributed.

    Args:
        groups: Document of each candidate.
        rewards: Finite mean over all updates so far of each; those without one never go on, and of equal ones
            (to 9 places) the earlier sampled does.
        keep: Candidates of a group that go on, at least 1; a group with fewer rewards keeps them all.

    Raises:
        ValueError: `keep` is below 1, or there are not as many rewards as groups.
    """
    if keep < 1:
        raise ValueError(f"leaders: got keep = {keep}, allowed is at least 1")
    known: dict[str, list[tuple[float, int]]] = {}
    for index, (group, reward) in enumerate(zip(groups, rewards, strict=True)):
        if reward is not None:
            known.setdefault(group, []).append((-round(reward, _PLACES), index))
    return sorted(index for candidates in known.values() for _, index in sorted(candidates)[:keep])


def allocation_cost(candidates: int, stages: Allocation) -> int:
    """Return the updates that one document with `candidates` self-edits takes.

    Raises:
        ValueError: The stages do not fit: there is none, the first is not of all candidates, one has more self-edits
            than the stage before, or one has no self-edit or no update.
    """
    _check(candidates, stages)
    return sum(keep * replicates for keep, replicates in stages)


class Headroom(NamedTuple):
    """What choosing the best self-edit of each document seems to give, and what it gives; means over documents."""

    mean: float
    """Of all rewards: what a self-edit chosen at random gives."""
    apparent: float
    """Of the self-edits with the highest means by those means: too high, since the winner's luck is in them."""
    cross_validated: float
    """Of the self-edits that are best on all replicates but one, by that one; never above `apparent`."""


def headroom(groups: Sequence[Sequence[Sequence[float]]]) -> Headroom:
    """Return the winner's curse in recorded rewards: the best self-edit by its own mean, and by a fresh replicate.

    The cross-validated figure is unbiased for a choice that rests on one replicate fewer. Each replicate is left out
    once. Self-edits that are equally good on the others share the choice: their rewards on the one left out are
    averaged, so that the order of sampling has no part in the figure.

    Args:
        groups: For each document, for each of its self-edits, the rewards of its replicates (D, E, S). E and S may
            differ between documents; S is at least 2.

    Raises:
        ValueError: There is no document, or one whose self-edits have different numbers of replicates or fewer than 2.
    """
    if not groups:
        raise ValueError("head room: got no document, needed is at least one")
    figures = []
    for number, group in enumerate(groups):
        counts = {len(edit) for edit in group}
        if len(counts) != 1 or min(counts) < 2:
            raise ValueError(
                f"head room: document {number} has self-edits with {sorted(counts)} replicates; allowed is one number "
                "of at least 2 for all of them; leave out the self-edits that lack some"
            )
        rewards = np.asarray(group, dtype=np.float64)
        others = (rewards.sum(axis=1, keepdims=True) - rewards).round(_PLACES)
        best = others == others.max(axis=0)
        held_out = (rewards * best).sum(axis=0) / best.sum(axis=0)
        figures.append((rewards.mean(), rewards.mean(axis=1).max(), held_out.mean()))
    mean, apparent, cross_validated = np.mean(figures, axis=0).tolist()
    return Headroom(mean, apparent, cross_validated)


def shrunken_truth(
    groups: Sequence[Sequence[Sequence[float]]], reliability: Reliability
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return true rewards and noise of single updates that could have made recorded rewards, to replay allocations.

    With r the reliability of a mean of S replicates, the best prediction of a self-edit's true reward is the document's
    mean + r * (self-edit's mean - document's mean). Predictions vary less than what they predict: by the factor r if
    the reliability comes from the same rewards. A replay needs the spread, not the prediction of each, so deviations
    are multiplied by sqrt(r) instead, which gives them the estimated variance between self-edits (Louis 1984,
    "Estimating a population of parameter values using Bayes and empirical Bayes methods", JASA 79: 393-398).
    Residuals from means of S replicates are too small by sqrt(1 - 1/S), which is undone likewise.

    Args:
        groups: For each document, for each of its self-edits, the rewards of its replicates (D, E, S); S at least 2.
        reliability: Of these rewards (`teacher.rewards.reliability`).

    Returns:
        True rewards (D, E), and residuals (D * E * S,) with mean 0, to be drawn from as noise of one update.

    Raises:
        ValueError: The rewards are not a (D, E, S) table with S of at least 2.
    """
    rewards = np.asarray(groups, dtype=np.float64)
    if rewards.ndim != 3 or rewards.shape[2] < 2:
        raise ValueError(f"shrunken truth: got rewards of shape {rewards.shape}, allowed is (D, E, S) with S > 1")
    replicates = rewards.shape[2]
    edits = rewards.mean(axis=2, keepdims=True)
    documents = edits.mean(axis=1, keepdims=True)
    true_values = documents + np.sqrt(reliability.of_mean(replicates)) * (edits - documents)
    residuals = (rewards - edits) * np.sqrt(replicates / (replicates - 1))
    return true_values[:, :, 0], residuals.reshape(-1)


def simulate_choice(
    true_values: NDArray[np.float64],
    residuals: NDArray[np.float64],
    stages: Allocation,
    generator: np.random.Generator,
) -> float:
    """Return what an allocation really gains: true reward of its choice less the document's mean, over documents.

    Each stage updates its self-edits; means over all updates so far decide who goes on, and at the end who is chosen;
    of equal ones (to 9 places) the earlier. Allocations that are replayed with generators in the same state meet the
    same noise in the n-th update of a self-edit, so that their difference is a paired one.

    Args:
        true_values: True rewards (D, E); repeat the rows to replay more often.
        residuals: Noise of single updates (M,), drawn with replacement.
        stages: The first has all E self-edits.
        generator: Of the draws.

    Raises:
        ValueError: The stages do not fit E, as for `allocation_cost`.
    """
    documents, candidates = true_values.shape
    _check(candidates, stages)
    updates = sum(replicates for _, replicates in stages)
    noise = generator.choice(residuals, size=(updates, documents, candidates))
    means = (true_values + np.cumsum(noise, axis=0) / np.arange(1, updates + 1)[:, None, None]).round(_PLACES)
    alive = np.tile(np.arange(candidates), (documents, 1))
    made = 0
    for number, (_, replicates) in enumerate(stages, start=1):
        made += replicates
        so_far = np.take_along_axis(means[made - 1], alive, axis=1)
        going_on = stages[number][0] if number < len(stages) else 1
        order = np.argsort(-so_far, axis=1, kind="stable")[:, :going_on]
        alive = np.sort(np.take_along_axis(alive, order, axis=1), axis=1)
    chosen = np.take_along_axis(true_values, alive, axis=1)[:, 0]
    return float((chosen - true_values.mean(axis=1)).mean())


def _check(candidates: int, stages: Allocation) -> None:
    """Refuse stages that do not fit the number of candidates."""
    keeps = [keep for keep, _ in stages]
    fits = keeps[:1] == [candidates] and keeps == sorted(keeps, reverse=True)
    if not fits or min(min(stage) for stage in stages) < 1:
        raise ValueError(
            f"allocation: got stages {tuple(stages)!r} for {candidates} self-edits; allowed are pairs (self-edits, "
            f"updates) of at least 1, the first with {candidates} self-edits and none with more than the one before"
        )
