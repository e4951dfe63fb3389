"""Learning algorithms: the interface (docs/extending.md), and the shared step on weighted log-likelihoods.

The KL divergence from the reference (`TeacherPolicy.reference`) is the exact one between the next-token distributions,
KL(policy || reference): it has no sampling noise, and the usual low-variance estimator (k3) has a wrong expected
gradient as a loss (arXiv 2506.09477).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from pydantic import BaseModel, Field

from evaluation.common.data import Frozen
from evaluation.common.errors import InputError
from evaluation.exact_match import context_length
from teacher.algorithms.passes import Batch, Passes, Row
from teacher.prompts import prompt_token_ids
from teacher.rewards import LineGains

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from teacher.policy import TeacherPolicy

MAX_GRADIENT_NORM = 1.0
"""Euclidean norm to which gradients are clipped."""


@dataclass(frozen=True, slots=True)
class CompletionReward:
    """A sampled completion with its reward."""

    token_ids: tuple[int, ...]
    """All sampled tokens, including the end token if there is one."""
    reward: float | None
    """None excludes it from training."""
    lines: LineGains | None = None


@dataclass(frozen=True, slots=True)
class CompletionGroup:
    """All completions sampled for one prompt, in sampling order."""

    id: str
    prompt: str
    completions: tuple[CompletionReward, ...]
    base_reward: float | None = None
    """Reward of the student without an update; None when not measured."""


@dataclass(frozen=True, slots=True)
class WeightedExample:
    """A completion to reinforce (weight above 0) or to suppress (below 0)."""

    prompt: str
    token_ids: tuple[int, ...]
    weight: float
    group_id: str
    token_weights: tuple[float, ...] = ()
    """Added to the weight, one per token; empty for none."""


class LeftOut(StrEnum):
    """Reason why a group contributes no training examples."""

    NO_REWARDS = "no_rewards"
    TOO_FEW_REWARDS = "too_few_rewards"
    """Only one completion has a reward, which leaves no baseline."""
    ZERO_SPREAD = "zero_spread"
    NO_GAIN = "no_gain"
    """No reward exceeds that of the student without an update."""
    NO_BASE_REWARD = "no_base_reward"
    """A gain is required, and the student without an update was not scored."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Training examples of a round."""

    examples: tuple[WeightedExample, ...]
    """In the order of the groups."""
    left_out: Mapping[str, LeftOut]
    """Ids of the groups without examples, with the reason."""


class TokenTerms(NamedTuple):
    """Per-token inputs of an objective, each (N, T)."""

    log_probs_NT: Tensor
    """Of the policy, with gradient."""
    old_log_probs_NT: Tensor
    """Before the round's first step; 0 if the algorithm does not use them."""
    weights_NT: Tensor
    """Weight of the example plus that of the token."""
    kl_NT: Tensor
    """KL divergence from the reference in nats, with gradient."""


class Algorithm(Frozen):
    """Configuration of an algorithm, with its selection of examples and its objective as methods.

    Each optimizer step maximizes `objective`, summed over a minibatch's completion tokens and divided by `normalizer`.
    """

    uses_old_policy: ClassVar[bool] = False
    """Whether the objective needs the log-probabilities before the round's first step."""
    min_samples: ClassVar[int] = 2
    """Samples required per document; 2 where completions are compared."""

    algorithm: str
    """Selects the algorithm."""
    learning_rate: float = Field(default=7e-4, gt=0.0, le=0.1)
    """Step size of AdamW, constant, in (0, 0.1]."""
    epochs: int = Field(default=1, ge=1, le=100)
    """Passes over the examples of a round, in [1, 100]."""
    minibatch_size: int = Field(default=32, ge=1, le=65_536)
    """Examples per optimizer step, in [1, 65536]; drawn at random."""
    micro_batch_size: int = Field(default=8, ge=1, le=65_536)
    """Examples per forward pass, in [1, 65536]; bounds memory through gradient accumulation."""

    @property
    def assigns_credit_by_line(self) -> bool:
        """Whether `select` reads `CompletionReward.lines`."""
        return False

    def max_examples(self, samples: int) -> int:
        """Return the maximum number of examples from `samples` completions of one document."""
        return samples

    @abstractmethod
    def select(self, groups: Sequence[CompletionGroup]) -> Selection:
        """Return the weighted training examples of a round, given groups with unique ids."""

    @abstractmethod
    def objective(self, terms: TokenTerms) -> tuple[Tensor, Tensor]:
        """Return the objective per token (N, T), with gradient, and 1 where it was clipped, else 0 (N, T)."""

    @abstractmethod
    def normalizer(self, minibatch: Sequence[WeightedExample]) -> float:
        """Return the divisor of a minibatch's summed objective."""


