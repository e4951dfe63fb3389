"""Group-relative policy gradient (GRPO, arXiv 2402.03300) with the leave-one-out baseline of arXiv 2402.14740."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from teacher.algorithms.algorithm import Algorithm, CompletionGroup, LeftOut, Selection, TokenTerms, WeightedExample
from teacher.rewards import has_spread, leave_one_out_advantages, line_advantages

if TYPE_CHECKING:
    from torch import Tensor


LENGTH_NORMALIZER = 128
"""Divisor of every completion's sum over tokens. A divisor by length would penalize long bad completions less per token
(Dr. GRPO, arXiv 2503.20783, section 3.2); Adam's steps hardly depend on a constant one."""
CLIP = 0.2
"""The importance ratio is clipped to [1 - CLIP, 1 + CLIP] (arXiv 1707.06347)."""


class GroupRelativeConfig(Algorithm):
    """Group-relative policy gradient: reinforce completions above the other rewards of their group, suppress others.

    Advantages are not divided by their group's standard deviation, which would give groups of pure noise the same
    weight (Dr. GRPO, arXiv 2503.20783). Log-probabilities are those at temperature 1 over the whole vocabulary, so the
    update is on-policy for sampling with temperature 1 and top_p 1.
    """

    uses_old_policy: ClassVar[bool] = True

    algorithm: Literal["grpo"] = "grpo"
    line_credit: float = Field(default=0.0, ge=0.0, le=10.0)
    """Weight of the line's credit (`teacher.rewards`) in the advantages of its tokens, in [0, 10]; 0 disables it."""
    kl_coefficient: float = Field(default=0.01, ge=0.0, le=10.0)
    """Weight of the KL divergence from where the rounds begin, per token (nats), in [0, 10]; 0 disables it."""

    @property
    def assigns_credit_by_line(self) -> bool:
        """Whether `select` reads `CompletionReward.lines`."""
        return self.line_credit > 0.0

    def select(self, groups: Sequence[CompletionGroup]) -> Selection:
        """Return every rewarded completion, weighted by its leave-one-out advantage.

        Advantages are divided by their root mean square over all completions, for any scale of reward.
        """
        left_out = {group.id: reason for group in groups if (reason := _incomparable(group)) is not None}
        rows = [row for group in groups if group.id not in left_out for row in self._with_advantages(group)]
        scale = 1.0
        if rows:
            squares = ([(row.weight + more) ** 2 for more in row.token_weights or (0.0,)] for row in rows)
            scale = math.sqrt(fmean(map(fmean, squares))) or 1.0
        scaled = (
            replace(row, weight=row.weight / scale, token_weights=tuple(w / scale for w in row.token_weights))
            for row in rows
        )
        return Selection(tuple(scaled), left_out)

    def objective(self, terms: TokenTerms) -> tuple[Tensor, Tensor]:
        """Return the clipped surrogate, min(r A, clip(r) A) (arXiv 1707.06347, equation 7), minus the KL penalty."""
        ratio_NT = (terms.log_probs_NT - terms.old_log_probs_NT).exp()
        free_NT = ratio_NT * terms.weights_NT
        bound_NT = ratio_NT.clamp(1.0 - CLIP, 1.0 + CLIP) * terms.weights_NT
        return free_NT.minimum(bound_NT) - self.kl_coefficient * terms.kl_NT, (bound_NT < free_NT).float()

    def normalizer(self, minibatch: Sequence[WeightedExample]) -> float:
        """Return the number of completions times `LENGTH_NORMALIZER`."""
        return len(minibatch) * LENGTH_NORMALIZER

    def _with_advantages(self, group: CompletionGroup) -> Iterator[WeightedExample]:
        advantages = leave_one_out_advantages([completion.reward for completion in group.completions])
        rewarded = [(c, a) for c, a in zip(group.completions, advantages, strict=True) if a is not None]
        gains = [() if c.lines is None or not self.line_credit else c.lines.gains for c, _ in rewarded]
        for (completion, advantage), credits in zip(rewarded, line_advantages(gains), strict=True):
            token_lines = completion.lines.token_lines if completion.lines is not None and credits else ()
            weights = tuple(0.0 if line is None else self.line_credit * credits[line] for line in token_lines)
            yield WeightedExample(group.prompt, completion.token_ids, advantage, group.id, token_weights=weights)


def _incomparable(group: CompletionGroup) -> LeftOut | None:
    """Return why the rewards of a group cannot be compared; None if they can."""
    rewards = [completion.reward for completion in group.completions]
    known = sum(reward is not None for reward in rewards)
    if known < 2:
        return LeftOut.TOO_FEW_REWARDS if known else LeftOut.NO_REWARDS
    return None if has_spread(rewards) else LeftOut.ZERO_SPREAD
