"""The teacher's learning step: one weighted log-likelihood step for imitation, policy gradients and preferences.

Each optimizer step maximizes a sum over completion tokens. For ReST-EM and reward-weighted regression a token's term is
w log p, divided by the number of tokens: plain weighted maximum likelihood. For the group-relative way it is PPO's
clipped surrogate, minus the divergence from the base teacher, divided by the number of completions and by a constant
number of tokens (Dr. GRPO, arXiv 2503.20783). For direct preference optimization it is w log p again, with the weights
that make its gradient that of the preference loss, divided by the number of pairs. `learning_terms` has the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from evaluation.errors import InputError
from teacher.config import GroupRelativeConfig, LearningConfig, PreferenceConfig, RestEmConfig, RewardWeightedConfig
from teacher.learning_terms import Batch, Row, sums
from teacher.policy import TeacherPolicy
from teacher.prompts import prompt_token_ids
from teacher.selection import WeightedExample


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one optimizer step saw, measured before it changed the weights."""

    loss: float
    """The negated objective; for preferences the pairs' mean of -log sigmoid(margin), less any entropy bonus."""
    kl: float
    """Divergence from the base teacher, nats per token, at least 0."""
    entropy: float
    """Of the next-token distribution, nats per token."""
    clip_fraction: float
    """Share of tokens whose term was clipped and carries no gradient, in [0, 1]; 0 but for the group-relative way."""
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


def learn(
    policy: TeacherPolicy, examples: Sequence[WeightedExample], config: LearningConfig, seed: int
) -> LearningReport:
    """Change the policy's adapter so that its weighted examples become likelier or less likely.

    The optimizer's state is taken from the policy and left in it. Deterministic given policy, examples and seed.

    Args:
        policy: Changed in place.
        examples: Of one round; with none, nothing changes.
        config: Which objective, and how to optimize it.
        seed: Of the order of the examples, and of the fresh adapter when ReST-EM restarts.

    Raises:
        InputError: An example has no token, does not fit the model's context, or has a weight that is not allowed; or
            preferences are to be learned from examples that are not in pairs.
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
    units = _units(rows, examples, config)
    size = _units_in(config.minibatch_size, config)
    steps: list[StepReport] = []
    for _ in range(config.epochs):
        order = torch.randperm(len(units), generator=generator).tolist()
        for start in range(0, len(units), size):
            minibatch = [units[i] for i in order[start : start + size]]
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


def _tokenized(policy: TeacherPolicy, examples: Sequence[WeightedExample], config: LearningConfig | None) -> list[Row]:
    """Return the examples as token ids, checked."""
    context = getattr(policy.model.config, "max_position_embeddings", None) or math.inf
    prompts = {prompt: prompt_token_ids(policy.tokenizer, prompt) for prompt in {e.prompt for e in examples}}
    rows = [Row(prompts[e.prompt], e.token_ids, e.weight, e.token_weights) for e in examples]
    imitates = isinstance(config, RestEmConfig | RewardWeightedConfig)
    mistakes: list[str] = []
    for i, (example, row) in enumerate(zip(examples, rows, strict=True)):
        where = f"example {i} of group {example.group_id!r}"
        if not row.token_ids or not row.prompt_ids:
            mistakes.append(f"{where}: the prompt or the completion has no token")
        if row.length > context:
            mistakes.append(f"{where}: got {row.length} tokens, the model takes {context}")
        if row.token_weights and len(row.token_weights) != len(row.token_ids):
            mistakes.append(f"{where}: got {len(row.token_weights)} token weights for {len(row.token_ids)} tokens")
        if not math.isfinite(math.fsum((row.weight, *row.token_weights))) or (imitates and row.weight < 0):
            allowed = "a finite number of at least 0" if imitates else "a finite number"
            mistakes.append(f"{where}: got the weight {row.weight!r}, allowed is {allowed}")
    if isinstance(config, PreferenceConfig):
        mistakes += _unpaired(examples)
    if mistakes:
        raise InputError("teacher learning: leave these examples out or mend them: " + "; ".join(mistakes))
    return rows


def _unpaired(examples: Sequence[WeightedExample]) -> Iterator[str]:
    """Yield what keeps the examples from being pairs of one chosen and one rejected completion of a prompt."""
    pairs = _paired(examples)
    for number, members in pairs.items():
        weights = sorted(examples[i].weight for i in members)
        if number is None or weights != [-1.0, 1.0] or len({examples[i].prompt for i in members}) > 1:
            yield (
                f"pair {number!r} of group {examples[members[0]].group_id!r}: got the weights {weights}, allowed are 1 "
                "and -1 for two completions of one prompt; select them with `preferences`"
            )


def _paired(examples: Sequence[WeightedExample]) -> dict[int | None, list[int]]:
    """Return which examples each pair has, in the order given."""
    members: dict[int | None, list[int]] = {}
    for i, example in enumerate(examples):
        members.setdefault(example.pair, []).append(i)
    return members


def _units(rows: Sequence[Row], examples: Sequence[WeightedExample], config: LearningConfig) -> list[list[Row]]:
    """Return what a minibatch keeps together: the two rows of a pair for preferences, else each row by itself."""
    if isinstance(config, PreferenceConfig):
        return [[rows[i] for i in members] for members in _paired(examples).values()]
    return [[row] for row in rows]


def _units_in(rows: int, config: LearningConfig) -> int:
    """Return how many units of rows kept together make up `rows` rows, at least one."""
    return max(rows // 2, 1) if isinstance(config, PreferenceConfig) else rows


def _normalizer(minibatch: Sequence[Row], config: LearningConfig) -> float:
    """Return what the sum over a minibatch's tokens is divided by: completions, pairs or tokens."""
    if isinstance(config, GroupRelativeConfig):
        return len(minibatch) * config.length_normalizer
    if isinstance(config, PreferenceConfig):
        return len(minibatch) / 2
    return sum(len(row.token_ids) for row in minibatch)


