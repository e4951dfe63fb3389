"""Rewards: one number for a self-edit from the scores of its updates, or a typed reason why there is none.

An update is of the student with one seed. A failure gives no number: a broken disk or an unparsable self-edit must not
look to the teacher like a self-edit that taught nothing. Pure functions on plain numbers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from typing import Literal, Protocol

from pydantic import Field

from evaluation.common.data import Frozen


class RewardConfig(Frozen):
    """How the scores of a self-edit's updates become one reward, or none."""

    metric: Literal["accuracy", "probability", "token_probability", "proxy"] = "probability"
    """`accuracy`: share of questions answered exactly, in [0, 1]; `probability`: mean probability of the gold answer,
    in [0, 1], which varies less between seeds; `token_probability`: mean over questions of the geometric mean of the
    gold tokens' probabilities, in [0, 1], which tells long answers apart that are all but impossible as a whole;
    `proxy`: the probability with the self-edit in the context of a student that is not updated (after
    Reinforcement-Learned Teachers, arXiv 2506.08388), which takes no update at all."""
    retention_weight: float = Field(default=0.0, ge=0.0, le=10.0)
    """Reward taken off per unit of forgetting (the fall of retention accuracy), in [0, 10]; 0 ignores forgetting."""


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
    LEAKED = "leaked"
    """The self-edit contains evaluation questions, and the run rejects such edits."""
    PROXY_FAILED = "proxy_failed"
    """It could not be scored in the student's context."""
    UPDATE_FAILED = "update_failed"
    """The student's update did not finish."""
    CANARY_FAILED = "canary_failed"
    """The update finished but did not change the adapter as it must, or changed the base."""
    SCORING_FAILED = "scoring_failed"
    """The updated student could not be scored, or a score is missing or out of [0, 1]."""
    NON_FINITE = "non_finite"
    """A score is NaN or infinite."""
    MISSING_REPLICATES = "missing_replicates"
    """No update was made, though none failed."""


REFUSALS = frozenset({RewardFailure.PARSE_FAILED, RewardFailure.OVER_BUDGET, RewardFailure.LEAKED})
"""Reasons that lie in what the teacher wrote."""

_STAGE = {failure: stage for stage, failure in enumerate(RewardFailure)}
_SCORES = {
    "accuracy": "accuracy",
    "probability": "mean_probability",
    "token_probability": "mean_token_probability",
}
"""Attribute of `Scores` that each metric reads."""


class Scores(Protocol):
    """The scores of one update of the student with one seed, or why there are none."""

    @property
    def failure(self) -> RewardFailure | None:
        """Why there is no score; scores next to a failure are ignored."""

    @property
    def accuracy(self) -> float | None:
        """Share of questions answered exactly, in [0, 1]."""

    @property
    def mean_probability(self) -> float | None:
        """Mean probability of the gold answer, in [0, 1]."""

    @property
    def mean_token_probability(self) -> float | None:
        """Mean over questions of the geometric mean of the gold tokens' probabilities, in [0, 1]."""

    @property
    def forgetting(self) -> float | None:
        """Retention accuracy before minus after the update, in [-1, 1]; None when it was not measured."""


def reward_of(replicates: Sequence[Scores], config: RewardConfig) -> float | RewardFailure:
    """Return the mean reward of the updates that succeeded, on the metric's scale less the retention penalty.

    With none, the reason is the most common failure, of equally common ones the earliest in the pipeline. The order of
    the updates does not matter.
    """
    scored = [_value_of(replicate, config) for replicate in replicates]
    values = [value for value in scored if not isinstance(value, RewardFailure)]
    if values:
        return _mean(values)
    failures = Counter(value for value in scored if isinstance(value, RewardFailure))
    return min(failures, key=lambda f: (-failures[f], _STAGE[f]), default=RewardFailure.MISSING_REPLICATES)


def _value_of(scores: Scores, config: RewardConfig) -> float | RewardFailure:
    """Return the reward of one update, or why it has none."""
    if scores.failure is not None:
        return scores.failure
    score: float | None = getattr(scores, _SCORES[config.metric])
    forgetting = scores.forgetting if config.retention_weight > 0.0 else 0.0
    if score is None or forgetting is None:
        return RewardFailure.SCORING_FAILED
    if not (math.isfinite(score) and math.isfinite(forgetting)):
        return RewardFailure.NON_FINITE
    if not (0.0 <= score <= 1.0 and -1.0 <= forgetting <= 1.0):
        return RewardFailure.SCORING_FAILED
    return score - config.retention_weight * forgetting


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


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
