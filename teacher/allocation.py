"""Where updates are spent: successive halving, and what choosing the best of noisy rewards is really worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

Stages: TypeAlias = Sequence[tuple[int, int]]
"""Stages of an allocation as pairs (self-edits that take part, updates for each), the first with all candidates."""

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]


def leaders(groups: Sequence[str], rewards: Sequence[float | None], keep: int) -> list[int]:
    """Return the `keep` best of each group so far, as indexes in the order given: one stage of successive halving.

    (Karnin, Koren and Somekh 2013, "Almost optimal exploration in multi-armed bandits"; Jamieson and Talwalkar 2016,
    arXiv 1502.07943.) Candidates without a reward never go on; of equal rewards the earlier one does.

    Args:
        groups: Document of each candidate.
        rewards: Mean over all updates so far.
        keep: Candidates of a group that go on, at least 1.
    """
    if keep < 1:
        raise ValueError(f"leaders: got keep = {keep}, allowed is at least 1")
    chosen: list[int] = []
    for group in dict.fromkeys(groups):
        known = [(-reward, i) for i, reward in enumerate(rewards) if reward is not None and groups[i] == group]
        chosen += [i for _, i in sorted(known)[:keep]]
    return sorted(chosen)


def allocation_cost(stages: Stages) -> int:
    """Return the updates that one document takes."""
    return sum(keep * replicates for keep, replicates in stages)


class Headroom(NamedTuple):
    """What choosing the best self-edit of each document seems to give, and what it gives."""

    mean: float
    """Of all rewards."""
    apparent: float
    """Mean reward of the self-edit with the highest mean: too high, since the luck of the winner is in it."""
    cross_validated: float
    """Mean reward on one replicate of the self-edit that is best on the others, over all choices of that replicate."""


def headroom(groups: Sequence[Sequence[Sequence[float]]]) -> Headroom:
    """Return the winner's curse in rewards (D, E, S): best-of-E with and without cross-validation.

    Args:
        groups: For each document, for each self-edit, S of at least two replicates; of equal means the first wins.
    """
    means, apparent, validated = [], [], []
    for group in groups:
        rewards = np.asarray(group, dtype=np.float64)
        means.append(rewards.mean())
        apparent.append(rewards.mean(axis=1).max())
        for left_out in range(rewards.shape[1]):
            rest = np.delete(rewards, left_out, axis=1).mean(axis=1)
            validated.append(rewards[int(rest.argmax()), left_out])
    return Headroom(float(np.mean(means)), float(np.mean(apparent)), float(np.mean(validated)))


class Replay(NamedTuple):
    """A world of known true rewards made from recorded ones."""

    true: Array
    """True rewards (D, E)."""
    residuals: Array
    """Noise of single updates (M,), mean 0."""


def shrunken_truth(groups: Sequence[Sequence[Sequence[float]]], between_variance: float) -> Replay:
    """Return true rewards and noise that could have made the recorded ones (D, E, S), for replays of allocations.

    Recorded means spread more than true rewards, by the noise in them. So each document's deviations are scaled to the
    variance that was estimated between self-edits; residuals are scaled by sqrt(S / (S - 1)), because their means were
    fitted.

    Args:
        groups: D documents with E self-edits with S replicates each, all the same E and S.
        between_variance: Of true rewards within documents, at least 0.
    """
    rewards = np.asarray(groups, dtype=np.float64)
    means = rewards.mean(axis=2)
    deviations = means - means.mean(axis=1, keepdims=True)
    replicates, edits = rewards.shape[2], rewards.shape[1]
    observed = float((deviations**2).sum() / (rewards.shape[0] * (edits - 1)))
    scale = np.sqrt(max(between_variance, 0.0) / observed) if observed > 0 else 0.0
    residuals = (rewards - means[:, :, None]).reshape(-1) * np.sqrt(replicates / (replicates - 1))
    return Replay(means.mean(axis=1, keepdims=True) + scale * deviations, residuals)


def simulate_choice(replay: Replay, stages: Stages, generator: np.random.Generator) -> float:
    """Return what one allocation really gains: true reward of its choice less the document's mean, over documents.

    Each stage updates its self-edits again; means over all updates so far decide who goes on, and who is chosen.

    Args:
        replay: The world.
        stages: The first has all E candidates.
        generator: Of the noise.
    """
    documents, edits = replay.true.shape
    sums, counts = np.zeros((documents, edits)), np.zeros((documents, edits))
    alive = np.ones((documents, edits), dtype=bool)
    for keep, replicates in stages:
        ranked = np.where(alive, sums / np.maximum(counts, 1), -np.inf)
        order = np.argsort(-ranked, axis=1, kind="stable")[:, :keep]
        alive = np.zeros((documents, edits), dtype=bool)
        np.put_along_axis(alive, order, True, axis=1)
        noise = generator.choice(replay.residuals, size=(documents, edits, replicates)).sum(axis=2)
        sums += np.where(alive, replicates * replay.true + noise, 0.0)
        counts += np.where(alive, replicates, 0)
    best = np.where(alive, sums / np.maximum(counts, 1), -np.inf).argmax(axis=1)
    chosen = np.take_along_axis(replay.true, best[:, None], axis=1)[:, 0]
    return float((chosen - replay.true.mean(axis=1)).mean())
