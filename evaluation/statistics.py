"""Statistics over documents: bootstrap intervals, paired tests, multiple-testing corrections, sample sizes.

The document is the unit, since its questions share one update of the student. Intervals are BCa bootstrap intervals of
the mean (Efron 1987, JASA 82), because accuracies by document are skewed: simulated coverage at 95 % was 94-95 % for
means of 2 and 10 %, against 91-93 % for percentile intervals. Every function raises InputError for values or settings
outside their range and for different lengths.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from evaluation.common.data import Frozen
from evaluation.common.errors import InputError, ScoringError

SMALL_SAMPLE = 20
"""Documents below which bootstrap intervals are too narrow (coverage with 10 documents: 85-94 % at 95 %)."""
NO_SPREAD = 1e-12
"""Tolerance for equal values."""

_ROUNDING = 1e-9
"""Tolerance for resampled means, which are rounded to ten digits."""
_BATCH_ELEMENTS = 1 << 21
"""Resampled values per batch (16 MiB, and as much for their indices)."""

Array = np.ndarray[Any, np.dtype[np.float64]]
Scores = Mapping[str, Mapping[str, float]]
"""Variant -> document id -> score; failed documents are missing."""
Method = Literal["holm", "fdr_bh"]
"""`holm` controls the family-wise error rate (Holm 1979), `fdr_bh` the false discovery rate (Benjamini and Hochberg
1995)."""

POWER = 0.8
"""Chance to see a difference at the sample sizes that reports call needed."""


class IntervalConfig(Frozen):
    """How intervals are made."""

    confidence: float = Field(default=0.95, gt=0.5, lt=1.0)
    """Level of an interval, or of each one-sided bound, in (0.5, 1)."""
    resamples: int = Field(default=10_000, ge=100, le=1_000_000)
    """Resamples of the documents behind each interval or bound, in [100, 1000000]."""


class Interval(Frozen):
    """A mean with its confidence interval."""

    mean: float
    low: float
    high: float


class PairedTest(Frozen):
    """Significance of the difference of two variants, and required sample size."""

    sign_flip: float
    """Two-sided p-value of `sign_flip_test` over documents, in (0, 1]."""
    adjusted: float
    """Adjusted for the number of pairs, in (0, 1]."""
    mcnemar: float | None = None
    """Two-sided p-value of `mcnemar_test` over questions; None without questions or with several self-edits per
    document."""
    required_documents: int | None = None
    """Sample size that detects the observed difference with 80 % power; None if undefined."""


class Comparison(NamedTuple):
    """Variants side by side on the same documents."""

    documents: tuple[str, ...]
    """Sorted ids of the documents scored for every scored variant, the basis of all figures."""
    variants: dict[str, Interval]
    """Mean score, in [0, 1]; variants without scores and their pairs are omitted."""
    gains: dict[str, Interval]
    """Mean paired difference by pair `<a>_minus_<b>`, in [-1, 1]."""
    minimum_detectable: dict[str, float]
    """By pair, see `minimum_detectable_difference`; omitted if unknown."""


def known_mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are not None; None without any."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def known_means(values: Mapping[str, Iterable[float | None]]) -> dict[str, float]:
    """Return `known_mean` by name; names without a value that is not None are left out."""
    means = {name: known_mean(mine) for name, mine in values.items()}
    return {name: mean for name, mean in means.items() if mean is not None}


def bootstrap_mean(
    values: Sequence[float],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Interval:
    """Return the mean of N >= 1 values within `bounds` with its BCa interval, independent of the order.

    Equal values get an exact bound: a share p of unseen documents with (1 - p)^n >= 1 - confidence (Clopper and Pearson
    1934; the "rule of three") may lie anywhere within `bounds`.
    """
    sample = sorted_sample(values, bounds)
    check_settings(confidence, resamples)
    mean = float(sample.mean())
    if sample[-1] - sample[0] <= NO_SPREAD:
        return equal_values_interval(mean, len(sample), confidence, bounds)
    low, high = _resampled(sample, "BCa", confidence, resamples, seed)
    if not low - _ROUNDING <= mean <= high + _ROUNDING:  # NaN included
        # At levels like 1 - 1e-9 the BCa formula passes the pole of its acceleration.
        low, high = _resampled(sample, "percentile", confidence, resamples, seed)
    return Interval(mean=mean, low=low, high=high)


def minimum_detectable_difference(
    differences: Sequence[float], *, power: float = 0.8, confidence: float = 0.95
) -> float | None:
    """Return the smallest true mean that is detected with probability `power` at this sample size.

    Normal approximation of a two-sided test: (z_{(1 + confidence) / 2} + z_power) * SD / sqrt(N). None for fewer than
    two differences or equal ones.
    """
    quantiles = _quantiles(power, confidence)
    if len(differences) < 2:
        return None
    sample = sorted_sample(differences)
    spread = float(sample.std(ddof=1))
    return quantiles * spread / math.sqrt(len(sample)) if spread > NO_SPREAD else None


def required_documents(sd: float, effect: float, *, power: float = 0.8, confidence: float = 0.95) -> int:
    """Return the sample size that detects a mean of `effect` with probability `power`; `sd` is by document."""
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
    """Return the variants' means, and a - b of each pair (a, b), over the documents scored for every scored variant.

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
    """Return the two-sided p-value of the paired randomisation test of the mean, in (0, 1].

    Under the null hypothesis the signs are exchangeable (Fisher 1935, "The Design of Experiments", section 21). Exact
    for at most `resamples` sign patterns (up to 13 documents for 9999), else from random patterns that include the
    observed one, so that p > 0 (Phipson and Smyth 2010).
    """
    values = sorted_sample(differences)
    check_settings(0.5, resamples)
    values = values[np.abs(values) > NO_SPREAD]  # differences of 0 have no sign
    if len(values) < 2:
        return 1.0  # a single difference is never significant
    from scipy import stats  # takes a second

    def tied_mean(values: Any, axis: int) -> Any:
        return values.mean(axis=axis).round(12)  # sums in another order tie

    settings: Any = {"n_resamples": resamples, "batch": max(1, (1 << 20) // len(values))}
    scaled, rng = values / np.abs(values).max(), np.random.default_rng(seed)
    return float(stats.permutation_test((scaled,), tied_mean, permutation_type="samples", rng=rng, **settings).pvalue)


def mcnemar_test(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Return McNemar's exact two-sided p-value (1947, Psychometrika 12) for verdicts on the same questions, in (0, 1].

    Anti-conservative, since questions of a document are not independent; for comparison with published reports.
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
    """Return p-values adjusted for multiple testing."""
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
    """Return the tests of a - b by pair `<a>_minus_<b>`, each over common documents, adjusted together."""
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
    """Return the values (N,) in ascending order, so that results are independent of the order of documents."""
    sample: Array = np.sort(np.asarray(values, dtype=np.float64).reshape(-1))
    within = len(sample) and np.isfinite(sample).all()
    if not (within and sample[0] >= bounds[0] - NO_SPREAD and sample[-1] <= bounds[1] + NO_SPREAD):
        got = f"values from {sample[0]!r} to {sample[-1]!r}" if len(sample) else "no values"
        raise InputError(
            f"statistics: got {got}, allowed is at least one document, with finite values in [{bounds[0]:g}, "
            f"{bounds[1]:g}]. Leave failed documents out."
        )
    return sample


def equal_values_interval(mean: float, count: int, confidence: float, bounds: tuple[float, float]) -> Interval:
    """Return the interval of `count` equal values; see `bootstrap_mean`."""
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
        return values.mean(axis=axis).round(10)  # equal means tie, which BCa counts

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
    """Return the detectable mean in standard errors."""
    check_settings(confidence)
    check_settings(power)
    return NormalDist().inv_cdf((1.0 + confidence) / 2.0) + NormalDist().inv_cdf(power)


def _check_pairs(variants: Scores, pairs: Sequence[tuple[str, str]]) -> None:
    if unknown := sorted({name for pair in pairs for name in pair} - set(variants)):
        raise InputError(f"compare: got pairs with {unknown}, allowed are {sorted(variants)}. Name scored variants.")
