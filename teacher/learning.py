"""The teacher's learning step: one weighted log-likelihood step for imitation and for policy gradients.

Both ways maximize a sum over completion tokens. For ReST-EM a token's term is w log p, divided by the number of tokens:
plain weighted maximum likelihood. For the group-relative way it is PPO's clipped surrogate min(r A, clip(r) A), with
r the ratio to the log-probabilities before the round's first step, minus the divergence from the base teacher,
divided by the number of completions and by a constant number of tokens (Dr. GRPO, arXiv 2503.20783).

The divergence is the exact one of the two next-token distributions, KL(policy || base) summed over the vocabulary at
each sampled position, not an estimate from the sampled token alone: the full distribution is at hand anyway, it has no
sampling noise, and it is differentiated as what it is, whereas the usual low-variance estimator (k3) has the wrong
gradient in expectation when used as a loss (arXiv 2506.09477).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from evaluation.errors import InputError
from teacher.config import GroupRelativeConfig, RestEmConfig
from teacher.policy import TeacherPolicy
from teacher.prompts import prompt_token_ids
from teacher.selection import WeightedExample


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one optimizer step saw, measured before it changed the weights."""

    loss: float
    """The negated objective."""
    kl: float
    """Divergence from the base teacher, nats per token, at least 0."""
    entropy: float
    """Of the next-token distribution, nats per token."""
    clip_fraction: float
    """Share of tokens whose term was clipped and carries no gradient, in [0, 1]; 0 for ReST-EM."""
    gradient_norm: float
    """Euclidean norm before clipping."""
    examples: int
    tokens: int
    """Completion tokens, those that carry loss."""
    applied: bool
    """False when loss or gradient was not finite; the weights then stayed as they were."""


@dataclass(frozen=True, slots=True)
class LearningReport:
    """What a round of learning did; its numbers are means over the steps, weighted by tokens, None without a step."""

    steps: tuple[StepReport, ...]
    examples: int
    """Different examples learned from."""
    tokens: int
    """Completion tokens over all epochs."""

    @property
    def loss(self) -> float | None:
        """Mean loss."""
        return self._mean("loss")

    @property
    def kl(self) -> float | None:
        """Mean divergence from the base teacher, nats per token."""
        return self._mean("kl")

    @property
    def entropy(self) -> float | None:
        """Mean entropy, nats per token."""
        return self._mean("entropy")

    @property
    def clip_fraction(self) -> float | None:
        """Mean share of clipped tokens, in [0, 1]."""
        return self._mean("clip_fraction")

    @property
    def gradient_norm(self) -> float | None:
        """Mean gradient norm before clipping."""
        return self._mean("gradient_norm")

    @property
    def skipped_steps(self) -> int:
        """Steps that were not applied because a number was not finite."""
        return sum(not step.applied for step in self.steps)

    def _mean(self, name: str) -> float | None:
        finite = [step for step in self.steps if math.isfinite(getattr(step, name))]
        total = sum(step.tokens for step in finite)
        return math.fsum(getattr(step, name) * step.tokens for step in finite) / total if total else None


@dataclass(frozen=True, slots=True)
class _Row:
    """A tokenized example."""

    prompt_ids: list[int]
    token_ids: tuple[int, ...]
    weight: float
    old_log_probs: Tensor | None = None
    """Log-probabilities of the tokens (T,) before the round's first step; None where no ratio is needed."""


def learn(
    policy: TeacherPolicy, examples: Sequence[WeightedExample], config: RestEmConfig | GroupRelativeConfig, seed: int
) -> LearningReport:
    """Change the policy's adapter so that its weighted examples become likelier or less likely.

    The optimizer's state is taken from the policy and left in it. Deterministic given policy, examples and seed.

    Args:
        policy: Changed in place.
        examples: Of one round; with none, nothing changes.
        config: Which objective, and how to optimize it.
        seed: Of the order of the examples, and of the fresh adapter when ReST-EM restarts.

    Raises:
        InputError: An example has no token, does not fit the model's context, or has a weight that is not allowed.
    """
    rows = _tokenized(policy, examples, config)
    if isinstance(config, RestEmConfig) and config.restart:
        policy.reset(seed)
    if not rows:
        return LearningReport(steps=(), examples=0, tokens=0)
    if isinstance(config, GroupRelativeConfig):
        rows = _with_old_log_probs(policy, rows, config.micro_batch_size)
    parameters = policy.adapter_parameters()
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    if policy.optimizer_state is not None:
        optimizer.load_state_dict(policy.optimizer_state)
        for group in optimizer.param_groups:
            group.update(lr=config.learning_rate, weight_decay=config.weight_decay)
    generator = torch.Generator().manual_seed(seed)
    steps: list[StepReport] = []
    for _ in range(config.epochs):
        order = torch.randperm(len(rows), generator=generator).tolist()
        for start in range(0, len(rows), config.minibatch_size):
            minibatch = [rows[i] for i in order[start : start + config.minibatch_size]]
            steps.append(_step(policy, minibatch, config, optimizer))
    policy.optimizer_state = optimizer.state_dict()
    return LearningReport(steps=tuple(steps), examples=len(rows), tokens=sum(step.tokens for step in steps))