def _step(
    policy: TeacherPolicy,
    minibatch: Sequence[Sequence[Row]],
    config: LearningConfig,
    optimizer: torch.optim.Optimizer,
) -> StepReport:
    """Take one optimizer step on a minibatch, a few rows at a time, and return what it saw."""
    parameters = policy.adapter_parameters()
    rows = [row for unit in minibatch for row in unit]
    tokens, normalizer = sum(len(row.token_ids) for row in rows), _normalizer(rows, config)
    totals = [0.0] * 4
    optimizer.zero_grad(set_to_none=True)
    for part in _by_length(minibatch, _units_in(config.micro_batch_size, config)):
        batch = Batch(part, policy.device)
        with torch.no_grad(), policy.reference():
            reference_NTV = batch.log_probs(policy)
        objective, *numbers = sums(batch, batch.log_probs(policy), reference_NTV, config)
        torch.autograd.backward([-objective / normalizer], inputs=parameters)
        totals = [total + number for total, number in zip(totals, numbers, strict=True)]
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.max_gradient_norm))
    value, kl, entropy, clipped = totals
    applied = math.isfinite(norm) and math.isfinite(value)
    if applied:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepReport(
        loss=-value / normalizer,
        kl=max(kl / tokens, 0.0),  # rounding may leave a tiny negative sum where the policies are equal
        entropy=entropy / tokens,
        clip_fraction=clipped / tokens,
        gradient_norm=norm,
        examples=len(rows),
        tokens=tokens,
        applied=applied,
    )


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


def _by_length(units: Sequence[Sequence[Row]], size: int) -> Iterator[list[Row]]:
    """Yield the rows in parts of `size` units of like length, so that little of a part is padding."""
    ordered = sorted(units, key=lambda unit: max(row.length for row in unit))
    for start in range(0, len(ordered), size):
        yield [row for unit in ordered[start : start + size] for row in unit]
