"""Tests of paired differences, and p-values that account for several tests.

The document is the unit (`evaluation.statistics`): `sign_flip_test` is the test to trust, `mcnemar_test` the one that
others report. A p-value tells how often chance alone gives a difference this large; intervals tell how large it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from evaluation.errors import InputError
from evaluation.statistics import required_documents

Method = Literal["holm", "fdr_bh"]
"""`holm` bounds the chance of any false finding, `fdr_bh` the expected share of false ones among the findings."""

_METHODS = ("holm", "fdr_bh")

_NO_DIFFERENCE = 1e-12
"""Scores no further apart than this are equal: sums of the same fractions in another order."""

_BATCH_ELEMENTS = 1 << 20
"""Sign-flipped values in memory at once."""


class PairedTest(NamedTuple):
    """Tests of one pair of variants."""

    sign_flip: float
    """p-value of `sign_flip_test`, in (0, 1]."""
    adjusted: float
    """The same after `adjusted` over all pairs tested together, never smaller."""
    required_documents: int | None
    """Documents that would show the observed mean difference with 80 % power, if it and its standard deviation were
    the true ones (it is mostly too large where it was looked for); None with fewer than two documents, without spread
    or with a mean of 0."""


def sign_flip_test(differences: Sequence[float], *, resamples: int = 9999, seed: int = 0) -> float:
    """Return the two-sided p-value of the paired randomisation test of the mean; the order does not matter.

    If the two variants are exchangeable on each document, either sign of each difference was as likely (Fisher 1935,
    "The Design of Experiments", section 21; Good 2005, "Permutation, Parametric and Bootstrap Tests of Hypotheses").
    The p-value is the share of all sign patterns whose mean lies at least as far from 0 as the observed one: exact
    where there are no more than `resamples` patterns, else of random patterns with the observed one counted among them,
    so that it is never 0 and errs upwards (Phipson and Smyth 2010). Differences of 0 have no sign and change nothing,
    so only the others count among the patterns; when all are 0, p is 1.

    Args:
        differences: a - b, one per document, N of at least 1, all finite.
        resamples: Largest number of sign patterns, at least 1; 9999 lists all for up to 13 documents that differ.
        seed: Of the random patterns.

    Returns:
        In (0, 1].

    Raises:
        InputError: There is no difference, one is not finite, or `resamples` is below 1.
    """
    values = np.sort(np.asarray(differences, dtype=np.float64).reshape(-1))
    if not len(values) or not np.isfinite(values).all():
        raise InputError(
            f"sign-flip test: got {len(values)} differences, of which {int((~np.isfinite(values)).sum())} are not "
            "finite, allowed is at least one and all finite. Leave failed documents out."
        )
    if resamples < 1:
        raise InputError(f"sign-flip test: got {resamples} resamples, allowed is at least 1.")
    values = values[np.abs(values) > _NO_DIFFERENCE]
    if len(values) < 2:
        return 1.0  # either sign of a single difference is as far from 0
    from scipy import stats  # takes a second

    settings: Any = {"n_resamples": resamples, "batch": max(1, _BATCH_ELEMENTS // len(values))}
    scaled = values / np.abs(values).max()
    result = stats.permutation_test(
        (scaled,), _tied_mean, permutation_type="samples", rng=np.random.default_rng(seed), **settings
    )
    return float(result.pvalue)


def mcnemar_test(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Return McNemar's exact two-sided p-value for right and wrong answers to the same questions.

    Under the null hypothesis, a question that only one variant answers rightly is either one's with probability 1/2
    (McNemar 1947, Psychometrika 12). The test takes questions as independent. Those of one document are not, because
    they share one update, so it finds differences too easily; it is here to compare with reports that use it, and the
    test to trust is `sign_flip_test` by document.

    Args:
        a: Whether one variant's answers are right, one per question, Q of at least 1.
        b: The other's, for the same questions in the same order.

    Returns:
        In (0, 1]; 1 when both are right on the same questions.

    Raises:
        InputError: The lengths differ, there is no question, or a value is no boolean.
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
    """Return the p-values adjusted for being several; below a level, they are findings at that level.

    Args:
        p_values: Name -> p-value in [0, 1]; every test that was looked at, not only those of interest.
        method: `holm` bounds the chance of any false finding, whatever the dependence (Holm 1979, Scandinavian Journal
            of Statistics 6); `fdr_bh` bounds the expected share of false findings, for independent or positively
            dependent tests (Benjamini and Hochberg 1995, JRSS B 57; Benjamini and Yekutieli 2001).

    Returns:
        Name -> adjusted p-value in [0, 1], at least as large; empty for none.

    Raises:
        InputError: A p-value is outside [0, 1] or the method is unknown.
    """
    if method not in _METHODS:
        raise InputError(f"adjusted: got the method {method!r}, allowed are {', '.join(_METHODS)}.")
    if bad := {name: p for name, p in p_values.items() if not 0.0 <= p <= 1.0}:
        raise InputError(f"adjusted: got the p-values {bad}, allowed are numbers in [0, 1].")
    if not p_values:
        return {}
    from statsmodels.stats.multitest import multipletests  # takes a second

    corrected = multipletests(list(p_values.values()), method=method)[1]
    return {name: float(p) for name, p in zip(p_values, corrected, strict=True)}


def paired_tests(
    variants: Mapping[str, Mapping[str, float]],
    pairs: Sequence[tuple[str, str]],
    *,
    method: Method = "holm",
    resamples: int = 9999,
    seed: int = 0,
) -> dict[str, PairedTest]:
    """Return the tests of a - b by pair, each over the documents that both of its variants have.

    Args:
        variants: Variant -> document id -> score; failed documents are missing.
        pairs: Variants (a, b); all of them are adjusted for together.
        method: See `adjusted`.
        resamples: See `sign_flip_test`.
        seed: Of the random sign patterns; every pair uses the same seed.

    Returns:
        Tests by pair, called `<a>_minus_<b>` as in `evaluation.statistics.compare`. A pair without a common document is
        missing and does not count as a test.

    Raises:
        InputError: A pair names an unknown variant, or a value or a setting is outside its range.
    """
    unknown = sorted({name for pair in pairs for name in pair} - set(variants))
    if unknown:
        raise InputError(f"paired tests: got pairs with {unknown}, allowed are {sorted(variants)}.")
    differences: dict[str, list[float]] = {}
    for a, b in pairs:
        if common := sorted(set(variants[a]) & set(variants[b])):
            differences[f"{a}_minus_{b}"] = [variants[a][document] - variants[b][document] for document in common]
    p_values = {name: sign_flip_test(values, resamples=resamples, seed=seed) for name, values in differences.items()}
    corrected = adjusted(p_values, method)
    return {name: PairedTest(p, corrected[name], _documents_to_see(differences[name])) for name, p in p_values.items()}


def _documents_to_see(differences: Sequence[float]) -> int | None:
    if len(differences) < 2:
        return None
    mean, spread = float(np.mean(differences)), float(np.std(differences, ddof=1))
    return required_documents(spread, mean) if spread > _NO_DIFFERENCE and abs(mean) > _NO_DIFFERENCE else None


def _tied_mean(values: Any, axis: int) -> Any:
    """Return the mean, rounded so that sums of the same fractions in another order tie, as they do in truth."""
    return values.mean(axis=axis).round(12)