def log_likelihoods(
    policy: TeacherPolicy, examples: Sequence[WeightedExample], *, micro_batch_size: int = 8
) -> list[float]:
    """Return the log-probability of each example's completion given its prompt, in nats; weights do not matter.

    Raises:
        InputError: An example has no token or does not fit the model's context.
    """
    rows = _tokenized(policy, examples, None)
    with_old = _with_old_log_probs(policy, rows, micro_batch_size)
    return [float(row.old_log_probs.double().sum()) for row in with_old if row.old_log_probs is not None]


def _tokenized(
    policy: TeacherPolicy, examples: Sequence[WeightedExample], config: RestEmConfig | GroupRelativeConfig | None
) -> list[_Row]:
    """Return the examples as token ids, checked."""
    context = getattr(policy.model.config, "max_position_embeddings", None) or math.inf
    prompts = {prompt: prompt_token_ids(policy.tokenizer, prompt) for prompt in {e.prompt for e in examples}}
    rows = [_Row(prompts[e.prompt], e.token_ids, e.weight) for e in examples]
    mistakes: list[str] = []
    for i, (example, row) in enumerate(zip(examples, rows, strict=True)):
        where, length = f"example {i} of group {example.group_id!r}", len(row.prompt_ids) + len(row.token_ids)
        if not row.token_ids or not row.prompt_ids:
            mistakes.append(f"{where}: the prompt or the completion has no token")
        if length > context:
            mistakes.append(f"{where}: got {length} tokens, the model takes {context}")
        if not math.isfinite(row.weight) or (isinstance(config, RestEmConfig) and row.weight < 0):
            allowed = "a finite number of at least 0" if isinstance(config, RestEmConfig) else "a finite number"
            mistakes.append(f"{where}: got the weight {row.weight!r}, allowed is {allowed}")
    if mistakes:
        raise InputError("teacher learning: leave these examples out or mend them: " + "; ".join(mistakes))
    return rows


class _Batch:
    """Rows as tensors: prompts padded on the left and completions on the right, so that completions start together."""

    def __init__(self, rows: Sequence[_Row], device: torch.device) -> None:
        prompt_width = max(len(row.prompt_ids) for row in rows)
        width = max(len(row.token_ids) for row in rows)
        ids_NL = torch.zeros(len(rows), prompt_width + width, dtype=torch.long)
        attention_NL = torch.zeros_like(ids_NL)
        old_NT = torch.zeros(len(rows), width)
        for i, row in enumerate(rows):
            first, last = prompt_width - len(row.prompt_ids), prompt_width + len(row.token_ids)
            ids_NL[i, first:last] = torch.tensor([*row.prompt_ids, *row.token_ids])
            attention_NL[i, first:last] = 1
            if row.old_log_probs is not None:
                old_NT[i, : len(row.token_ids)] = row.old_log_probs
        self._inputs = {
            "input_ids": ids_NL.to(device),
            "attention_mask": attention_NL.to(device),
            "position_ids": (attention_NL.cumsum(1) - 1).clamp_(min=0).to(device),
        }
        self.tokens_NT = ids_NL[:, prompt_width:].to(device)
        """Completion tokens (N, T)."""
        self.mask_NT = attention_NL[:, prompt_width:].bool().to(device)
        """True where there is a completion token (N, T); only these carry loss."""
        self.old_NT = old_NT.to(device)
        """Log-probabilities of the tokens before the round's first step (N, T)."""
        self.weights_N1 = torch.tensor([[row.weight] for row in rows], device=device)
        """Weights (N, 1)."""

    def log_probs(self, policy: TeacherPolicy) -> Tensor:
        """Return the log-probabilities of all tokens at each completion position (N, T, V), in float32."""
        width = self.tokens_NT.shape[1]
        logits_NTV = policy.model(**self._inputs, use_cache=False, logits_to_keep=width + 1).logits[:, :-1]
        return torch.log_softmax(logits_NTV.float(), dim=-1)

    def of_tokens(self, log_probs_NTV: Tensor) -> Tensor:
        """Return the log-probabilities of the completion tokens (N, T)."""
        return log_probs_NTV.gather(-1, self.tokens_NT[..., None])[..., 0]


