"""The checks of the gate and of regression tests: each turns paired scores into a verdict with one plain sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from evaluation.gate.bounds import (
    MeanBounds,
    mean_bounds,
    needed_documents,
    spread_of,
)
from evaluation.gate.records import GateCheck, PairedScore, StatisticsConfig, Verdict
from evaluation.paired_tests import adjusted, sign_flip_test

_SHOWN_IDS = 3
"""Ids that a sentence names at most."""


def differences_of(scores: Sequence[PairedScore]) -> list[float]:
    """Return candidate minus reference by document, each document's scores averaged, in the order of the ids."""
    found: dict[str, list[float]] = {}
    for score in scores:
        found.setdefault(score.document, []).append(score.candidate - score.reference)
    return [sum(found[name]) / len(found[name]) for name in sorted(found)]


def check_gain(name: str, scores: Sequence[PairedScore], margin: float, settings: StatisticsConfig) -> GateCheck:
    """Return whether the candidate is shown to be better by more than a margin, or shown not to be.

    Args:
        name: Of the check.
        scores: Paired; none is undecided.
        margin: Gain to show, in [0, 1).
        settings: How sure to be.
    """
    differences = differences_of(scores)
    if not differences:
        return check_without_scores(name, margin, margin, settings)
    found = bounds_of(differences, settings)
    if found.low > margin:
        verdict: Verdict = "pass"
        sentence = f"Better by {points(found.mean)}, by more than {points(margin)} for sure enough."
    elif found.high < margin:
        verdict = "fail"
        sentence = f"The gain is {points(found.mean)}, and shown to be less than the {points(margin)} asked for."
    else:
        verdict = "undecided"
        sentence = f"The gain is {points(found.mean)}; these documents do not tell whether it is {points(margin)}."
    return measured_check(name, verdict, sentence, found, margin, differences, settings)


def check_no_loss(name: str, scores: Sequence[PairedScore], margin: float, settings: StatisticsConfig) -> GateCheck:
    """Return whether the candidate is shown to be no worse than a margin allows (non-inferiority), or to be worse.

    Args:
        name: Of the check.
        scores: Paired; none is undecided.
        margin: Loss allowed, in (0, 1].
        settings: How sure to be.
    """
    differences = differences_of(scores)
    if not differences:
        return check_without_scores(name, -margin, margin, settings)
    found = bounds_of(differences, settings)
    if found.low > -margin:
        verdict: Verdict = "pass"
        sentence = f"{change_told(found.mean)}, and no loss of {points(margin)} or more."
    elif found.high < -margin:
        verdict = "fail"
        sentence = f"{change_told(found.mean)}: shown to be more than the {points(margin)} allowed."
    else:
        verdict = "undecided"
        sentence = f"{change_told(found.mean)}; too few to rule out, or to show, a loss of {points(margin)}."
    return measured_check(name, verdict, sentence, found, -margin, differences, settings)


def check_groups(
    groups: Mapping[str, Sequence[PairedScore]], margin: float, settings: StatisticsConfig
) -> tuple[GateCheck, ...]:
    """Return for each group of documents whether it lost more than a margin.

    A group has few documents, so it need not show that it is well. It fails if its loss is shown to be larger than the
    margin by the one-sided sign-flip test of how far it is beyond (`sign_flip_test`, which five documents can pass,
    where the bounds need ten), at a level that Holm's correction keeps for all groups together. It is undecided if it
    lost more than the margin without proof.

    Args:
        groups: Name -> paired scores; a group without scores is undecided.
        margin: Loss allowed, in (0, 1].
        settings: How sure to be.
    """
    known = {name: differences_of(scores) for name, scores in groups.items() if scores}
    level = 1.0 - settings.confidence
    # Enough sign patterns for a p-value that is still small after it is multiplied by the number of groups.
    patterns = max(settings.resamples, math.ceil(4 * len(known) / level))
    p_values = {name: _p_value_of_loss(values, margin, patterns, settings.seed) for name, values in known.items()}
    if len(p_values) > 1 and min(p_values.values()) <= level:  # else the correction changes no verdict; it takes 0.1 s
        p_values = adjusted(p_values, "holm")
    checks = []
    for name in groups:
        if name not in known:
            checks.append(check_without_scores(name, -margin, margin, settings))
            continue
        found = bounds_of(known[name], settings)
        shown, beyond = p_values[name] <= level, _is_beyond(known[name], margin)
        verdict: Verdict = "fail" if shown and beyond else "undecided" if beyond else "pass"
        sentence = {
            "pass": f"{change_told(found.mean)}; {points(margin)} are allowed.",
            "fail": f"{change_told(found.mean)}: shown to be more than the {points(margin)} allowed.",
            "undecided": f"{change_told(found.mean)}, more than the {points(margin)} allowed, but it may be chance.",
        }[verdict]
        checks.append(measured_check(name, verdict, sentence, found, -margin, known[name], settings))
    return tuple(checks)


