"""Selection: which completions of a round the teacher learns from, and with what weight.

Both ways give weighted examples for the one learning step: ReST-EM keeps each group's best with weight 1, the
group-relative way gives every completion its advantage over the others. A completion without a reward is left out; a
group that teaches nothing is left out with a reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from teacher.config import GroupRelativeConfig, RestEmConfig
from teacher.rewards import has_spread, leave_one_out_advantages


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sampled completion with its reward."""

    token_ids: tuple[int, ...]
    """All sampled tokens, the closing one included when the completion stopped by itself."""
    reward: float | None
    """None when there is none; the completion is then not learned from."""


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


@dataclass(frozen=True, slots=True)
class Selection:
    """What to learn from in a round."""

    examples: tuple[WeightedExample, ...]
    """Group by group in the order given; within a group best first (ReST-EM) or as sampled (group-relative)."""
    left_out: Mapping[str, LeftOut]
    """Group ids from which nothing is learned, with the reason."""


def select_examples(groups: Sequence[CandidateGroup], config: RestEmConfig | GroupRelativeConfig) -> Selection:
    """Return what to learn from under `config`."""
    if isinstance(config, RestEmConfig):
        return rest_em(groups, keep=config.keep, require_gain=config.require_gain)
    return group_relative(groups, normalize=config.normalize)


def rest_em(groups: Sequence[CandidateGroup], *, keep: int = 1, require_gain: bool = True) -> Selection:
    """Return the `keep` best completions of each group with weight 1 (ReST-EM, arXiv 2312.06585).

    Of equal rewards the one sampled first wins. The same tokens are kept once only, so with `keep` above 1 a repeated
    completion does not count double.

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


def group_relative(groups: Sequence[CandidateGroup], *, normalize: Literal["none", "batch"] = "batch") -> Selection:
    """Return every rewarded completion with its leave-one-out advantage as weight.

    Advantages are never divided by their own group's standard deviation: that would blow up groups that differ by
    noise alone (arXiv 2503.20783). With `normalize="batch"` all are divided by one number, the root mean square
    of the batch's advantages (their mean is 0), which keeps the step size apart from the scale of the rewards.

    Args:
        groups: One for each prompt of the round, ids unique.
        normalize: `none` or `batch`.
    """
    rows: list[WeightedExample] = []
    left_out: dict[str, LeftOut] = {}
    for group in groups:
        rewards = [candidate.reward for candidate in group.candidates]
        known = sum(reward is not None for reward in rewards)
        if known < 2:
            left_out[group.id] = LeftOut.TOO_FEW_REWARDS if known else LeftOut.NO_REWARDS
        elif not has_spread(rewards):
            left_out[group.id] = LeftOut.ZERO_SPREAD
        else:
            rows.extend(_with_advantages(group, leave_one_out_advantages(rewards)))
    scale = 1.0
    if normalize == "batch" and rows:
        scale = math.sqrt(math.fsum(row.weight**2 for row in rows) / len(rows))
    examples = tuple(WeightedExample(row.prompt, row.token_ids, row.weight / scale, row.group_id) for row in rows)
    return Selection(examples=examples, left_out=left_out)


def _with_advantages(group: CandidateGroup, advantages: Sequence[float | None]) -> Iterator[WeightedExample]:
    for candidate, advantage in zip(group.candidates, advantages, strict=True):
        if advantage is not None:
            yield WeightedExample(group.prompt, candidate.token_ids, advantage, group.id)
