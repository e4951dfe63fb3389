"""Checks of the promotion gate and of regression tests: paired scores -> verdict with one sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from evaluation.common.data import Frozen
from evaluation.gate.bounds import mean_bounds, needed_documents, spread_of
from evaluation.statistics import POWER, Interval, IntervalConfig, adjusted, sign_flip_test

Verdict = Literal["pass", "fail", "undecided"]

_SHOWN_IDS = 3
"""Maximum number of ids in a sentence."""


class StatisticsConfig(IntervalConfig):
    """How sure a check must be: a candidate at the margin passes in at most 1 - confidence of cases."""

    seed: int = Field(default=0, ge=0)
    """Of the resamples, at least 0."""
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


def check_change(name: str, scores: Sequence[PairedScore], limit: float, settings: StatisticsConfig) -> GateCheck:
    """Return whether the mean change is significantly above `limit` (pass) or below it (fail).

    A positive limit is a required gain, a negative one a non-inferiority margin; without scores: undecided.
    """
    differences = differences_of(scores)
    if not differences:
        return check_without_scores(name, limit, abs(limit), settings)
    found = bounds_of(differences, settings)
    verdict: Verdict = "pass" if found.low > limit else "fail" if found.high < limit else "undecided"
    where = {
        "pass": "the lower confidence bound exceeds",
        "fail": "the upper confidence bound is below",
        "undecided": "the confidence interval includes",
    }[verdict]
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
    level = 1.0 - settings.confidence
    # Enough sign patterns for significance after Holm's correction.
    patterns = max(settings.resamples, math.ceil(4 * len(known) / level))
    p_values = {name: _p_value_of_loss(values, margin, patterns, settings.seed) for name, values in known.items()}
    if len(p_values) > 1 and min(p_values.values()) <= level:  # else the correction changes nothing and takes 0.1 s
        p_values = adjusted(p_values)
    checks = []
    for name in groups:
        if name not in known:
            checks.append(check_without_scores(name, -margin, margin, settings))
            continue
        found, beyond = bounds_of(known[name], settings), _is_beyond(known[name], margin)
        verdict: Verdict = "pass" if not beyond else "fail" if p_values[name] <= level else "undecided"
        where = {"pass": "within", "fail": "significantly beyond", "undecided": "beyond, but not significantly,"}[
            verdict
        ]
        sentence = f"{describe_change(found.mean)}, {where} the limit of {100 * -margin:+.1f} points."
        checks.append(measured_check(name, verdict, sentence, found, -margin, known[name], settings))
    return tuple(checks)


def _p_value_of_loss(differences: Sequence[float], margin: float, resamples: int, seed: int) -> float:
    """Return the one-sided p-value against a mean >= -margin; 1 if the observed mean is."""
    if not _is_beyond(differences, margin):
        return 1.0
    # The null distribution is symmetric: one tail is half of the p-value.
    return sign_flip_test([d + margin for d in differences], resamples=resamples, seed=seed) / 2.0


def _is_beyond(differences: Sequence[float], margin: float) -> bool:
    return math.fsum(differences) / len(differences) < -margin - 1e-12  # tolerance for rounding


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


def bounds_of(differences: Sequence[float], settings: StatisticsConfig) -> Interval:
    """See `mean_bounds`."""
    return mean_bounds(differences, confidence=settings.confidence, resamples=settings.resamples, seed=settings.seed)


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
        enough = needed_documents(
            spread_of(differences),
            found.mean,
            abs(found.mean - limit) if slack is None else slack,
            confidence=settings.confidence,
            power=POWER,
        )
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
    needed = needed_documents(
        spread_of([]), max(0.0, limit), max(margin, 0.01), confidence=settings.confidence, power=POWER
    )
    sentence = "There are no scores."
    if needed is not None:
        sentence = f"There are no scores; about {needed} documents are needed for this margin."
    return GateCheck(name=name, verdict="undecided", sentence=sentence, limit=limit, documents=0, needed=needed)
