"""Samplers: engines that write completions, behind one protocol. None of them is imported before it is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from teacher.config import LocalSampling, VllmSampling

if TYPE_CHECKING:
    from teacher.policy import TeacherPolicy


@dataclass(frozen=True, slots=True)
class Completion:
    """What a language model wrote after a prompt."""

    text: str
    """The decoded completion without special tokens."""
    token_ids: tuple[int, ...]
    """Every sampled token; when `finish_reason` is `stop` the last one is the token that ended it. Empty where the
    engine tells text alone, from which no policy can learn."""
    finish_reason: Literal["stop", "length"]
    """`stop`: the model ended it; `length`: cut at the longest completion allowed."""
    completion_tokens: int | None = None
    """Tokens sampled as the engine counts them, where it does not tell which; None is the number of `token_ids`."""


@dataclass(frozen=True, slots=True)
class FailedCompletion:
    """A completion that the engine did not deliver, while others of the same call came through."""

    reason: str
    """Typed by the engine, such as `timeout`."""
    detail: str
    """What the engine or the network said."""


@dataclass(frozen=True, slots=True)
class PromptTooLong:
    """A prompt that cannot be sampled from, because it and a completion do not fit the model's context together."""

    index: int
    """Position among the prompts given."""
    tokens: int
    """The prompt's length in tokens."""
    limit: int
    """Longest prompt allowed in tokens."""


class Sampler(Protocol):
    """An engine that samples completions."""

    @property
    def max_prompt_tokens(self) -> int | None:
        """Longest prompt in tokens that leaves room for a completion; None when the engine does not know."""

    def count_tokens(self, prompt: str) -> int:
        """Return the number of tokens that the model reads for `prompt`."""

    def sample(self, prompts: Sequence[str], *, n: int, seed: int) -> Sequence[Sequence[Completion | FailedCompletion]]:
        """Return `n` completions of each prompt, in the order of the prompts; what failed alone is in its place.

        Args:
            prompts: Rendered prompts.
            n: Completions of each, at least 1.
            seed: With the prompt and the index of the completion it determines what is sampled.

        Raises:
            GenerationError: The engine failed, or prompts are too long (`prompts_too_long` finds them beforehand).
        """

    def close(self) -> None:
        """Free what the engine holds beside the policy; sampling again starts it anew."""


def prompts_too_long(sampler: Sampler, prompts: Sequence[str]) -> list[PromptTooLong]:
    """Return a record for each prompt that `sampler` would refuse, so that a run can skip these documents alone."""
    limit = sampler.max_prompt_tokens
    if limit is None:
        return []
    lengths = [sampler.count_tokens(prompt) for prompt in prompts]
    return [PromptTooLong(index, tokens, limit) for index, tokens in enumerate(lengths) if tokens > limit]


def build_sampler(
    config: LocalSampling, policy: TeacherPolicy, model: str, dtype: Literal["float32", "bfloat16"]
) -> Sampler:
    """Return the engine that `config` names, sampling from `policy` as it is at each call.

    Args:
        config: How to sample.
        policy: Whose completions to write.
        model: Directory or hub name of its base, for an engine that opens the base once more.
        dtype: Number format of that base.
    """
    if isinstance(config, VllmSampling):
        from teacher.samplers.vllm_engine import VllmSampler

        return VllmSampler(policy, config, model, dtype)
    from teacher.samplers.transformers_engine import TransformersSampler

    return TransformersSampler(policy.model, policy.tokenizer, config)
