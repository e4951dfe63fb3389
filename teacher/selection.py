"""Selection: which completions of a round the teacher learns from, and with what weight.

Four algorithms give weighted examples for the one learning step: ReST-EM keeps each group's best with weight 1,
reward-weighted regression keeps all with a weight that grows with the reward, the group-relative way gives each its
advantage over the others, and direct preference optimization pairs a better one (+1) with a worse one (-1). A
completion without a reward is left out; a group that teaches nothing is left out with a reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import combinations
from typing import Literal, NamedTuple

from teacher.config import GroupRelativeConfig, LearningConfig, PreferenceConfig, RestEmConfig, RewardWeightedConfig
from teacher.credit import Earned, relative_to_others
from teacher.rewards import has_spread, leave_one_out_advantages


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sampled completion with its reward."""

    token_ids: tuple[int, ...]
    """All sampled tokens, the closing one included when the completion stopped by itself."""
    reward: float | None
    """None when there is none; the completion is then not learned from."""
    standard_error: float | None = None
    """Of the reward, in its units, at least 0; None when it is not known."""
    refused: bool = False
    """There is no reward because of what it says, and not because something failed."""
    earned: Earned | None = None
    """What each line earned, in units of the reward; None where lines are not told apart."""


@dataclass(frozen=True, slots=True)
class CandidateGroup:
    """All completions sampled for one prompt, in the order sampled."""

    id: str
    """The document's id."""
    prompt: str
    """The rendered prompt that the completions continue."""
    candidates: tuple[Candidate, ...]
    base_reward: float | None = None
    """What the student gets without any update, on the scale of the rewards; None when it was not measured."""


@dataclass(frozen=True, slots=True)
class WeightedExample:
    """A completion to make likelier (weight above 0) or less likely (below 0)."""

    prompt: str
    token_ids: tuple[int, ...]
    """The completion's tokens, the closing one included when it stopped by itself."""
    weight: float
    group_id: str
    pair: int | None = None
    """Number of the pair that it belongs to, the same for both examples of the pair; None when it is in no pair."""
    token_weights: tuple[float, ...] = ()
    """Added to the weight, one for each token; empty adds nothing. For the group-relative way alone."""


class LeftOut(StrEnum):
    """Why nothing of a group is learned from."""

    NO_REWARDS = "no_rewards"
    """No completion has a reward."""
    TOO_FEW_REWARDS = "too_few_rewards"
    """Only one completion has a reward, so there is nothing to compare it with."""
    ZERO_SPREAD = "zero_spread"
    """All rewards are equal."""
    NO_GAIN = "no_gain"
    """No completion did better than the student without an update."""
    NO_BASE_REWARD = "no_base_reward"
    """A gain is required, and the student without an update was not scored."""
    NO_CLEAR_PAIR = "no_clear_pair"
    """No two different completions have rewards that lie far enough apart for their errors."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What to learn from in a round."""

    examples: tuple[WeightedExample, ...]
    """Group by group in the order given; within a group best first (ReST-EM), pair by pair, the largest gap and the
    better completion first (preferences), or else as sampled."""
    left_out: Mapping[str, LeftOut]
    """Group ids from which nothing is learned, with the reason."""
    unknown_errors: int = 0
    """Pairs taken although the error of their gap is not known, so that any gap did."""


def select_examples(groups: Sequence[CandidateGroup], config: LearningConfig) -> Selection:
    """Return what to learn from under `config`, which names the algorithm."""
    match config:
        case RestEmConfig():
            return rest_em(groups, keep=config.keep, require_gain=config.require_gain)
        case RewardWeightedConfig():
            return reward_weighted(groups, beta=config.beta, weight_cap=config.weight_cap)
        case GroupRelativeConfig():
            return group_relative(
                groups,
                normalize=config.normalize,
                line_credit=config.line_credit,
                refused_weight=config.refused_weight,
            )
        case PreferenceConfig():
            return preferences(groups, gap_errors=config.gap_errors, max_pairs=config.max_pairs)


