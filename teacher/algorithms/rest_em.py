"""ReST-EM (arXiv 2312.06585): maximize the likelihood of each group's best completions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from teacher.algorithms.algorithm import Algorithm, CompletionGroup, LeftOut, Selection, TokenTerms, WeightedExample

if TYPE_CHECKING:
    from torch import Tensor


class RestEmConfig(Algorithm):
    """ReST-EM (arXiv 2312.06585; SEAL's choice): imitate each group's best completions."""

    min_samples: ClassVar[int] = 1

    algorithm: Literal["rest_em"] = "rest_em"
    keep: int = Field(default=1, ge=1, le=64)
    """Best completions kept per group, in [1, 64]."""
    require_gain: bool = True
    """Keep only completions whose reward exceeds that of the student without an update."""

    def max_examples(self, samples: int) -> int:
        """Return the maximum number of examples from `samples` completions of one document."""
        return min(self.keep, samples)

    def select(self, groups: Sequence[CompletionGroup]) -> Selection:
        """Return the `keep` best completions of each group, best first, with weight 1.

        Equivalent to expectation-maximization of a binary reward, 1 for the completions kept. Ties go to the one
        sampled first; duplicates are kept once.
        """
        examples: list[WeightedExample] = []
        left_out: dict[str, LeftOut] = {}
        for group in groups:
            known = [(c.reward, c.token_ids) for c in group.completions if c.reward is not None]
            floor = group.base_reward if self.require_gain else -math.inf
            if not known:
                left_out[group.id] = LeftOut.NO_REWARDS
            elif floor is None:
                left_out[group.id] = LeftOut.NO_BASE_REWARD
            else:
                gained = sorted((pair for pair in known if pair[0] > floor), key=lambda pair: pair[0], reverse=True)
                best = list(dict.fromkeys(token_ids for _, token_ids in gained))[: self.keep]
                examples += [WeightedExample(group.prompt, token_ids, 1.0, group.id) for token_ids in best]
                if not best:
                    left_out[group.id] = LeftOut.NO_GAIN
        return Selection(tuple(examples), left_out)

    def objective(self, terms: TokenTerms) -> tuple[Tensor, Tensor]:
        """Return w log p of each token; nothing is clipped."""
        return terms.weights_NT * terms.log_probs_NT, terms.log_probs_NT.new_zeros(terms.log_probs_NT.shape)

    def normalizer(self, minibatch: Sequence[WeightedExample]) -> float:
        """Return the number of tokens."""
        return sum(len(row.token_ids) for row in minibatch)
