"""The learning step that all algorithms share: weighted log-likelihood of completions under the teacher's adapter.

The divergence from the base is the exact one of the two next-token distributions, KL(policy || base) summed over the
vocabulary at each sampled position, not an estimate from the sampled token alone: the full distribution is at hand, it
has no sampling noise, and the usual low-variance estimator (k3) has the wrong gradient in expectation when used as a
loss (arXiv 2506.09477).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from evaluation.common.errors import InputError
from teacher.algorithms.algorithm import Algorithm, LearningReport, WeightedExample
from teacher.policy import TeacherPolicy
from teacher.prompts import prompt_token_ids

MAX_GRADIENT_NORM = 1.0
"""Gradients are scaled down to this Euclidean norm."""


@dataclass(frozen=True, slots=True)
class Row:
    """A tokenized example."""

    prompt_ids: list[int]
    token_ids: tuple[int, ...]
    weight: float
    token_weights: tuple[float, ...] = ()
    """Added to the weight, one for each completion token; empty adds nothing."""
    old_log_probs: Tensor | None = None
    """Log-probabilities of the tokens (T,) before the round's first step; None where no ratio is needed."""

    @property
    def length(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.prompt_ids) + len(self.token_ids)


class TokenTerms(NamedTuple):
    """The parts of an objective at each completion token, all (N, T)."""

    log_probs_NT: Tensor
    """Of the policy, with gradient."""
    old_NT: Tensor
    """Log-probabilities before the round's first step; 0 where the algorithm does not use them."""
    weights_NT: Tensor
    """The row's weight plus the token's own."""
    kl_NT: Tensor
    """Divergence from the base, nats, with gradient."""


class Batch:
    """Rows as tensors: prompts padded on the left and completions on the right, so that completions start together."""

    def __init__(self, rows: Sequence[Row], device: torch.device) -> None:
        """Lay out at least one row on `device`."""
        prompt_width = max(len(row.prompt_ids) for row in rows)
        width = max(len(row.token_ids) for row in rows)
        ids_NL = torch.zeros(len(rows), prompt_width + width, dtype=torch.long)
        attention_NL = torch.zeros_like(ids_NL)
        old_NT = torch.zeros(len(rows), width)
        weights_NT = torch.tensor([[row.weight] for row in rows]).repeat(1, width)
        for i, row in enumerate(rows):
            first, last = prompt_width - len(row.prompt_ids), prompt_width + len(row.token_ids)
            ids_NL[i, first:last] = torch.tensor([*row.prompt_ids, *row.token_ids])
            attention_NL[i, first:last] = 1
            if row.token_weights:
                weights_NT[i, : len(row.token_ids)] += torch.tensor(row.token_weights)
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
        self.weights_NT = weights_NT.to(device)

    def log_probs(self, policy: TeacherPolicy) -> Tensor:
        """Return the log-probabilities of all tokens at each completion position (N, T, V), in float32 at least."""
        width = self.tokens_NT.shape[1]
        logits_NTV = policy.model(**self._inputs, use_cache=False, logits_to_keep=width + 1).logits[:, :-1]
        return torch.log_softmax(logits_NTV.to(torch.promote_types(logits_NTV.dtype, torch.float32)), dim=-1)

    def of_tokens(self, log_probs_NTV: Tensor) -> Tensor:
        """Return the log-probabilities of the completion tokens (N, T)."""
        return log_probs_NTV.gather(-1, self.tokens_NT[..., None])[..., 0]


class _Step(NamedTuple):
    """Figures of one optimizer step, of the policy before it; see `LearningReport`."""

    loss: float
    kl: float
    entropy: float
    clip_fraction: float
    gradient_norm: float
    tokens: int
    applied: bool


def learn(policy: TeacherPolicy, examples: Sequence[WeightedExample], config: Algorithm, seed: int) -> LearningReport:
    """Change the policy's adapter so that its weighted examples become more or less likely.

    The optimizer's state is taken from the policy and left in it. Deterministic given policy, examples and seed.

    Args:
        policy: Changed in place.
        examples: Of one round; with none, nothing changes.
        config: Which objective, and how to optimize it.
        seed: Of the order of the examples.

    Raises:
        InputError: An example has no token, does not fit the model's context, or has a weight that is not finite.
    """
    rows = _tokenized(policy, examples)
    if not rows:
        return LearningReport()
    if config.uses_old_policy:
        rows = _with_old_log_probs(policy, rows, config.micro_batch_size)
    parameters = policy.adapter_parameters()
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.0)
    if policy.optimizer_state is not None:
        optimizer.load_state_dict(policy.optimizer_state)
        for group in optimizer.param_groups:
            group.update(lr=config.learning_rate)
    generator = torch.Generator().manual_seed(seed)
    steps: list[_Step] = []
    for _ in range(config.epochs):
        order = torch.randperm(len(rows), generator=generator).tolist()
        for start in range(0, len(rows), config.minibatch_size):
            minibatch = [rows[i] for i in order[start : start + config.minibatch_size]]
            steps.append(_step(policy, minibatch, config, optimizer))
    policy.optimizer_state = optimizer.state_dict()
    return _report(steps, len(rows))


