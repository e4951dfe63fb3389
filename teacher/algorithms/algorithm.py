"""What a learning algorithm is: a configuration that selects examples from a round and says how they are learned from.

A new one is a module beside this one with a subclass of `Algorithm`, and a line in `teacher/algorithms/__init__.py`
(docs/extending.md).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from evaluation.common.data import Frozen
from teacher.credit import Earned

if TYPE_CHECKING:
    from torch import Tensor

    from teacher.algorithms.step import Row, TokenTerms


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sampled completion with its reward."""

    token_ids: tuple[int, ...]
    """All sampled tokens, the closing one included when the completion stopped by itself."""
    reward: float | None
    """None when there is none; the completion is then not learned from."""
    earned: Earned | None = None
    """Earnings of its lines, in units of the reward; None where credit is not assigned by line."""


@dataclass(frozen=True, slots=True)
class CandidateGroup:
    """All completions sampled for one prompt, in the order sampled."""

    id: str
    """The document's id."""
    prompt: str
    """The rendered prompt that the completions continue."""
    candidates: tuple[Candidate, ...]
    base_reward: float | None = None
    """Reward of the student without an update; None when it was not measured."""


@dataclass(frozen=True, slots=True)
class WeightedExample:
    """A completion to make more likely (weight above 0) or less likely (below 0)."""

    prompt: str
    token_ids: tuple[int, ...]
    """The completion's tokens, the closing one included when it stopped by itself."""
    weight: float
    group_id: str
    token_weights: tuple[float, ...] = ()
    """Added to the weight, one for each token; empty adds nothing."""


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
    """Group by group in the order given."""
    left_out: Mapping[str, LeftOut]
    """Group ids from which nothing is learned, with the reason."""


class Algorithm(Frozen):
    """Configuration of an algorithm; its methods are its selection and its objective.

    Each optimizer step maximizes the sum of `objective` over the completion tokens of a minibatch, divided by
    `normalizer`.
    """

    uses_old_policy: ClassVar[bool] = False
    """Whether the objective needs the log-probabilities from before the round's first step."""
    least_samples: ClassVar[int] = 2
    """Samples of a document that it needs: 2 where it compares them."""

    algorithm: str
    """Selects the algorithm."""
    learning_rate: float = Field(default=7e-4, gt=0.0, le=0.1)
    """Step size of AdamW, constant, in (0, 0.1]."""
    epochs: int = Field(default=1, ge=1, le=100)
    """Passes over the examples of a round, in [1, 100]."""
    minibatch_size: int = Field(default=32, ge=1, le=65_536)
    """Examples in one optimizer step, in [1, 65536]; drawn at random."""
    micro_batch_size: int = Field(default=8, ge=1, le=65_536)
    """Rows in one forward pass, in [1, 65536]; bounds memory. A minibatch is cut by length, and gradients add up."""

    @property
    def assigns_credit_by_line(self) -> bool:
        """Whether `select` reads `Candidate.earned`."""
        return False

    def kept_of(self, samples: int) -> int:
        """Return the most examples of one document that are learned from."""
        return samples

    @abstractmethod
    def select(self, groups: Sequence[CandidateGroup]) -> Selection:
        """Return which completions of a round to learn from, and with what weight.

        Args:
            groups: One for each prompt of the round, ids unique.
        """

    @abstractmethod
    def objective(self, terms: TokenTerms) -> tuple[Tensor, Tensor]:
        """Return the objective of each token (N, T), with gradient, and 1 where its term was clipped, else 0 (N, T)."""

    @abstractmethod
    def normalizer(self, minibatch: Sequence[Row]) -> float:
        """Return what the sum over a minibatch's tokens is divided by."""


class LearningReport(BaseModel):
    """A round of learning. Means are over optimizer steps, weighted by tokens; None without a step.

    All figures are of the policy before each step.
    """

    model_config = ConfigDict(frozen=True)

    examples: int = 0
    """Different examples learned from."""
    tokens: int = 0
    """Completion tokens over all epochs."""
    loss: float | None = None
    """The negated objective."""
    kl: float | None = None
    """Divergence from the base teacher, nats per token, at least 0."""
    entropy: float | None = None
    """Of the next-token distribution, nats per token."""
    clip_fraction: float | None = None
    """Share of tokens whose term was clipped and carries no gradient, in [0, 1]."""
    gradient_norm: float | None = None
    """Euclidean norm before clipping."""
    skipped_steps: int = 0
    """Steps that were not applied because loss or gradient was not finite."""