def rest_em(groups: Sequence[CandidateGroup], *, keep: int = 1, require_gain: bool = True) -> Selection:
    """Return the `keep` best completions of each group with weight 1 (ReST-EM, arXiv 2312.06585).

    The step then maximizes their likelihood: expectation-maximization for the expected reward, where the reward is 1
    for those kept and else 0. Of equal rewards the one sampled first wins. The same tokens are kept once only, so with
    `keep` above 1 a repeated completion does not count double.

    Args:
        groups: One for each prompt of the round, ids unique.
        keep: Completions kept of a group, at least 1.
        require_gain: Keep only rewards strictly above the group's `base_reward`.
    """
    if keep < 1:
        raise ValueError(f"keep: got {keep}, allowed is at least 1")
    examples: list[WeightedExample] = []
    left_out: dict[str, LeftOut] = {}
    for group in groups:
        known = [(candidate.reward, candidate) for candidate in group.candidates if candidate.reward is not None]
        if not known:
            left_out[group.id] = LeftOut.NO_REWARDS
        elif require_gain and group.base_reward is None:
            left_out[group.id] = LeftOut.NO_BASE_REWARD
        else:
            floor = group.base_reward if require_gain and group.base_reward is not None else -math.inf
            gained = [pair for pair in known if pair[0] > floor]
            gained.sort(key=lambda pair: pair[0], reverse=True)
            best = list(dict.fromkeys(candidate.token_ids for _, candidate in gained))[:keep]
            examples += [WeightedExample(group.prompt, token_ids, 1.0, group.id) for token_ids in best]
            if not best:
                left_out[group.id] = LeftOut.NO_GAIN
    return Selection(examples=tuple(examples), left_out=left_out)


def reward_weighted(groups: Sequence[CandidateGroup], *, beta: float = 0.1, weight_cap: float = 5.0) -> Selection:
    """Return every rewarded completion with a weight that grows exponentially with its reward.

    The weight is min(exp((r - m) / beta), weight_cap), m the mean reward of the document, divided by the mean of these
    over all examples returned, so that the step size depends neither on `beta` nor on the scale of the rewards. The
    step then fits the policy by weighted maximum likelihood to itself tilted towards higher rewards (reward-weighted
    regression, Peters and Schaal 2007, ICML; with a baseline, advantage-weighted regression, arXiv 1910.00177).

    Args:
        groups: One for each prompt of the round, ids unique.
        beta: Temperature in reward units, above 0.
        weight_cap: Largest weight before the division, at least 1.
    """
    if not (beta > 0.0 and weight_cap >= 1.0):
        raise ValueError(f"beta, weight_cap: got {beta} and {weight_cap}, allowed are above 0 and at least 1")
    rows: list[WeightedExample] = []
    left_out = _left_out(groups)
    for group in (group for group in groups if group.id not in left_out):
        known = [(candidate, candidate.reward) for candidate in group.candidates if candidate.reward is not None]
        mean = math.fsum(reward for _, reward in known) / len(known)
        for candidate, reward in known:
            weight = math.exp(min((reward - mean) / beta, math.log(weight_cap)))
            rows.append(WeightedExample(group.prompt, candidate.token_ids, weight, group.id))
    scale = math.fsum(row.weight for row in rows) / len(rows) if rows else 1.0
    return Selection(tuple(replace(row, weight=row.weight / scale) for row in rows), left_out)


def group_relative(
    groups: Sequence[CandidateGroup],
    *,
    normalize: Literal["none", "batch"] = "none",
    line_credit: float = 0.0,
    refused_weight: float = 0.0,
) -> Selection:
    """Return every rewarded completion with its leave-one-out advantage as weight, then the refused ones.

    The step then follows the policy gradient of the expected reward (REINFORCE with a leave-one-out baseline, arXiv
    2402.14740), clipped. Advantages are never divided by their own group's standard deviation: that would blow up
    groups that differ by noise alone (arXiv 2503.20783). With `normalize="batch"` all are divided by one number, the
    root mean square of the batch's advantages (their mean is 0), which keeps the step size apart from the scale of the
    rewards; each completion counts once, whatever its length.

    Args:
        groups: One for each prompt of the round, ids unique.
        normalize: `none` or `batch`.
        line_credit: Times what its line earned more than others at its place is added to each token's weight.
        refused_weight: Taken as negative weight by completions that were refused for what they say, in all groups;
            they have no reward, and no part in means and scales. 0 leaves them out.
    """
    rows: list[WeightedExample] = []
    left_out = _left_out(groups)
    for group in (group for group in groups if group.id not in left_out):
        advantages = leave_one_out_advantages([candidate.reward for candidate in group.candidates])
        rows.extend(_with_advantages(group, advantages, line_credit))
    scale = 1.0
    if normalize == "batch" and rows:
        scale = math.sqrt(math.fsum(_mean_square(row) for row in rows) / len(rows)) or 1.0
    scaled = (
        replace(row, weight=row.weight / scale, token_weights=tuple(w / scale for w in row.token_weights))
        for row in rows
    )
    refused = (
        WeightedExample(group.prompt, candidate.token_ids, -refused_weight, group.id)
        for group in groups
        for candidate in group.candidates
        if candidate.refused and candidate.token_ids and refused_weight
    )
    return Selection((*scaled, *refused), left_out)


