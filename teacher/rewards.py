"""Rewards: one number for a self-edit from the scores of its replicates, or none with a typed reason.

A replicate is one update of the student with one seed. What failed gives no number: a broken disk or an unparsable
self-edit must not look to the teacher like a self-edit that taught nothing. Pure functions on plain numbers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from teacher.config import RewardConfig


class RewardFailure(StrEnum):
    """Why a self-edit has no reward, in the order in which the pipeline can fail."""

    PROMPT_TOO_LONG = "prompt_too_long"
    """The document does not fit the teacher's context, so nothing was sampled."""
    GENERATION_FAILED = "generation_failed"
    """The engine did not deliver the completion."""
    PARSE_FAILED = "parse_failed"
    """The completion holds no self-edit."""
    OVER_BUDGET = "over_budget"
    """The self-edit is longer, or asks for more training, than the run allows."""
    REPETITIVE = "repetitive"
    """Too many of its lines repeat an earlier one."""
    LEAKED = "leaked"
    """The self-edit contains evaluation questions, and the run rejects such edits."""
    LOW_COVERAGE = "low_coverage"
    """Too few of the gold answers occur in it."""
    SCREENED_OUT = "screened_out"
    """A cheap score expected little of it, so no student was updated with it."""
    PROXY_FAILED = "proxy_failed"
    """It could not be scored in the student's context."""
    NO_QUESTIONS = "no_questions"
    """The task has nothing to score with."""
    UPDATE_FAILED = "update_failed"
    """The student's update did not finish."""
    CANARY_FAILED = "canary_failed"
    """The update finished but did not change the adapter as it must, or changed the base."""
    SCORING_FAILED = "scoring_failed"
    """The updated student could not be scored, or a score is missing or out of [0, 1]."""
    NON_FINITE = "non_finite"
    """A score is NaN or infinite."""
    MISSING_REPLICATES = "missing_replicates"
    """Fewer replicates than required were made, though none failed."""


REFUSALS = frozenset(
    {
        RewardFailure.PARSE_FAILED,
        RewardFailure.OVER_BUDGET,
        RewardFailure.REPETITIVE,
        RewardFailure.LEAKED,
        RewardFailure.LOW_COVERAGE,
    }
)
"""Reasons that lie in what the teacher wrote."""


_STAGE = {failure: stage for stage, failure in enumerate(RewardFailure)}


@dataclass(frozen=True, slots=True)
class Replicate:
    """The scores of one update of the student with one seed, or why there are none."""

    seed: int
    accuracy: float | None = None
    """Share of questions answered exactly, in [0, 1]."""
    probability: float | None = None
    """Mean probability of the gold answer, in [0, 1]."""
    token_probability: float | None = None
    """Mean over questions of the geometric mean of the gold tokens' probabilities, in [0, 1]."""
    forgetting: float | None = None
    """Retention accuracy before minus after the update, in [-1, 1]; None when it was not measured."""
    failure: RewardFailure | None = None
    """Why there is no score; scores next to a failure are ignored."""


@dataclass(frozen=True, slots=True)
class RewardOutcome:
    """Either a reward or the reason why there is none, never both."""

    value: float | None
    """The reward; the metric's scale less the retention penalty."""
    reason: RewardFailure | None
    replicates: int
    """Replicates that the value is the mean of; those that succeeded when there is no value."""
    standard_error: float | None
    """Of the value, from the spread between replicates; None for fewer than two."""

    def __post_init__(self) -> None:
        if (self.value is None) == (self.reason is None):
            raise ValueError(f"a reward outcome needs a value or a reason: got {self.value!r} and {self.reason!r}")


def no_reward(reason: RewardFailure) -> RewardOutcome:
    """Return the outcome of a self-edit that failed before any replicate was made."""
    return RewardOutcome(value=None, reason=reason, replicates=0, standard_error=None)


def reward_of(replicates: Sequence[Replicate], config: RewardConfig) -> RewardOutcome:
    """Return the mean reward of the replicates that succeeded, or the reason why there is none.

    With fewer than `config.minimum_replicates` successes there is no value; the reason is the commonest failure (of
    equally common ones the earliest in the pipeline). The order of the replicates does not matter.
    """
    scored = [_value_of(replicate, config) for replicate in replicates]
    values = [value for value in scored if not isinstance(value, RewardFailure)]
    if len(values) < config.minimum_replicates:
        failures = Counter(value for value in scored if isinstance(value, RewardFailure))
        reason = min(failures, key=lambda f: (-failures[f], _STAGE[f]), default=RewardFailure.MISSING_REPLICATES)
        return RewardOutcome(value=None, reason=reason, replicates=len(values), standard_error=None)
    mean = _mean(values)
    error = math.sqrt(_mean([(v - mean) ** 2 for v in values]) / (len(values) - 1)) if len(values) > 1 else None
    return RewardOutcome(value=mean, reason=None, replicates=len(values), standard_error=error)


def leave_one_out_advantages(rewards: Sequence[float | None]) -> list[float | None]:
    """Return each reward minus the mean of the others of its group; None stays None and counts for nobody.

    The baseline does not contain the reward itself, so it is unbiased (RLOO, arXiv 2402.14740); the advantages are
    G / (G - 1) times the deviations from the group's mean and sum to 0. A group with one reward has no baseline: None.
    """
    known = [reward for reward in rewards if reward is not None]
    if len(known) < 2:
        return [None] * len(rewards)
    mean, scale = _mean(known), len(known) / (len(known) - 1)
    return [None if reward is None else scale * (reward - mean) for reward in rewards]