class LearningReport(BaseModel, frozen=True):
    """Token-weighted means over optimizer steps, of the policy before each step; None without a step."""

    examples: int = 0
    tokens: int = 0
    """Completion tokens over all epochs."""
    loss: float | None = None
    """The negated objective."""
    kl: float | None = None
    """KL divergence from the reference, nats per token, at least 0."""
    entropy: float | None = None
    """Of the next-token distribution, nats per token."""
    clip_fraction: float | None = None
    """Share of tokens clipped, and so without gradient, in [0, 1]."""
    gradient_norm: float | None = None
    """Euclidean norm before clipping."""
    skipped_steps: int = 0
    """Steps not applied because loss or gradient was not finite."""


def learn(
    policy: TeacherPolicy,
    examples: Sequence[WeightedExample],
    config: Algorithm,
    seed: int,
    *,
    shared: bool | None = None,
) -> LearningReport:
    """Train the policy's adapter on weighted examples in place, continuing its optimizer state.

    Deterministic given policy, examples and `seed`, which shuffles the examples. Without examples nothing changes.
    `shared` is whether the completions of a prompt share a pass over it where the model can do that, which changes
    roundings alone; None is in large models.

    Raises:
        InputError: An example has no token, exceeds the model's context, or has a non-finite weight.
    """
    import torch

    rows = _tokenized(policy, examples)
    if not rows:
        return LearningReport()
    passes = Passes(policy, shared)
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(rows), generator=generator).tolist() for _ in range(config.epochs)]
    if config.uses_old_policy:
        # The first step's own pass comes before any step.
        later = [rows[i] for i in orders[0][config.minibatch_size :]] if passes.large else rows
        for batch in passes.batches(later, config.micro_batch_size):
            batch.keep(passes.log_probs(batch))
    parameters = policy.adapter_parameters()
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.0)
    if policy.optimizer_state is not None:
        optimizer.load_state_dict(policy.optimizer_state)
        optimizer.param_groups[0]["lr"] = config.learning_rate
    steps: list[LearningReport] = []
    for order in orders:
        for start in range(0, len(rows), config.minibatch_size):
            minibatch = [rows[i] for i in order[start : start + config.minibatch_size]]
            steps.append(_step(passes, parameters, minibatch, config, optimizer))
    policy.optimizer_state = optimizer.state_dict()
    return _report(steps, len(rows))


def mean_loss(policy: TeacherPolicy, examples: Sequence[WeightedExample], micro_batch_size: int) -> float:
    """Return the mean of -log p over the tokens of some examples, at least one, in nats; raises as `learn` does."""
    passes, rows = Passes(policy), _tokenized(policy, examples)
    found = [passes.log_probs(batch).sum() for batch in passes.batches(rows, micro_batch_size)]
    return -math.fsum(map(float, found)) / sum(len(row.tokens_T) for row in rows)


