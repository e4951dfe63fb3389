"""Distribution-free, monotone confidence bounds of the mean of bounded scores.

Unlike in `evaluation.statistics.bootstrap_mean`, the level must hold for rare, large losses (with total loss of one
document in twenty, the bootstrap's 95 % bound failed in 21 % of samples of 30), and the bounds must be monotone in
every score, or a better candidate could be refused.

The bounds are those of Learned-Miller and Thomas (2019, arXiv 1905.06208), after Gaffke: a quantile of the mean of the
sample and one additional worst-case value under flat Dirichlet weights. For scores of 0 and 1 they equal
Clopper-Pearson, for equal scores the exact bound of `bootstrap_mean`. Validity for every bounded distribution is
conjectured; in the samples above the error rate was at most 2 %.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from statistics import NormalDist

import numpy as np

from evaluation.statistics import Array, Interval, sorted_sample

WORST, BEST = -1.0, 1.0
"""Range of the difference of two scores in [0, 1]."""

TYPICAL_SPREAD = 0.32
"""Default standard deviation of paired differences by document: that of SEAL's results (arXiv 2506.10943)."""

_MOST_NEEDED = 1_000_000
"""Largest sample size searched."""
_BATCH_ELEMENTS = 1 << 21
"""Weights per batch (16 MiB)."""


def mean_bounds(differences: Sequence[float], *, confidence: float, resamples: int, seed: int) -> Interval:
    """Return the mean of paired differences in [-1, 1] with one-sided bounds, independent of the order.

    Args:
        differences: One per document, at least one, else InputError.
        confidence: Of each bound, in (0.5, 1); together 2 * confidence - 1.
        resamples: Draws of weights, at least 100.
        seed: Of the draws; must be equal for monotonicity between candidates.
    """
    sample = sorted_sample(differences, (WORST, BEST))
    mean = float(sample.mean())
    low, high = (np.sort(np.concatenate(part)) for part in zip(*_draws(sample, resamples, seed), strict=True))
    place = math.floor((1.0 - confidence) * resamples)  # draws beyond the bound, rounded outwards
    return Interval(mean=mean, low=min(mean, float(low[place])), high=max(mean, float(high[resamples - 1 - place])))


def spread_of(differences: Sequence[float]) -> float:
    """Return the standard deviation of the differences; `TYPICAL_SPREAD` if there are too few or all are equal."""
    found = float(np.std(differences, ddof=1)) if len(differences) > 1 else 0.0
    return found if found > 1e-9 else TYPICAL_SPREAD


def needed_documents(spread: float, mean: float, slack: float, *, confidence: float, power: float) -> int | None:
    """Return how many documents decide a check against a margin with probability `power`, in normal approximation.

    Args:
        spread: Standard deviation of the differences by document, at least 0.
        mean: True mean difference, in [-1, 1].
        slack: Its distance to the margin, at least 0.
        confidence: Of the bound, in (0.5, 1).
        power: In (0, 1).

    Returns:
        At least 1; None if over a million.
    """
    normal = NormalDist()
    level, chance = normal.inv_cdf(confidence), normal.inv_cdf(power)
    reach = BEST + abs(mean)  # distance to the farther end of the range

    def suffices(count: int) -> bool:
        width = math.sqrt(spread**2 / count + (reach / count) ** 2)
        return reach / (count + 1) + level * width + chance * spread / math.sqrt(count) <= slack

    if slack <= 0.0 or not suffices(_MOST_NEEDED):
        return None
    return 1 + bisect_left(range(1, _MOST_NEEDED), True, key=suffices)


def _draws(sample: Array, resamples: int, seed: int) -> Iterator[tuple[Array, Array]]:
    """Yield batches of weighted means with an additional document at the worst and at the best value."""
    generator = np.random.default_rng(seed)
    size = max(1, _BATCH_ELEMENTS // (len(sample) + 1))
    for start in range(0, resamples, size):
        # Normalised exponential variates are flat Dirichlet.
        weights = generator.standard_exponential((min(size, resamples - start), len(sample) + 1))
        seen, total = weights[:, :-1] @ sample, weights.sum(axis=1)
        yield (seen + WORST * weights[:, -1]) / total, (seen + BEST * weights[:, -1]) / total
