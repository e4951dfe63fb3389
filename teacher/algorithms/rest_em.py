"""ReST-EM (arXiv 2312.06585): maximize the likelihood of each group's best completions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from teacher.algorithms.algorithm import Algorithm, CandidateGroup, LeftOut, Selection, WeightedExample

if TYPE_CHECKING:
    from torch import Tensor

    from teacher.algorithms.step import Row, TokenTerms


class RestEmConfig(Algorithm):
    """ReST-EM (arXiv 2312.06585; SEAL's choice): imitate each group's best completions."""

    least_samples: ClassVar[int] = 1

    algorithm: Literal["rest_em"] = "rest_em"
    keep: int = Field(default=1, ge=1, le=64)
    """Best completions kept of each group, in [1, 64]."""
    require_gain: bool = True
    """Keep only completions whose reward is above that of the student without an update."""

    def kept_of(self, samples: int) -> int:
        """Return the most examples of one document that are learned from."""
        return min(self.keep, samples)

    def select(self, groups: Sequence[CandidateGroup]) -> Selection:
        """Return the `keep` best completions of each group, best first, with weight 1.

        The step is then expectation-maximization for the expected reward, where the reward is 1 for those kept and else
        0. Of equal rewards the one sampled first wins. Equal completions are kept once.
        """
        examples: list[WeightedExample] = []
        left_out: dict[str, LeftOut] = {}
        for group in groups:
            known = [(candidate.reward, candidate) for candidate in group.candidates if candidate.reward is not None]
            if not known:
                left_out[group.id] = LeftOut.NO_REWARDS
            elif self.require_gain and group.base_reward is None:
                left_out[group.id] = LeftOut.NO_BASE_REWARD
            else:
                floor = group.base_reward if self.require_gain and group.base_reward is not None else -math.inf
                gained = [pair for pair in known if pair[0] > floor]
                gained.sort(key=lambda pair: pair[0], reverse=True)
                best = list(dict.fromkeys(candidate.token_ids for _, candidate in gained))[: self.keep]
                examples += [WeightedExample(group.prompt, token_ids, 1.0, group.id) for token_ids in best]
                if not best:
                    left_out[group.id] = LeftOut.NO_GAIN
        return Selection(tuple(examples), left_out)

    def objective(self, terms: TokenTerms) -> tuple[Tensor, Tensor]:
        """Return w log p of each token; nothing is clipped."""
        return terms.weights_NT * terms.log_probs_NT, terms.log_probs_NT.new_zeros(terms.log_probs_NT.shape)

    def normalizer(self, minibatch: Sequence[Row]) -> float:
        """Return the number of tokens."""
        return sum(len(row.token_ids) for row in minibatch)