def _tokenized(policy: TeacherPolicy, examples: Sequence[WeightedExample]) -> list[Row]:
    import torch

    context = context_length(policy.model) or math.inf
    prompts = {prompt: prompt_token_ids(policy.tokenizer, prompt) for prompt in {e.prompt for e in examples}}
    rows: list[Row] = []
    mistakes: list[str] = []
    for i, example in enumerate(examples):
        where, prompt, tokens = f"example {i} of group {example.group_id!r}", prompts[example.prompt], example.token_ids
        if not tokens or not prompt:
            mistakes.append(f"{where}: the prompt or the completion has no token")
        if len(prompt) + len(tokens) > context:
            mistakes.append(f"{where}: got {len(prompt) + len(tokens)} tokens, the model's context is {context}")
        if not math.isfinite(math.fsum((example.weight, *example.token_weights))):
            mistakes.append(f"{where}: got the weight {example.weight!r}, allowed is a finite number")
        none_T = torch.zeros(len(tokens))
        added_T = torch.tensor(example.token_weights) if example.token_weights else none_T
        weights_T = torch.tensor(example.weight) + added_T
        rows.append(Row(example, torch.tensor(prompt), torch.tensor(tokens), weights_T))
    if mistakes:
        raise InputError("teacher learning: leave these examples out or correct them: " + "; ".join(mistakes))
    return rows


def _step(
    passes: Passes,
    parameters: Sequence[torch.nn.Parameter],
    rows: Sequence[Row],
    config: Algorithm,
    optimizer: torch.optim.Optimizer,
) -> LearningReport:
    """Take one optimizer step on a minibatch, with gradient accumulation, and return its own report."""
    import torch

    examples = [row.example for row in rows]
    tokens, normalizer = sum(len(example.token_ids) for example in examples), config.normalizer(examples)
    totals = [0.0] * 4
    optimizer.zero_grad(set_to_none=True)
    for batch in passes.batches(rows, config.micro_batch_size):
        objective, *others = _sums(passes, batch, config)
        torch.autograd.backward([-objective / normalizer], inputs=list(parameters))
        totals = [total + float(s.detach()) for total, s in zip(totals, (objective, *others), strict=True)]
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM))
    value, kl, entropy, clipped = totals
    applied = math.isfinite(norm) and math.isfinite(value)
    if applied:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return LearningReport(
        tokens=tokens,
        loss=-value / normalizer,
        kl=max(kl / tokens, 0.0),  # rounding may leave a tiny negative sum where the policies are equal
        entropy=entropy / tokens,
        clip_fraction=clipped / tokens,
        gradient_norm=norm,
        skipped_steps=int(not applied),
    )


def _sums(passes: Passes, batch: Batch, config: Algorithm) -> Iterator[Tensor]:
    """Yield the sums over a batch's tokens of objective (with gradient), KL divergence, entropy, and clipped terms.

    The KL divergence is computed for every algorithm, whether its objective has it or not: it is how far a report says
    that the policy has moved.
    """
    log_probs_NT, kl_NT, entropy_NT = passes.distributions(batch)
    old_NT = batch.old_log_probs(log_probs_NT) if config.uses_old_policy else log_probs_NT.new_zeros(log_probs_NT.shape)
    objective_NT, clipped_NT = config.objective(TokenTerms(log_probs_NT, old_NT, batch.weights_NT, kl_NT))
    for term_NT in (objective_NT, kl_NT, entropy_NT, clipped_NT):
        yield term_NT[batch.mask_NT].sum()


def _report(steps: Sequence[LearningReport], examples: int) -> LearningReport:
    def mean(name: str) -> float | None:
        finite = [step for step in steps if math.isfinite(getattr(step, name))]
        total = sum(step.tokens for step in finite)
        return math.fsum(getattr(step, name) * step.tokens for step in finite) / total if total else None

    means = {name: mean(name) for name in ("loss", "kl", "entropy", "clip_fraction", "gradient_norm")}
    tokens, skipped = sum(step.tokens for step in steps), sum(step.skipped_steps for step in steps)
    return LearningReport.model_validate({"examples": examples, "tokens": tokens, "skipped_steps": skipped, **means})