def _tokenized(policy: TeacherPolicy, examples: Sequence[WeightedExample]) -> list[Row]:
    """Return the examples as token ids, checked."""
    context = getattr(policy.model.config, "max_position_embeddings", None) or math.inf
    prompts = {prompt: prompt_token_ids(policy.tokenizer, prompt) for prompt in {e.prompt for e in examples}}
    rows = [Row(prompts[e.prompt], e.token_ids, e.weight, e.token_weights) for e in examples]
    mistakes: list[str] = []
    for i, (example, row) in enumerate(zip(examples, rows, strict=True)):
        where = f"example {i} of group {example.group_id!r}"
        if not row.token_ids or not row.prompt_ids:
            mistakes.append(f"{where}: the prompt or the completion has no token")
        if row.length > context:
            mistakes.append(f"{where}: got {row.length} tokens, the model takes {context}")
        if row.token_weights and len(row.token_weights) != len(row.token_ids):
            mistakes.append(f"{where}: got {len(row.token_weights)} token weights for {len(row.token_ids)} tokens")
        if not math.isfinite(math.fsum((row.weight, *row.token_weights))):
            mistakes.append(f"{where}: got the weight {row.weight!r}, allowed is a finite number")
    if mistakes:
        raise InputError("teacher learning: leave these examples out or correct them: " + "; ".join(mistakes))
    return rows


def _with_old_log_probs(policy: TeacherPolicy, rows: Sequence[Row], micro_batch_size: int) -> list[Row]:
    """Return the rows with the policy's present log-probabilities of their tokens, in the order given."""
    found: list[Row] = list(rows)
    numbered = sorted(enumerate(rows), key=lambda pair: pair[1].length)
    for start in range(0, len(numbered), micro_batch_size):
        part = numbered[start : start + micro_batch_size]
        batch = Batch([row for _, row in part], policy.device)
        with torch.no_grad():
            present_NT = batch.of_tokens(batch.log_probs(policy)).cpu()
        for (index, row), present_T in zip(part, present_NT, strict=True):
            found[index] = replace(row, old_log_probs=present_T[: len(row.token_ids)].clone())
    return found


def _step(policy: TeacherPolicy, rows: Sequence[Row], config: Algorithm, optimizer: torch.optim.Optimizer) -> _Step:
    """Take one optimizer step on a minibatch, a few rows at a time, and return its figures."""
    parameters = policy.adapter_parameters()
    tokens, normalizer = sum(len(row.token_ids) for row in rows), config.normalizer(rows)
    totals = [0.0] * 4
    optimizer.zero_grad(set_to_none=True)
    for part in _by_length(rows, config.micro_batch_size):
        objective, *others = _sums(policy, Batch(part, policy.device), config)
        torch.autograd.backward([-objective / normalizer], inputs=parameters)
        totals = [total + float(s.detach()) for total, s in zip(totals, (objective, *others), strict=True)]
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM))
    value, kl, entropy, clipped = totals
    applied = math.isfinite(norm) and math.isfinite(value)
    if applied:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return _Step(
        loss=-value / normalizer,
        kl=max(kl / tokens, 0.0),  # rounding may leave a tiny negative sum where the policies are equal
        entropy=entropy / tokens,
        clip_fraction=clipped / tokens,
        gradient_norm=norm,
        tokens=tokens,
        applied=applied,
    )


def _sums(policy: TeacherPolicy, batch: Batch, config: Algorithm) -> Iterator[Tensor]:
    """Yield the sums over a batch's tokens of objective (with gradient), divergence, entropy, and clipped terms."""
    with torch.no_grad(), policy.reference():
        reference_NTV = batch.log_probs(policy)
    log_probs_NTV = batch.log_probs(policy)
    probs_NTV = log_probs_NTV.exp()
    kl_NT = (probs_NTV * (log_probs_NTV - reference_NTV)).sum(-1)
    entropy_NT = -(probs_NTV * log_probs_NTV).detach().sum(-1)
    terms = TokenTerms(batch.of_tokens(log_probs_NTV), batch.old_NT, batch.weights_NT, kl_NT)
    objective_NT, clipped_NT = config.objective(terms)
    for term_NT in (objective_NT, kl_NT, entropy_NT, clipped_NT):
        yield term_NT[batch.mask_NT].sum()


def _by_length(rows: Sequence[Row], size: int) -> Iterator[list[Row]]:
    """Yield the rows in parts of `size` of like length, so that little of a part is padding."""
    ordered = sorted(rows, key=lambda row: row.length)
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def _report(steps: Sequence[_Step], examples: int) -> LearningReport:
    def mean(name: str) -> float | None:
        finite = [step for step in steps if math.isfinite(getattr(step, name))]
        total = sum(step.tokens for step in finite)
        return math.fsum(getattr(step, name) * step.tokens for step in finite) / total if total else None

    return LearningReport(
        examples=examples,
        tokens=sum(step.tokens for step in steps),
        skipped_steps=sum(not step.applied for step in steps),
        loss=mean("loss"),
        kl=mean("kl"),
        entropy=mean("entropy"),
        clip_fraction=mean("clip_fraction"),
        gradient_norm=mean("gradient_norm"),
    )
