"""Checks of the promotion gate and of regression tests: paired scores -> verdict with one sentence.

Their confidence bounds are distribution-free and monotone. Unlike in `evaluation.statistics.bootstrap_mean`, the level
must hold for rare, large losses (with total loss of one document in twenty, the bootstrap's 95 % bound failed in 21 %
of samples of 30), and the bounds must be monotone in every score, or a better candidate could be refused.

The bounds are those of Learned-Miller and Thomas (2019, arXiv 1905.06208), after Gaffke: a quantile of the mean of the
sample and one additional worst-case value under flat Dirichlet weights. For scores of 0 and 1 they equal
Clopper-Pearson, for equal scores the exact bound of `bootstrap_mean`. Validity for every bounded distribution is
conjectured; in the samples above the error rate was at most 2 %.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Literal

import numpy as np
from pydantic import Field

from evaluation.common.data import Frozen
from evaluation.statistics import POWER, Array, Interval, IntervalConfig, adjusted, sign_flip_test, sorted_sample

Verdict = Literal["pass", "fail", "undecided"]

_SHOWN_IDS = 3
"""Maximum number of ids in a sentence."""
_WORST, _BEST = -1.0, 1.0
"""Range of the difference of two scores in [0, 1]."""
_TYPICAL_SPREAD = 0.32
"""Default standard deviation of paired differences by document: that of SEAL's results (arXiv 2506.10943)."""
_MOST_NEEDED = 1_000_000
"""Largest sample size searched."""
_BATCH_ELEMENTS = 1 << 21
"""Weights per batch (16 MiB)."""


class StatisticsConfig(IntervalConfig):
    """How sure a check must be: a candidate at the margin passes in at most 1 - confidence of cases."""

    most_collapsed: float = Field(default=0.02, ge=0.0, le=1.0)
    """Share of empty or degenerate answers allowed, in [0, 1]; a regression test allows as many as the baseline has."""


class PairedScore(Frozen):
    """Scores of two students on the same question or document."""

    document: str = Field(min_length=1)
    """Document or probe id; scores are averaged by id, because questions of a document are not independent."""
    candidate: float = Field(ge=0.0, le=1.0)
    """In [0, 1]."""
    reference: float = Field(ge=0.0, le=1.0)
    """The champion's score in [0, 1], or the frozen baseline's for probes."""


class GateCheck(Frozen):
    """The result of one check."""

    name: str
    verdict: Verdict
    sentence: str
    """The finding in plain English."""
    estimate: float | None = None
    """Mean paired difference in [-1, 1], or a share in [0, 1]; None if not measured."""
    low: float | None = None
    """One-sided lower bound, if any."""
    high: float | None = None
    """One-sided upper bound, if any."""
    limit: float | None = None
    """Threshold: a required gain, a (negative) maximum loss, or a share."""
    documents: int | None = None
    """Documents, probes or answers behind the estimate."""
    needed: int | None = None
    """Required sample size of an undecided check, if the estimate is true; None if decided or unattainable."""


def differences_of(scores: Sequence[PairedScore]) -> list[float]:
    """Return the mean of candidate minus reference by document, in the order of the ids."""
    found: dict[str, list[float]] = {}
    for score in scores:
        found.setdefault(score.document, []).append(score.candidate - score.reference)
    return [sum(found[name]) / len(found[name]) for name in sorted(found)]


def bounds_of(differences: Sequence[float], settings: StatisticsConfig) -> Interval:
    """Return the mean of N >= 1 paired differences in [-1, 1] with one-sided bounds, independent of the order.

    The confidence is that of each bound. Bounds of candidates are monotone: their resamples have one seed.
    """
    sample = sorted_sample(differences, (_WORST, _BEST))
    mean = float(sample.mean())
    draws = zip(*_draws(sample, settings.resamples), strict=True)
    low, high = (np.sort(np.concatenate(part)) for part in draws)
    place = math.floor((1.0 - settings.confidence) * len(low))  # draws beyond the bound, rounded outwards
    return Interval(mean=mean, low=min(mean, float(low[place])), high=max(mean, float(high[-1 - place])))