def preferences(groups: Sequence[CandidateGroup], *, gap_errors: float = 1.5, max_pairs: int = 8) -> Selection:
    """Return pairs of completions of one document, the better one with weight +1 and the worse one with -1.

    The step then minimizes the loss of direct preference optimization (arXiv 2305.18290, equation 7). That loss takes a
    pair's order for certain up to a logistic choice, whatever its gap, so a pair is taken only where the rewards differ
    by more than `gap_errors` standard errors of their difference, sqrt(e1^2 + e2^2) for independent errors. Where an
    error is not known any difference does, and `Selection.unknown_errors` counts the pair. Equal completions make no
    pair: one cannot be preferred to itself.

    Args:
        groups: One for each prompt of the round, ids unique.
        gap_errors: At least 0.
        max_pairs: Pairs of a group, at least 1: the largest gaps, of equal gaps the pair that was sampled first.
    """
    if max_pairs < 1 or gap_errors < 0.0:
        raise ValueError(f"max_pairs, gap_errors: got {max_pairs} and {gap_errors}, allowed are at least 1 and 0")
    examples: list[WeightedExample] = []
    left_out: dict[str, LeftOut] = {}
    unknown = 0
    for group in groups:
        pairs = sorted(_clear_pairs(group, gap_errors), key=lambda pair: pair.gap, reverse=True)[:max_pairs]
        for pair in pairs:
            number = len(examples) // 2
            for candidate, weight in ((pair.better, 1.0), (pair.worse, -1.0)):
                examples.append(WeightedExample(group.prompt, candidate.token_ids, weight, group.id, number))
            unknown += pair.error is None
        if not pairs:
            left_out[group.id] = _incomparable(group) or LeftOut.NO_CLEAR_PAIR
    return Selection(tuple(examples), left_out, unknown)


def _left_out(groups: Sequence[CandidateGroup]) -> dict[str, LeftOut]:
    """Return the groups whose rewards cannot be compared, with the reason."""
    return {group.id: reason for group in groups if (reason := _incomparable(group)) is not None}


def _incomparable(group: CandidateGroup) -> LeftOut | None:
    """Return why the rewards of a group cannot be compared; None where they can."""
    rewards = [candidate.reward for candidate in group.candidates]
    known = sum(reward is not None for reward in rewards)
    if known < 2:
        return LeftOut.TOO_FEW_REWARDS if known else LeftOut.NO_REWARDS
    return None if has_spread(rewards) else LeftOut.ZERO_SPREAD


def _with_advantages(
    group: CandidateGroup, advantages: Sequence[float | None], line_credit: float
) -> Iterator[WeightedExample]:
    rewarded = [(c, a) for c, a in zip(group.candidates, advantages, strict=True) if a is not None]
    told = [() if c.earned is None or not line_credit else c.earned.by_line for c, _ in rewarded]
    for (candidate, advantage), credits in zip(rewarded, relative_to_others(told), strict=True):
        places = candidate.earned.of_tokens if candidate.earned is not None and credits else ()
        weights = tuple(0.0 if place is None else line_credit * credits[place] for place in places)
        yield WeightedExample(group.prompt, candidate.token_ids, advantage, group.id, token_weights=weights)


def _mean_square(row: WeightedExample) -> float:
    """Return the mean over tokens of the square of what they are weighted with."""
    if not row.token_weights:
        return row.weight**2
    return math.fsum((row.weight + more) ** 2 for more in row.token_weights) / len(row.token_weights)


class _Pair(NamedTuple):
    better: Candidate
    worse: Candidate
    gap: float
    """Of the rewards, above 0."""
    error: float | None
    """Standard error of the gap; None when that of a reward is not known."""


def _clear_pairs(group: CandidateGroup, gap_errors: float) -> Iterator[_Pair]:
    """Yield the pairs of a group whose order is clear, as sampled."""
    for one, other in combinations(group.candidates, 2):
        if one.reward is None or other.reward is None or one.token_ids == other.token_ids:
            continue
        error = None
        if one.standard_error is not None and other.standard_error is not None:
            error = math.hypot(one.standard_error, other.standard_error)
        gap = abs(one.reward - other.reward)
        if has_spread([one.reward, other.reward]) and gap > gap_errors * (error or 0.0):
            better, worse = (one, other) if one.reward > other.reward else (other, one)
            yield _Pair(better, worse, gap, error)