def _p_value_of_loss(differences: Sequence[float], margin: float, resamples: int, seed: int) -> float:
    """Return the one-sided p-value of a mean of -margin or better; 1 where the observed mean is that."""
    if not _is_beyond(differences, margin):
        return 1.0
    # Either tail of the test has half of its p-value, since every pattern of signs has its opposite.
    return sign_flip_test([d + margin for d in differences], resamples=resamples, seed=seed) / 2.0


def _is_beyond(differences: Sequence[float], margin: float) -> bool:
    return math.fsum(differences) / len(differences) < -margin - 1e-12  # not for rounding alone


def check_collapse(collapsed: int, answered: int, most: float) -> GateCheck:
    """Return whether few enough answers are empty or degenerate; undecided where none was looked at."""
    name = "empty or degenerate answers"
    if not answered:
        return GateCheck(name=name, verdict="undecided", sentence="No answer was looked at.", limit=most, needed=1)
    share = collapsed / answered
    sentence = f"{collapsed} of {answered} answers are empty or degenerate; {most:.1%} are allowed."
    verdict: Verdict = "pass" if share <= most else "fail"
    return GateCheck(name=name, verdict=verdict, sentence=sentence, estimate=share, limit=most, documents=answered)


def check_canaries(canaries: Mapping[str, str | None]) -> GateCheck:
    """Return whether every canary is well; undecided where there is none."""
    name = "canaries"
    failed = {canary: reason for canary, reason in sorted(canaries.items()) if reason is not None}
    if failed:
        told = "; ".join(f"{canary}: {reason}" for canary, reason in failed.items())
        return GateCheck(name=name, verdict="fail", sentence=f"Failed: {told}.", documents=len(canaries))
    if not canaries:
        return GateCheck(name=name, verdict="undecided", sentence="None was looked at.", documents=0, needed=1)
    return GateCheck(name=name, verdict="pass", sentence=f"All {len(canaries)} are well.", documents=len(canaries))


def check_scored(unscored: Sequence[str]) -> GateCheck:
    """Return whether every document that should have a score has one: those that fail may be those that lost."""
    name = "documents without a score"
    if not unscored:
        return GateCheck(name=name, verdict="pass", sentence="There are none.", documents=0)
    shown = ", ".join(repr(document) for document in sorted(unscored)[:_SHOWN_IDS])
    more = ", ..." if len(unscored) > _SHOWN_IDS else ""
    sentence = f"{len(unscored)} could not be scored: {shown}{more}. Look up why, and score them again."
    return GateCheck(name=name, verdict="undecided", sentence=sentence, documents=len(unscored))


def points(value: float) -> str:
    """Return a difference or a margin in [-1, 1] in points, such as `3.5 points`."""
    return f"{100 * value:.1f} points"


def change_told(mean: float) -> str:
    """Return a mean difference in words, such as `A loss of 3.5 points`."""
    return f"A loss of {points(-mean)}" if mean < 0.0 else f"A gain of {points(mean)}" if mean > 0.0 else "No change"


def bounds_of(differences: Sequence[float], settings: StatisticsConfig) -> MeanBounds:
    """Return mean and bounds of differences by document; see `mean_bounds`."""
    return mean_bounds(differences, confidence=settings.confidence, resamples=settings.resamples, seed=settings.seed)


def measured_check(
    name: str,
    verdict: Verdict,
    sentence: str,
    found: MeanBounds,
    limit: float,
    differences: Sequence[float],
    settings: StatisticsConfig,
    slack: float | None = None,
) -> GateCheck:
    """Return a check with its figures, and with the sample size that would decide it where it is undecided.

    Args:
        name: Of the check.
        verdict: Of the check.
        sentence: What was found; for an undecided check, what would decide it is added.
        found: Mean and bounds.
        limit: What the mean is held against.
        differences: By document.
        settings: How sure to be.
        slack: How far the mean is from what would decide the check, above 0; None is its distance to the limit.
    """
    needed = None
    if verdict == "undecided":
        enough = needed_documents(
            spread_of(differences),
            found.mean,
            abs(found.mean - limit) if slack is None else slack,
            confidence=settings.confidence,
            power=settings.power,
        )
        # What is undecided at this size needs more, whatever an approximation says.
        needed = None if enough is None else max(enough, len(differences) + 1)
        told = f"About {needed} would decide" if needed is not None else "It lies at the limit: no number would decide"
        sentence = f"{sentence} {told}, if it is as it looks ({len(differences)} are there)."
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
    """Return the check of something that has no scores: how many would show no loss, or a gain of twice the margin."""
    needed = needed_documents(
        spread_of([]), max(0.0, limit), max(margin, 0.01), confidence=settings.confidence, power=settings.power
    )
    sentence = "There are no scores."
    if needed is not None:
        sentence = f"There are no scores; about {needed} documents are needed for this margin."
    return GateCheck(name=name, verdict="undecided", sentence=sentence, limit=limit, documents=0, needed=needed)