def has_spread(rewards: Sequence[float | None], tolerance: float = 1e-9) -> bool:
    """Return whether two rewards of a group differ by more than `tolerance`; None counts for nothing."""
    known = [reward for reward in rewards if reward is not None]
    return len(known) > 1 and max(known) - min(known) > tolerance


def shrink(rewards: Sequence[float | None], reliabilities: float | Sequence[float]) -> list[float | None]:
    """Return mean + reliability * (reward - mean), the best linear prediction of the true rewards of a group.

    Kelley's formula for the regression of true on observed scores (Lord and Novick 1968, section 3.7). It matters where
    rewards are compared with something outside the group, such as the student without an update, and where they rest
    on different numbers of updates.

    Args:
        rewards: Of one document's self-edits; None stays None.
        reliabilities: Share of the rewards' variance within a document that is not noise, in [0, 1]: one for all, or
            one for each.

    Raises:
        ValueError: A reliability is out of range, or there are not as many as rewards.
    """
    shared = isinstance(reliabilities, int | float)
    given = [float(reliabilities)] if isinstance(reliabilities, int | float) else list(reliabilities)
    each = given * len(rewards) if shared else given
    if not all(0.0 <= value <= 1.0 for value in given):
        raise ValueError(f"reliability: got {reliabilities!r}, allowed is [0, 1]; use Reliability.of_mean")
    known = [reward for reward in rewards if reward is not None]
    mean = _mean(known) if known else 0.0
    return [
        None if reward is None else mean + value * (reward - mean) for reward, value in zip(rewards, each, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Reliability:
    """Variance components of rewards within documents: self-edits that differ, and seeds of one self-edit that do."""

    between_variance: float
    """Of true rewards between the self-edits of a document; may come out negative where there is only noise."""
    within_variance: float
    """Of rewards between the seeds of one self-edit."""
    edits: int
    """Self-edits with at least two replicates that the estimate rests on."""

    def of_mean(self, replicates: float) -> float:
        """Return the reliability of a mean of `replicates` seeds, in [0, 1]; with 1 the intra-class correlation."""
        between = max(self.between_variance, 0.0)
        total = between + self.within_variance / replicates
        return between / total if total > 0.0 else 0.0


def reliability(groups: Sequence[Sequence[Sequence[float]]]) -> Reliability | None:
    """Return the variance components of rewards by one-way random-effects analysis of variance within documents.

    With mean squares MS_b (self-edits within documents) and MS_w (replicates within self-edits), the estimates are
    MS_w for the noise and (MS_b - MS_w) / s0 for the true variance, where s0 is the number of replicates of each
    self-edit, or for unequal numbers (N - sum_d sum_e s_de^2 / N_d) / df_b (Searle, Casella and McCulloch 1992,
    Variance Components, section 3.6). Then `of_mean(1)` is ICC(1) and `of_mean(s0)` is ICC(1, k) = 1 - MS_w / MS_b of
    Shrout and Fleiss (1979).

    Args:
        groups: For each document, for each of its self-edits, the rewards of its replicates (D, E, S), ragged.

    Returns:
        None when it cannot be estimated: no document has two self-edits with rewards, or no self-edit two replicates.
    """
    kept = [[edit for edit in group if edit] for group in groups]
    kept = [group for group in kept if len(group) > 1]
    freedom_between = sum(len(group) - 1 for group in kept)
    freedom_within = sum(len(edit) - 1 for group in kept for edit in group)
    if freedom_between == 0 or freedom_within == 0:
        return None
    between = within = size = 0.0
    for group in kept:
        everything = [value for edit in group for value in edit]
        mean = _mean(everything)
        between += sum(len(edit) * (_mean(edit) - mean) ** 2 for edit in group)
        within += sum((value - _mean(edit)) ** 2 for edit in group for value in edit)
        size += len(everything) - sum(len(edit) ** 2 for edit in group) / len(everything)
    noise = within / freedom_within
    return Reliability(
        between_variance=(between / freedom_between - noise) / (size / freedom_between),
        within_variance=noise,
        edits=sum(len(edit) > 1 for group in kept for edit in group),
    )


def _value_of(replicate: Replicate, config: RewardConfig) -> float | RewardFailure:
    """Return the reward of one replicate, or why it has none."""
    if replicate.failure is not None:
        return replicate.failure
    if config.metric == "proxy":
        raise ValueError("reward: the proxy is read without an update; an update's scores give no such reward")
    score: float | None = getattr(replicate, config.metric)
    forgetting = replicate.forgetting if config.retention_weight > 0.0 else 0.0
    if score is None or forgetting is None:
        return RewardFailure.SCORING_FAILED
    if not (math.isfinite(score) and math.isfinite(forgetting)):
        return RewardFailure.NON_FINITE
    if not (0.0 <= score <= 1.0 and -1.0 <= forgetting <= 1.0):
        return RewardFailure.SCORING_FAILED
    return score - config.retention_weight * forgetting


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