class _Terms(NamedTuple):
    """What each completion token contributes, all (N, T); padding holds numbers without meaning."""

    objective_NT: Tensor
    kl_NT: Tensor
    entropy_NT: Tensor
    clipped_NT: Tensor


def _terms(
    batch: _Batch, log_probs_NTV: Tensor, reference_NTV: Tensor, config: RestEmConfig | GroupRelativeConfig
) -> _Terms:
    """Return the objective's terms and the diagnostics of a batch."""
    probs_NTV = log_probs_NTV.exp()
    kl_NT = (probs_NTV * (log_probs_NTV - reference_NTV)).sum(-1)
    entropy_NT = -(probs_NTV * log_probs_NTV).sum(-1)
    new_NT, weights_N1 = batch.of_tokens(log_probs_NTV), batch.weights_N1
    if isinstance(config, RestEmConfig):
        objective_NT, clipped_NT = weights_N1 * new_NT, torch.zeros_like(new_NT)
    else:
        ratio_NT = (new_NT - batch.old_NT).exp()
        free_NT = ratio_NT * weights_N1
        bound_NT = ratio_NT.clamp(1.0 - config.clip_low, 1.0 + config.clip_high) * weights_N1
        objective_NT = torch.minimum(free_NT, bound_NT) - config.kl_coefficient * kl_NT
        clipped_NT = (bound_NT < free_NT).float()
    return _Terms(objective_NT + config.entropy_bonus * entropy_NT, kl_NT, entropy_NT, clipped_NT)


def _step(
    policy: TeacherPolicy,
    minibatch: Sequence[_Row],
    config: RestEmConfig | GroupRelativeConfig,
    optimizer: torch.optim.Optimizer,
) -> StepReport:
    """Take one optimizer step on a minibatch, a few rows at a time, and return what it saw."""
    parameters = policy.adapter_parameters()
    tokens = sum(len(row.token_ids) for row in minibatch)
    normalizer = len(minibatch) * config.length_normalizer if isinstance(config, GroupRelativeConfig) else tokens
    totals = [0.0] * 4
    optimizer.zero_grad(set_to_none=True)
    for rows in _by_length(minibatch, config.micro_batch_size):
        batch = _Batch(rows, policy.device)
        with torch.no_grad(), policy.reference():
            reference_NTV = batch.log_probs(policy)
        terms = _terms(batch, batch.log_probs(policy), reference_NTV, config)
        sums = [term_NT[batch.mask_NT].sum() for term_NT in terms]
        torch.autograd.backward([-sums[0] / normalizer], inputs=parameters)
        totals = [total + float(part.detach()) for total, part in zip(totals, sums, strict=True)]
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.max_gradient_norm))
    objective, kl, entropy, clipped = totals
    applied = math.isfinite(norm) and math.isfinite(objective)
    if applied:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepReport(
        loss=-objective / normalizer,
        kl=max(kl / tokens, 0.0),  # rounding may leave a tiny negative sum where the policies are equal
        entropy=entropy / tokens,
        clip_fraction=clipped / tokens,
        gradient_norm=norm,
        examples=len(minibatch),
        tokens=tokens,
        applied=applied,
    )


def _with_old_log_probs(policy: TeacherPolicy, rows: Sequence[_Row], micro_batch_size: int) -> list[_Row]:
    """Return the rows with the policy's present log-probabilities of their tokens, in the order given."""
    found: list[_Row] = list(rows)
    numbered = sorted(enumerate(rows), key=lambda pair: _length(pair[1]))
    for start in range(0, len(numbered), micro_batch_size):
        part = numbered[start : start + micro_batch_size]
        batch = _Batch([row for _, row in part], policy.device)
        with torch.no_grad():
            present_NT = batch.of_tokens(batch.log_probs(policy)).cpu()
        for (index, row), present_T in zip(part, present_NT, strict=True):
            found[index] = replace(row, old_log_probs=present_T[: len(row.token_ids)].clone())
    return found


def _by_length(rows: Sequence[_Row], size: int) -> Iterator[list[_Row]]:
    """Yield the rows in parts of `size` of like length, so that little of a part is padding."""
    ordered = sorted(rows, key=_length)
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def _length(row: _Row) -> int:
    return len(row.prompt_ids) + len(row.token_ids)
