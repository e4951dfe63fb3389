"""Bounds of a mean that hold for any spread of bounded scores, and that a better score never makes worse.

A gate needs two guarantees that `evaluation.statistics.bootstrap_mean` lacks. Its error rate must hold where few
documents change and those lose much: where one document in twenty is lost whole and the others differ by some
hundredths, the bootstrap's 95 % bound lay above the truth in 21 % of samples of 30 documents, since it cannot know of
losses that it has not seen. And it must be monotone: if any document is answered better, no bound may fall, or a better
candidate could be refused.

The bounds are those of Learned-Miller and Thomas (2019, "A New Confidence Interval for the Mean of a Bounded Random
Variable", arXiv 1905.06208), after Gaffke: a quantile of the mean of the sample and one more value, the worst possible,
under weights from a flat Dirichlet distribution. For scores of 0 and 1 they are exactly Clopper and Pearson's, for
equal scores the exact bound of `bootstrap_mean`. That they hold their level for every bounded distribution is
conjectured there; in the samples above they erred in at most 2 %. They cost the width of about one document at the
worst value.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from statistics import NormalDist

import numpy as np

from evaluation.statistics import Array, Interval, sorted_sample

WORST, BEST = -1.0, 1.0
"""Smallest and largest difference between two scores in [0, 1]."""

TYPICAL_SPREAD = 0.32
"""Standard deviation of paired differences by document in SEAL's published results (arXiv 2506.10943), for samples that
have none."""

_MOST_NEEDED = 1_000_000
"""Documents beyond which a sample size is as good as none."""
_BATCH_ELEMENTS = 1 << 21
"""Weights in memory at once (16 MiB)."""


def mean_bounds(differences: Sequence[float], *, confidence: float, resamples: int, seed: int) -> Interval:
    """Return the mean of paired differences in [-1, 1] with one-sided bounds; the order does not matter.

    Args:
        differences: One per document, N of at least 1, else InputError.
        confidence: Of each bound, in (0.5, 1); together they are an interval at 2 * confidence - 1.
        resamples: Draws of weights, at least 100.
        seed: Of the draws; the same for candidates that are compared, so that the better one has the higher bounds.
    """
    sample = sorted_sample(differences, (WORST, BEST))
    mean = float(sample.mean())
    low, high = (np.sort(np.concatenate(part)) for part in zip(*_draws(sample, resamples, seed), strict=True))
    place = math.floor((1.0 - confidence) * resamples)  # so many draws lie beyond the bound, rounded outwards
    return Interval(mean=mean, low=min(mean, float(low[place])), high=max(mean, float(high[resamples - 1 - place])))


def spread_of(differences: Sequence[float]) -> float:
    """Return the standard deviation of the differences, or `TYPICAL_SPREAD` where they are too few or all equal."""
    found = float(np.std(differences, ddof=1)) if len(differences) > 1 else 0.0
    return found if found > 1e-9 else TYPICAL_SPREAD


def needed_documents(spread: float, mean: float, slack: float, *, confidence: float, power: float) -> int | None:
    """Return how many documents put a bound of `mean_bounds` on the right side of a margin with probability `power`.

    The normal approximation of the bound: one document at the worst value shifts it by about the distance to that value
    over N, and widens it.

    Args:
        spread: Standard deviation of the differences by document, at least 0.
        mean: True mean difference, in [-1, 1].
        slack: Its distance to the margin, at least 0.
        confidence: Of the bound, in (0.5, 1).
        power: In (0, 1).

    Returns:
        At least 1; None where a million would not do, because the mean lies at the margin.
    """
    normal = NormalDist()
    level, chance = normal.inv_cdf(confidence), normal.inv_cdf(power)
    reach = BEST + abs(mean)  # distance of the mean to the farther end of the range, for either bound

    def suffices(count: int) -> bool:
        width = math.sqrt(spread**2 / count + (reach / count) ** 2)
        return reach / (count + 1) + level * width + chance * spread / math.sqrt(count) <= slack

    if slack <= 0.0 or not suffices(_MOST_NEEDED):
        return None
    return 1 + bisect_left(range(1, _MOST_NEEDED), True, key=suffices)


def _draws(sample: Array, resamples: int, seed: int) -> Iterator[tuple[Array, Array]]:
    """Yield batches of weighted means with one more document at the worst and at the best value."""
    generator = np.random.default_rng(seed)
    size = max(1, _BATCH_ELEMENTS // (len(sample) + 1))
    for start in range(0, resamples, size):
        # Exponential variates over their sum have the flat Dirichlet distribution.
        weights = generator.standard_exponential((min(size, resamples - start), len(sample) + 1))
        seen, total = weights[:, :-1] @ sample, weights.sum(axis=1)
        yield (seen + WORST * weights[:, -1]) / total, (seen + BEST * weights[:, -1]) / total
