"""Proof that a served adapter is the registered one: vLLM's greedy answers beside those of transformers and PEFT.

vLLM can load an adapter and use only a part of it, or none, without a word. So the answers of every newly loaded
adapter are compared token by token with answers that `pipelines.serving.reference` computed from the registered files,
and these must differ from what the base alone gives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from evaluation.errors import ServeError

PROMPTS = (
    "Question: What is the name of the place?\nAnswer:",
    "Question: Who wrote it, and when?\nAnswer:",
    "The most important thing to know is that",
    "In the beginning there was",
)
"""Built-in probes, beside those of the version and those that are drawn from the tokenizer."""
DRAWN, DRAWN_LENGTH = 4, 12
"""Probes of random ordinary tokens, and how many tokens each has: they reach what no English text does."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ReferenceAnswer(_Frozen):
    """What the adapter writes after one probe, by transformers and PEFT."""

    prompt: list[int]
    """Token ids."""
    tokens: list[int]
    """Greedy answer, end tokens ignored."""
    logprobs: list[float]
    """Natural log-probability of each of its tokens."""
    base_logprobs: list[float]
    """Of the same tokens by the base alone, after the same tokens before them."""


class Reference(_Frozen):
    """The reference answers of one adapter."""

    answers: list[ReferenceAnswer]
    base_digests: list[str]
    """`model_digest` of the base, 64 hex digits, opened in float32 and in bfloat16."""


@dataclass(frozen=True, slots=True)
class ServedAnswer:
    """What vLLM wrote after one probe."""

    tokens: Sequence[int]
    tops: Sequence[Mapping[int, float]]
    """For each place the log-probabilities of the likeliest tokens, the written one included."""


class ProbeRecord(_Frozen):
    """The outcome of the probes of one adapter."""

    passed: bool
    prompts: int
    """Probes asked."""
    equal: int
    """Answers with the reference's tokens, all of them."""
    ties: int
    """Answers that leave the reference where two tokens are as likely within the tolerance; compared up to there."""
    max_logprob_difference: float | None
    """Largest difference of a token's log-probability, in nats; None when a token's was not given."""
    tolerance: float
    """Largest difference allowed, in nats."""
    told_apart: int
    """Probes at which adapter and base differ by more than twice the tolerance."""
    zero: bool
    """The adapter computes what the base does, as an untrained one; then nothing can be told apart."""
    reason: str
    """Why it did not pass; empty when it did."""


def compare(
    reference: Reference, served: Sequence[ServedAnswer], *, tolerance: float, zero: bool = False
) -> ProbeRecord:
    """Return whether vLLM answers as the registered adapter does.

    Args:
        reference: Of the adapter.
        served: vLLM's answers to the same probes, in order.
        tolerance: Largest difference of a token's log-probability, in nats.
        zero: The adapter's product is zero in every layer.

    Raises:
        ServeError: There are not as many answers as probes.
    """
    if len(served) != len(reference.answers):
        raise ServeError(f"serve: got {len(served)} answers to {len(reference.answers)} probes")
    equal = ties = told_apart = 0
    worst = 0.0
    for wanted, got in zip(reference.answers, served, strict=True):
        difference, left_at = _difference(wanted, got, tolerance)
        worst = max(worst, difference)
        equal += left_at is None
        ties += left_at is not None and difference <= tolerance
        gaps = [abs(a - b) for a, b in zip(wanted.logprobs, wanted.base_logprobs, strict=True)]
        told_apart += max(gaps, default=0.0) > 2 * tolerance
    count = len(served)
    reason = ""
    if not worst <= tolerance or equal + ties < count:
        shown = f"up to {worst:.3g} nats" if math.isfinite(worst) else "beyond measure"
        reason = (
            f"vLLM's answers are not the registered adapter's: {count - equal - ties} of {count} probes have other "
            f"tokens, log-probabilities differ by {shown}, allowed is {tolerance:g}"
        )
    elif not zero and not told_apart:
        reason = f"none of {count} probes tells the adapter from its base, so nothing shows that it takes effect"
    return ProbeRecord(
        passed=not reason,
        prompts=count,
        equal=equal,
        ties=ties,
        max_logprob_difference=worst if math.isfinite(worst) else None,
        tolerance=tolerance,
        told_apart=told_apart,
        zero=zero,
        reason=reason,
    )


def _difference(wanted: ReferenceAnswer, got: ServedAnswer, tolerance: float) -> tuple[float, int | None]:
    """Return the largest difference up to where the answers part, and that place; None when they do not.

    Where they part, the reference's token must be as likely as the reference says, and vLLM's no likelier than it by
    more than the tolerance: else the difference is infinite.
    """
    if len(got.tokens) != len(wanted.tokens) or len(got.tops) != len(wanted.tokens):
        return math.inf, 0
    worst = 0.0
    for place, (token, logprob) in enumerate(zip(wanted.tokens, wanted.logprobs, strict=True)):
        given = got.tops[place].get(token)
        if given is None or not math.isfinite(given):
            return math.inf, place
        worst = max(worst, abs(given - logprob))
        written = got.tokens[place]
        if written != token:
            tie = got.tops[place].get(written, math.inf) - given <= tolerance
            return (worst if tie else math.inf), place
    return worst, None
