"""Statistics over documents: bootstrap intervals, paired tests, corrections for several tests, sample sizes.

The document is the unit: its questions share one update of the student, so they are not independent. Intervals are
bias-corrected and accelerated bootstrap intervals of the mean (BCa; Efron 1987, JASA 82), because accuracies by
document are skewed where students know little: with six questions a document the simulated coverage at 95 % was 94 %
for a mean of 2 % (200 documents) and 95 % for 10 % (50 documents), against 91 % and 93 % for percentile intervals.
Every function raises InputError for a value or a setting outside its range, and for lengths that differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np

from evaluation.common.data import Frozen
from evaluation.common.errors import InputError, ScoringError

SMALL_SAMPLE = 20
"""Documents below which bootstrap intervals are too narrow (coverage of 95 % intervals with 10 documents: 85-94 %)."""
NO_SPREAD = 1e-12
"""Values no further apart than this are equal: sums of the same fractions in another order."""

_ROUNDING = 1e-9
"""Exceeds the error of resampled means, which are rounded to ten digits."""
_BATCH_ELEMENTS = 1 << 21
"""Resampled values in memory at once (16 MiB and as much for their indices)."""

Array = np.ndarray[Any, np.dtype[np.float64]]
Scores = Mapping[str, Mapping[str, float]]
"""Variant -> document id -> score; failed documents are missing."""
Method = Literal["holm", "fdr_bh"]
"""`holm` bounds the chance of any false finding (Holm 1979), `fdr_bh` the expected share of false findings among all
findings (Benjamini and Hochberg 1995)."""


class Interval(Frozen):
    """A mean with its confidence interval."""

    mean: float
    low: float
    high: float


class PairedTest(Frozen):
    """Whether the difference of two variants could be chance, and how many documents it takes to see it."""

    sign_flip: float
    """Two-sided p-value of `sign_flip_test` over documents, in (0, 1]."""
    adjusted: float
    """The same, corrected for the number of pairs, in (0, 1]."""
    mcnemar: float | None = None
    """Two-sided p-value of `mcnemar_test` over questions; None where a variant has more than one self-edit a document,
    or none was asked."""
    required_documents: int | None = None
    """Documents that show the observed difference with 80 % power; None with fewer than two, or without a spread or
    difference."""


class Comparison(NamedTuple):
    """Variants side by side on the same documents."""

    documents: tuple[str, ...]
    """Sorted ids of the documents on which every scored variant has a score; all figures are over these."""
    variants: dict[str, Interval]
    """Mean score, in [0, 1]; variants without any score are missing, and so are their pairs."""
    gains: dict[str, Interval]
    """Mean paired difference by pair `<a>_minus_<b>`, in [-1, 1]."""
    minimum_detectable: dict[str, float]
    """By pair, see `minimum_detectable_difference`; missing where it is unknown."""


def known_mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are not None; None when there is none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def bootstrap_mean(
    values: Sequence[float],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Interval:
    """Return the mean of N >= 1 values within `bounds` with its BCa interval; the order does not matter.

    Equal values, or a single one, get an exact bound instead of an interval of no width: the largest share p of other
    documents that n documents all miss with probability (1 - p)^n of at least 1 - confidence (Clopper and Pearson
    1934; the "rule of three") may lie anywhere within `bounds`.
    """
    sample = sorted_sample(values, bounds)
    check_settings(confidence, resamples)
    mean = float(sample.mean())
    if sample[-1] - sample[0] <= NO_SPREAD:
        return equal_values_interval(mean, len(sample), confidence, bounds)
    low, high = _resampled(sample, "BCa", confidence, resamples, seed)
    if not low - _ROUNDING <= mean <= high + _ROUNDING:  # NaN included
        # The acceleration has a pole: at levels like 1 - 1e-9 the BCa formula passes it and turns round.
        low, high = _resampled(sample, "percentile", confidence, resamples, seed)
    return Interval(mean=mean, low=low, high=high)


def minimum_detectable_difference(
    differences: Sequence[float], *, power: float = 0.8, confidence: float = 0.95
) -> float | None:
    """Return the smallest true mean that so many paired differences tell from 0 with probability `power`.

    The normal approximation of a two-sided test: (z_{(1 + confidence) / 2} + z_power) * SD / sqrt(N). None for fewer
    than two or for equal differences.
    """
    quantiles = _quantiles(power, confidence)
    if len(differences) < 2:
        return None
    sample = sorted_sample(differences)
    spread = float(sample.std(ddof=1))
    return quantiles * spread / math.sqrt(len(sample)) if spread > NO_SPREAD else None


def required_documents(sd: float, effect: float, *, power: float = 0.8, confidence: float = 0.95) -> int:
    """Return how many documents tell a true mean difference of `effect` from 0 with probability `power`.

    The inverse of `minimum_detectable_difference`, rounded up; `sd` is the standard deviation by document.
    """
    if not (math.isfinite(sd) and sd > 0.0 and math.isfinite(effect) and effect != 0.0):
        raise InputError(
            f"statistics: got the standard deviation {sd!r} and the effect {effect!r}, allowed are a finite "
            "deviation above 0 and a finite effect other than 0."
        )
    return math.ceil((_quantiles(power, confidence) * sd / effect) ** 2)


def compare(
    variants: Scores,
    pairs: Sequence[tuple[str, str]],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Return the variants' means, and a - b of each pair (a, b), over the documents that every scored variant has.

    Scores are in [0, 1]; every interval uses the same seed.

    Raises:
        ScoringError: No document has a score for every scored variant.
    """
    _check_pairs(variants, pairs)
    scored = {name: scores for name, scores in variants.items() if scores}
    documents = sorted(set.intersection(*map(set, scored.values()))) if scored else []
    if not documents:
        counts = {name: len(scores) for name, scores in variants.items()}
        raise ScoringError(
            f"compare: no document has a score for every variant; documents with scores by variant: {counts}. "
            "Look up why updates failed, or compare on more documents."
        )
    columns = {name: [scores[document] for document in documents] for name, scores in scored.items()}
    gains = {
        f"{a}_minus_{b}": [x - y for x, y in zip(columns[a], columns[b], strict=True)]
        for a, b in pairs
        if a in columns and b in columns
    }
    detectable = {name: minimum_detectable_difference(gain, confidence=confidence) for name, gain in gains.items()}
    settings: dict[str, Any] = {"confidence": confidence, "resamples": resamples, "seed": seed}
    return Comparison(
        documents=tuple(documents),
        variants={name: bootstrap_mean(column, **settings) for name, column in columns.items()},
        gains={name: bootstrap_mean(gain, bounds=(-1.0, 1.0), **settings) for name, gain in gains.items()},
        minimum_detectable={name: value for name, value in detectable.items() if value is not None},
    )


