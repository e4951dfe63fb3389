"""Group-relative policy gradient (GRPO, arXiv 2402.03300) with the leave-one-out baseline of arXiv 2402.14740."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from teacher.algorithms.algorithm import Algorithm, CandidateGroup, LeftOut, Selection, WeightedExample
from teacher.credit import relative_to_others
from teacher.rewards import has_spread, leave_one_out_advantages

if TYPE_CHECKING:
    from torch import Tensor

    from teacher.algorithms.step import Row, TokenTerms


class GroupRelativeConfig(Algorithm):
    """Group-relative policy gradient: raise completions above their group's others, lower those below.

    No advantage is divided by its group's standard deviation, which would weigh groups of mere noise like the others
    (Dr. GRPO, arXiv 2503.20783). Log-probabilities are those of the model at temperature 1 and over all tokens, so
    sample with temperature 1 and top_p 1 for the update to be on-policy.
    """

    uses_old_policy: ClassVar[bool] = True

    algorithm: Literal["grpo"] = "grpo"
    normalize: Literal["none", "batch"] = "none"
    """`batch` divides all advantages by their root mean square over the batch; `none` leaves them."""
    line_credit: float = Field(default=0.0, ge=0.0, le=10.0)
    """Weight of the credit of single lines in their tokens' advantages, in [0, 10] (`teacher.credit`); 0 gives all
    tokens of a self-edit the same advantage."""
    clip: float = Field(default=0.2, ge=0.0, lt=1.0)
    """The importance ratio is clipped to [1 - clip, 1 + clip], in [0, 1) (arXiv 1707.06347)."""
    kl_coefficient: float = Field(default=0.01, ge=0.0, le=10.0)
    """Weight of the divergence from the base teacher per token (nats), in [0, 10]; 0 turns it off."""
    length_normalizer: int = Field(default=128, ge=1, le=32_768)
    """Tokens by which every completion's sum is divided whatever its length, in [1, 32768]: a constant, so that long
    bad completions are not punished less for each token (Dr. GRPO, arXiv 2503.20783, section 3.2)."""

    @property
    def assigns_credit_by_line(self) -> bool:
        """Whether `select` reads `Candidate.earned`."""
        return self.line_credit > 0.0

    def select(self, groups: Sequence[CandidateGroup]) -> Selection:
        """Return every rewarded completion, as sampled, with its leave-one-out advantage as weight.

        With `normalize: batch` all advantages are divided by one number, the root mean square of the batch (their mean
        is 0), which makes the step size independent of the scale of rewards; each completion counts once, whatever its
        length. With `line_credit`, tokens have the credit of their line on top.
        """
        rows: list[WeightedExample] = []
        left_out: dict[str, LeftOut] = {}
        for group in groups:
            reason = _incomparable(group)
            if reason is None:
                rows.extend(self._with_advantages(group))
            else:
                left_out[group.id] = reason
        scale = 1.0
        if self.normalize == "batch" and rows:
            scale = math.sqrt(math.fsum(_mean_square(row) for row in rows) / len(rows)) or 1.0
        scaled = (
            replace(row, weight=row.weight / scale, token_weights=tuple(w / scale for w in row.token_weights))
            for row in rows
        )
        return Selection(tuple(scaled), left_out)

    def objective(self, terms: TokenTerms) -> tuple[Tensor, Tensor]:
        """Return the clipped surrogate less the divergence from the base.

        The surrogate is min(r A, clip(r) A) (arXiv 1707.06347, equation 7), r the ratio to the policy before the
        round's first step.
        """
        ratio_NT = (terms.log_probs_NT - terms.old_NT).exp()
        free_NT = ratio_NT * terms.weights_NT
        bound_NT = ratio_NT.clamp(1.0 - self.clip, 1.0 + self.clip) * terms.weights_NT
        return free_NT.minimum(bound_NT) - self.kl_coefficient * terms.kl_NT, (bound_NT < free_NT).float()

    def normalizer(self, minibatch: Sequence[Row]) -> float:
        """Return the number of completions times `length_normalizer`."""
        return len(minibatch) * self.length_normalizer

    def _with_advantages(self, group: CandidateGroup) -> Iterator[WeightedExample]:
        advantages = leave_one_out_advantages([candidate.reward for candidate in group.candidates])
        rewarded = [(c, a) for c, a in zip(group.candidates, advantages, strict=True) if a is not None]
        earned = [() if c.earned is None or not self.line_credit else c.earned.by_line for c, _ in rewarded]
        for (candidate, advantage), credits in zip(rewarded, relative_to_others(earned), strict=True):
            places = candidate.earned.of_tokens if candidate.earned is not None and credits else ()
            weights = tuple(0.0 if place is None else self.line_credit * credits[place] for place in places)
            yield WeightedExample(group.prompt, candidate.token_ids, advantage, group.id, token_weights=weights)


def _incomparable(group: CandidateGroup) -> LeftOut | None:
    """Return why the rewards of a group cannot be compared; None where they can."""
    rewards = [candidate.reward for candidate in group.candidates]
    known = sum(reward is not None for reward in rewards)
    if known < 2:
        return LeftOut.TOO_FEW_REWARDS if known else LeftOut.NO_REWARDS
    return None if has_spread(rewards) else LeftOut.ZERO_SPREAD


def _mean_square(row: WeightedExample) -> float:
    """Return the mean over tokens of the squared weight."""
    if not row.token_weights:
        return row.weight**2
    return math.fsum((row.weight + more) ** 2 for more in row.token_weights) / len(row.token_weights)