def _draws(sample: Array, resamples: int) -> Iterator[tuple[Array, Array]]:
    """Yield batches of weighted means with an additional document at the worst and at the best value."""
    generator = np.random.default_rng(0)
    size = max(1, _BATCH_ELEMENTS // (len(sample) + 1))
    for start in range(0, resamples, size):
        # Normalised exponential variates are flat Dirichlet.
        weights = generator.standard_exponential((min(size, resamples - start), len(sample) + 1))
        seen, total = weights[:, :-1] @ sample, weights.sum(axis=1)
        yield (seen + _WORST * weights[:, -1]) / total, (seen + _BEST * weights[:, -1]) / total


def needed_documents(differences: Sequence[float], mean: float, slack: float, confidence: float) -> int | None:
    """Return how many documents decide a check with probability `POWER`, in normal approximation; None over a million.

    The true mean in [-1, 1] is `slack` >= 0 from the margin. The spread is that of `differences`, or a typical one if
    these are too few or all equal; `confidence` in (0.5, 1) is that of the bound.
    """
    found = float(np.std(differences, ddof=1)) if len(differences) > 1 else 0.0
    spread = found if found > 1e-9 else _TYPICAL_SPREAD
    level, chance = NormalDist().inv_cdf(confidence), NormalDist().inv_cdf(POWER)
    reach = _BEST + abs(mean)  # distance to the farther end of the range

    def suffices(count: int) -> bool:
        width = math.sqrt(spread**2 / count + (reach / count) ** 2)
        return reach / (count + 1) + level * width + chance * spread / math.sqrt(count) <= slack

    if slack <= 0.0 or not suffices(_MOST_NEEDED):
        return None
    return 1 + bisect_left(range(1, _MOST_NEEDED), True, key=suffices)


def check_change(name: str, scores: Sequence[PairedScore], limit: float, settings: StatisticsConfig) -> GateCheck:
    """Return whether the mean change is significantly above `limit` (pass) or below it (fail).

    A positive limit is a required gain, a negative one a non-inferiority margin; without scores: undecided.
    """
    differences = differences_of(scores)
    if not differences:
        return check_without_scores(name, limit, abs(limit), settings)
    found = bounds_of(differences, settings)
    verdict: Verdict = "undecided"
    where = "the confidence interval includes"
    if found.low > limit:
        verdict, where = "pass", "the lower confidence bound exceeds"
    elif found.high < limit:
        verdict, where = "fail", "the upper confidence bound is below"
    sentence = f"{describe_change(found.mean)}; {where} the limit of {100 * limit:+.1f} points."
    return measured_check(name, verdict, sentence, found, limit, differences, settings)


def check_groups(
    groups: Mapping[str, Sequence[PairedScore]], margin: float, settings: StatisticsConfig
) -> tuple[GateCheck, ...]:
    """Return for each group of documents whether its loss exceeds a margin in (0, 1].

    Groups are small, so non-inferiority is not required: a group fails if its loss exceeds the margin significantly, by
    a one-sided sign-flip test (significant from five documents, the bounds from ten) with Holm's correction. It is
    undecided without scores, or if the excess is not significant.
    """
    known = {name: differences_of(scores) for name, scores in groups.items() if scores}
    beyond = {
        name: math.fsum(values) / len(values) < -margin - 1e-12  # tolerance for rounding
        for name, values in known.items()
    }
    level = 1.0 - settings.confidence
    # Enough sign patterns for significance after Holm's correction.
    patterns = max(settings.resamples, math.ceil(4 * len(known) / level))
    # One-sided against a mean of at least -margin: the null distribution is symmetric, one tail is half of the p-value.
    p_values = {
        name: sign_flip_test([d + margin for d in values], resamples=patterns) / 2.0 if beyond[name] else 1.0
        for name, values in known.items()
    }
    if len(p_values) > 1 and min(p_values.values()) <= level:  # else the correction changes nothing and takes 0.1 s
        p_values = adjusted(p_values)
    checks = []
    for name in groups:
        if name not in known:
            checks.append(check_without_scores(name, -margin, margin, settings))
            continue
        verdict: Verdict = "pass"
        where = "within"
        if beyond[name] and p_values[name] <= level:
            verdict, where = "fail", "significantly beyond"
        elif beyond[name]:
            verdict, where = "undecided", "beyond, but not significantly,"
        found = bounds_of(known[name], settings)
        sentence = f"{describe_change(found.mean)}, {where} the limit of {100 * -margin:+.1f} points."
        checks.append(measured_check(name, verdict, sentence, found, -margin, known[name], settings))
    return tuple(checks)


def check_collapse(collapsed: int, answered: int, most: float) -> GateCheck:
    """Return whether the share of empty or degenerate answers is at most `most`; undecided without answers."""
    name = "empty or degenerate answers"
    if not answered:
        return GateCheck(name=name, verdict="undecided", sentence="There are no answers.", limit=most, needed=1)
    share = collapsed / answered
    sentence = f"{collapsed} of {answered} answers are empty or degenerate; {most:.1%} are allowed."
    verdict: Verdict = "pass" if share <= most else "fail"
    return GateCheck(name=name, verdict=verdict, sentence=sentence, estimate=share, limit=most, documents=answered)


def check_canaries(canaries: Mapping[str, str | None]) -> GateCheck:
    """Return whether no canary failed; undecided without canaries."""
    name = "canaries"
    failed = [f"{canary}: {reason}" for canary, reason in sorted(canaries.items()) if reason is not None]
    if failed:
        sentence = f"Failed: {'; '.join(failed)}."
        return GateCheck(name=name, verdict="fail", sentence=sentence, documents=len(canaries))
    if not canaries:
        return GateCheck(name=name, verdict="undecided", sentence="There are none.", documents=0, needed=1)
    return GateCheck(name=name, verdict="pass", sentence=f"All {len(canaries)} pass.", documents=len(canaries))


def check_scored(unscored: Sequence[str]) -> GateCheck:
    """Return whether every expected document has a score: missing ones may be the losses."""
    name = "documents without a score"
    if not unscored:
        return GateCheck(name=name, verdict="pass", sentence="There are none.", documents=0)
    shown = ", ".join(repr(document) for document in sorted(unscored)[:_SHOWN_IDS])
    more = ", ..." if len(unscored) > _SHOWN_IDS else ""
    sentence = f"{len(unscored)} could not be scored: {shown}{more}. Find out why, and score them again."
    return GateCheck(name=name, verdict="undecided", sentence=sentence, documents=len(unscored))


def points(value: float) -> str:
    """Format a difference or margin in [-1, 1], such as `3.5 points`."""
    return f"{100 * value:.1f} points"


def describe_change(mean: float) -> str:
    """Format a mean difference, such as `A loss of 3.5 points`."""
    return f"A loss of {points(-mean)}" if mean < 0.0 else f"A gain of {points(mean)}" if mean > 0.0 else "No change"


def measured_check(
    name: str,
    verdict: Verdict,
    sentence: str,
    found: Interval,
    limit: float,
    differences: Sequence[float],
    settings: StatisticsConfig,
    slack: float | None = None,
) -> GateCheck:
    """Return a check with its figures and, if undecided, the required sample size.

    `slack` > 0 is the distance of the mean to the deciding value, by default `limit`.
    """
    needed = None
    if verdict == "undecided":
        slack = abs(found.mean - limit) if slack is None else slack
        enough = needed_documents(differences, found.mean, slack, settings.confidence)
        # An undecided check needs more than it has, even if the approximation says otherwise.
        needed = None if enough is None else max(enough, len(differences) + 1)
        wanted = f"About {needed} would decide" if needed is not None else "At the limit no number would decide"
        sentence = f"{sentence} {wanted}, if the estimate is right (there are {len(differences)})."
    return GateCheck(
        name=name,
        verdict=verdict,
        sentence=sentence,
        estimate=found.mean,
        low=found.low,
        high=found.high,
        limit=limit,
        documents=len(differences),
        needed=needed,
    )


def check_without_scores(name: str, limit: float, margin: float, settings: StatisticsConfig) -> GateCheck:
    """Return the undecided check without scores, with the sample size that rules out a loss or shows twice the gain."""
    needed = needed_documents([], max(0.0, limit), max(margin, 0.01), settings.confidence)
    wanted = "" if needed is None else f"; about {needed} documents are needed for this margin"
    sentence = f"There are no scores{wanted}."
    return GateCheck(name=name, verdict="undecided", sentence=sentence, limit=limit, documents=0, needed=needed)