def sign_flip_test(differences: Sequence[float], *, resamples: int = 9999, seed: int = 0) -> float:
    """Return the two-sided p-value of the paired randomisation test of the mean, in (0, 1]; the test to trust.

    Under the null hypothesis either sign of each difference is equally likely (Fisher 1935, "The Design of
    Experiments", section 21). Exact where there are at most `resamples` sign patterns (9999: up to 13 documents that
    differ), else from random patterns that count the observed one, so that p is never 0 (Phipson and Smyth 2010).
    """
    values = sorted_sample(differences)
    check_settings(0.5, resamples)
    values = values[np.abs(values) > NO_SPREAD]  # differences of 0 have no sign and change nothing
    if len(values) < 2:
        return 1.0  # either sign of a single difference is as far from 0
    from scipy import stats  # takes a second

    def tied_mean(values: Any, axis: int) -> Any:
        return values.mean(axis=axis).round(12)  # so that sums of the same fractions in another order tie

    settings: Any = {"n_resamples": resamples, "batch": max(1, (1 << 20) // len(values))}
    scaled, rng = values / np.abs(values).max(), np.random.default_rng(seed)
    return float(stats.permutation_test((scaled,), tied_mean, permutation_type="samples", rng=rng, **settings).pvalue)


def mcnemar_test(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Return McNemar's exact two-sided p-value (1947, Psychometrika 12) for verdicts on the same questions, in (0, 1].

    It takes questions as independent, which those of one document are not, so it finds differences too easily; it is
    for comparison with reports that use it.
    """
    if len(a) != len(b) or not len(a):
        raise InputError(
            f"McNemar test: got {len(a)} and {len(b)} answers, allowed are as many and at least one; pair by question."
        )
    if strange := [value for value in (*a, *b) if not isinstance(value, bool | np.bool_)]:
        raise InputError(f"McNemar test: got {strange[0]!r}, allowed are booleans. Test scores by `sign_flip_test`.")
    right, other = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    if (right == other).all():
        return 1.0
    from statsmodels.stats.contingency_tables import mcnemar  # takes a second

    table = [[np.sum(right & other), np.sum(right & ~other)], [np.sum(~right & other), np.sum(~right & ~other)]]
    return float(mcnemar(table, exact=True).pvalue)


def adjusted(p_values: Mapping[str, float], method: Method) -> dict[str, float]:
    """Return the p-values of all tests that were made, adjusted for their number; never smaller."""
    if bad := {name: p for name, p in p_values.items() if not 0.0 <= p <= 1.0}:
        raise InputError(f"adjusted: got the p-values {bad}, allowed are numbers in [0, 1].")
    if not p_values:
        return {}
    from statsmodels.stats.multitest import multipletests  # takes a second

    corrected = multipletests(list(p_values.values()), method=method)[1]
    return {name: float(p) for name, p in zip(p_values, corrected, strict=True)}


def paired_tests(
    variants: Scores, pairs: Sequence[tuple[str, str]], *, method: Method = "holm", seed: int = 0
) -> dict[str, PairedTest]:
    """Return the tests of a - b by pair `<a>_minus_<b>`, adjusted together, each over the documents that both have.

    A pair without a common document is missing; every pair uses the same seed.
    """
    _check_pairs(variants, pairs)
    differences: dict[str, list[float]] = {}
    for a, b in pairs:
        if common := sorted(set(variants[a]) & set(variants[b])):
            differences[f"{a}_minus_{b}"] = [variants[a][document] - variants[b][document] for document in common]
    p_values = {name: sign_flip_test(values, seed=seed) for name, values in differences.items()}
    corrected = adjusted(p_values, method)
    wanted = {name: _documents_to_see(values) for name, values in differences.items()}
    return {
        name: PairedTest(sign_flip=p, adjusted=corrected[name], required_documents=wanted[name])
        for name, p in p_values.items()
    }


def sorted_sample(values: Sequence[float], bounds: tuple[float, float] = (-math.inf, math.inf)) -> Array:
    """Return the values (N,) in ascending order, so that no result depends on the order of documents."""
    sample: Array = np.sort(np.asarray(values, dtype=np.float64).reshape(-1))
    # Rounding may carry a mean of scores past its bound by some units in the last place.
    within = len(sample) and np.isfinite(sample).all()
    if not (within and sample[0] >= bounds[0] - NO_SPREAD and sample[-1] <= bounds[1] + NO_SPREAD):
        got = f"values from {sample[0]!r} to {sample[-1]!r}" if len(sample) else "no values"
        raise InputError(
            f"statistics: got {got}, allowed is at least one document, with finite values in [{bounds[0]:g}, "
            f"{bounds[1]:g}]. Leave failed documents out."
        )
    return sample


def equal_values_interval(mean: float, count: int, confidence: float, bounds: tuple[float, float]) -> Interval:
    """Return the interval of `count` equal values, see `bootstrap_mean`."""
    unseen = 1.0 - (1.0 - confidence) ** (1.0 / count)
    return Interval(mean=mean, low=mean - unseen * (mean - bounds[0]), high=mean + unseen * (bounds[1] - mean))


def check_settings(level: float, resamples: int = 1, groups: int = 1) -> None:
    """Raise InputError for a level outside (0, 1) or a count below 1."""
    if not 0.0 < level < 1.0 or min(resamples, groups) < 1:
        raise InputError(
            f"statistics: got the level {level!r} and {resamples} resamples of {groups} groups, allowed are a level in "
            "(0, 1) and at least 1 each."
        )


def _resampled(sample: Array, method: str, confidence: float, resamples: int, seed: int) -> tuple[float, float]:
    """Return the ends of the bootstrap interval of the mean."""
    from scipy import stats  # takes a second

    def tied_mean(values: Any, axis: int) -> Any:
        return values.mean(axis=axis).round(10)  # means of the same fractions tie: BCa counts those below and at it

    settings: Any = {"method": method, "n_resamples": resamples, "batch": max(1, _BATCH_ELEMENTS // len(sample))}
    rng = np.random.default_rng(seed)
    result = stats.bootstrap((sample,), tied_mean, confidence_level=confidence, rng=rng, **settings)
    low, high = np.clip(result.confidence_interval, sample[0], sample[-1])  # against the rounding
    return float(low), float(high)


def _documents_to_see(differences: Sequence[float]) -> int | None:
    if len(differences) < 2:
        return None
    mean, spread = float(np.mean(differences)), float(np.std(differences, ddof=1))
    return required_documents(spread, mean) if spread > NO_SPREAD and abs(mean) > NO_SPREAD else None


def _quantiles(power: float, confidence: float) -> float:
    """Return by how many standard errors a mean must lie off 0 to be seen with probability `power`."""
    check_settings(confidence)
    check_settings(power)
    return NormalDist().inv_cdf((1.0 + confidence) / 2.0) + NormalDist().inv_cdf(power)


def _check_pairs(variants: Scores, pairs: Sequence[tuple[str, str]]) -> None:
    if unknown := sorted({name for pair in pairs for name in pair} - set(variants)):
        raise InputError(f"compare: got pairs with {unknown}, allowed are {sorted(variants)}. Name scored variants.")
