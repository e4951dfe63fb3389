"""The terms of the teacher's objective: what a batch of tokenized examples adds to it, for each algorithm.

The divergence is the exact one of the two next-token distributions, KL(policy || base) summed over the vocabulary at
each sampled position, not an estimate from the sampled token alone: the full distribution is at hand anyway, it has no
sampling noise, and it is differentiated as what it is, whereas the usual low-variance estimator (k3) has the wrong
gradient in expectation when used as a loss (arXiv 2506.09477).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from teacher.config import GroupRelativeConfig, LearningConfig, PreferenceConfig
from teacher.policy import TeacherPolicy


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
        """Log-probabilities of the tokens before the round's first step (N, T)."""
        self.weights_N1 = torch.tensor([[row.weight] for row in rows], device=device)
        """Weights of the rows (N, 1)."""
        self.weights_NT = weights_NT.to(device)
        """Weights of the tokens (N, T): the row's, and what single tokens have beside it."""

    def log_probs(self, policy: TeacherPolicy) -> Tensor:
        """Return the log-probabilities of all tokens at each completion position (N, T, V), in float32 at least."""
        width = self.tokens_NT.shape[1]
        logits_NTV = policy.model(**self._inputs, use_cache=False, logits_to_keep=width + 1).logits[:, :-1]
        return torch.log_softmax(logits_NTV.to(torch.promote_types(logits_NTV.dtype, torch.float32)), dim=-1)

    def of_tokens(self, log_probs_NTV: Tensor) -> Tensor:
        """Return the log-probabilities of the completion tokens (N, T)."""
        return log_probs_NTV.gather(-1, self.tokens_NT[..., None])[..., 0]


class Sums(NamedTuple):
    """What a batch adds to the objective and to the diagnostics, all sums over its completion tokens."""

    objective: Tensor
    """Scalar with the gradient of the objective, not yet divided by the step's normalizer."""
    value: float
    """The objective itself. That differs from `objective` for preferences, where only the gradients agree."""
    kl: float
    """Nats."""
    entropy: float
    """Nats."""
    clipped: float
    """Tokens whose term was clipped."""


def sums(batch: Batch, log_probs_NTV: Tensor, reference_NTV: Tensor, config: LearningConfig) -> Sums:
    """Return what a batch adds to the objective of `config.algorithm`, with the entropy bonus.

    ReST-EM and reward-weighted regression add w log p of each token. The group-relative way adds the clipped surrogate
    min(r A, clip(r) A) (arXiv 1707.06347, equation 7) less the divergence from the base, r the ratio to the
    log-probabilities before the round's first step. Preferences: see `preference_weights`.

    Args:
        batch: N rows; for preferences a pair's two rows follow each other.
        log_probs_NTV: The policy's log-probabilities (N, T, V), with gradient.
        reference_NTV: The base's (N, T, V), without.
        config: Which objective.
    """
    probs_NTV = log_probs_NTV.exp()
    kl_NT = (probs_NTV * (log_probs_NTV - reference_NTV)).sum(-1)
    entropy_NT = -(probs_NTV * log_probs_NTV).sum(-1)
    new_NT, weights_N1 = batch.of_tokens(log_probs_NTV), batch.weights_N1
    objective_NT, clipped_NT = weights_N1 * new_NT, torch.zeros_like(new_NT)
    value: Tensor | None = None
    if isinstance(config, GroupRelativeConfig):
        ratio_NT = (new_NT - batch.old_NT).exp()
        free_NT = ratio_NT * batch.weights_NT
        bound_NT = ratio_NT.clamp(1.0 - config.clip_low, 1.0 + config.clip_high) * batch.weights_NT
        objective_NT = torch.minimum(free_NT, bound_NT) - config.kl_coefficient * kl_NT
        clipped_NT = (bound_NT < free_NT).float()
    elif isinstance(config, PreferenceConfig):
        log_ratio_NT = (new_NT - batch.of_tokens(reference_NTV)).masked_fill(~batch.mask_NT, 0.0)
        pair_weights_N1, margins_P = preference_weights(log_ratio_NT, weights_N1, config.beta)
        objective_NT, value = pair_weights_N1 * new_NT, logsigmoid(margins_P).sum()
    objective, bonus, kl, entropy, clipped = (
        term_NT[batch.mask_NT].sum()
        for term_NT in (objective_NT, config.entropy_bonus * entropy_NT, kl_NT, entropy_NT, clipped_NT)
    )
    value = objective if value is None else value
    numbers = [float(number.detach()) for number in (value + bonus, kl, entropy, clipped)]
    return Sums(objective + bonus, *numbers)


@torch.no_grad()
def preference_weights(log_ratio_NT: Tensor, signs_N1: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Return each row's weight in the log-likelihood step that direct preference optimization is, and the margins.

    The loss of a pair is -log sigmoid(m) with the margin m = beta * (log p_c / q_c - log p_r / q_r), p the policy, q
    the base, c the chosen and r the rejected completion (arXiv 2305.18290, equation 7). Its gradient is that of
    -beta * sigmoid(-m) * (log p_c - log p_r) with the factor in front held fixed (same section), so a weighted
    log-likelihood step with the weights of the present policy takes the same direction.

    Args:
        log_ratio_NT: log p - log q of each token (N, T), 0 on padding; a pair's two rows follow each other.
        signs_N1: 1 for chosen, -1 for rejected rows (N, 1).
        beta: Scale of the margin.

    Returns:
        The weights (N, 1), in [-beta, beta], and the margins (P,) of the P = N / 2 pairs.
    """
    signed_N = log_ratio_NT.double().sum(1) * signs_N1[:, 0]
    margins_P = beta * signed_N.view(-1, 2).sum(1)
    weights_N = beta * torch.sigmoid(-margins_P).repeat_interleave(2) * signs_N1[:, 0]
    return weights_N[:, None].to(log_ratio_NT.dtype), margins_P
