"""Samplers: the protocol of all engines, and the base class of those on this machine (docs/extending.md)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeAlias, TypeVar

from pydantic import Field

from evaluation.common.data import Frozen
from evaluation.common.errors import ConfigError, GenerationError
from evaluation.exact_match import context_length, end_tokens_of
from evaluation.generation import have_stopped, row_key, up_to_end
from teacher.prompts import prompt_token_ids

if TYPE_CHECKING:
    from teacher.policy import TeacherPolicy


class Sampling(Frozen):
    """Sampling parameters common to all engines."""

    type: str
    """Selects the engine."""
    temperature: float = Field(default=1.0, ge=0.0, le=5.0)
    """Divides the logits, in [0, 5]; 0 is greedy: all samples of a prompt are equal."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Nucleus: the smallest set of tokens with at least this probability, in (0, 1]; 1 keeps all tokens."""
    max_new_tokens: int = Field(default=160, ge=1, le=32_768)
    """Longest completion in tokens, in [1, 32768]; together with the prompt it must fit the model's context."""

    @property
    def at_once(self) -> int:
        """Completions that the engine writes together, so that more prompts a call are no faster."""
        return 64

    def distinct_samples(self, n: int) -> int:
        """Return how many of `n` samples of a prompt, at least 1, can differ."""
        if n < 1:
            raise ValueError(f"n: got {n}, allowed is at least 1")
        return n if self.temperature > 0.0 else 1


class LocalSampling(Sampling):
    """Sampling from a trainable model on this machine."""

    @abstractmethod
    def build(self, policy: TeacherPolicy, model: str, dtype: Literal["float32", "bfloat16"]) -> Sampler:
        """Return a sampler that always uses the current state of `policy`.

        `model` is the directory or hub name of its base, `dtype` the number format, for engines that load a copy.
        """


@dataclass(frozen=True, slots=True)
class Completion:
    """A sampled completion."""

    text: str
    """Decoded without special tokens."""
    token_ids: tuple[int, ...]
    """All sampled tokens, including any end token; empty for engines that return text only (not trainable)."""
    finish_reason: Literal["stop", "length"]
    """`stop`: ended by the model; `length`: truncated at the token limit."""
    completion_tokens: int | None = None
    """Token count reported by an engine without ids; None means the number of `token_ids`."""


@dataclass(frozen=True, slots=True)
class FailedCompletion:
    """A completion that the engine did not return, in a call in which others may have succeeded."""

    reason: str
    """Typed by the engine, such as `timeout`."""
    detail: str


Seeds: TypeAlias = int | Sequence[int]
"""One seed for all prompts, or one for each of them."""


def seeds_of(seed: Seeds, prompts: Sequence[str]) -> Sequence[int]:
    """Return the seed of each prompt."""
    return [seed] * len(prompts) if isinstance(seed, int) else seed


class Sampler(Protocol):
    """An engine that samples completions."""

    @property
    def max_prompt_tokens(self) -> int | None:
        """Longest prompt in tokens that leaves room for a completion; None when unknown or unlimited."""

    def count_tokens(self, prompt: str) -> int:
        """Return the number of tokens of `prompt`, or an upper bound."""

    def sample(
        self, prompts: Sequence[str], *, n: int, seed: Seeds, stop: str | None = None
    ) -> Sequence[Sequence[Completion | FailedCompletion]]:
        """Return `n` completions, at least 1, for each prompt; (seed, prompt, index) determines each of them.

        Each ends where the model ends its turn or the text, or where it begins to write `stop`, which is not in the
        text; its tokens are, like an end token, the last ones.

        Raises:
            GenerationError: The engine failed, or prompts are too long (see `prompts_too_long`).
        """

    def close(self) -> None:
        """Release the engine's resources except the policy; the next call restarts it."""


def prompts_too_long(sampler: Sampler, prompts: Sequence[str]) -> dict[int, int]:
    """Return the token counts of the prompts that exceed the sampler's limit, by index."""
    limit = math.inf if sampler.max_prompt_tokens is None else sampler.max_prompt_tokens
    counts = enumerate(map(sampler.count_tokens, prompts))
    return {index: tokens for index, tokens in counts if tokens > limit}


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the tokens that end a completion: those of a model and its tokenizer, and that of a chat's turn."""
    return end_tokens_of(model, tokenizer) | end_of_turn(tokenizer)


_Sampled = TypeVar("_Sampled", bound=Completion | FailedCompletion)


class LocalSampler(ABC, Generic[_Sampled]):
    """Base of the engines on this machine."""

    def __init__(self, model: Any, tokenizer: Any, config: LocalSampling) -> None:
        """Read context length and end tokens from a transformers model.

        Raises:
            ConfigError: The longest completion alone fills the model's context.
        """
        self._tokenizer = tokenizer
        self._sampling = config
        self._stop: str | None = None
        self._ends = end_tokens(model, tokenizer)
        context = context_length(model)
        if context is not None and context <= config.max_new_tokens:
            raise ConfigError(
                f"sampling.max_new_tokens: got {config.max_new_tokens}, allowed is less than the model's context of "
                f"{context} tokens. Lower it, or use a model with a longer context."
            )
        self.max_prompt_tokens = None if context is None else context - config.max_new_tokens

    def count_tokens(self, prompt: str) -> int:
        """Return the number of tokens of `prompt`."""
        return len(prompt_token_ids(self._tokenizer, prompt))

    def sample(self, prompts: Sequence[str], *, n: int, seed: Seeds, stop: str | None = None) -> list[list[_Sampled]]:
        """Return `n` completions for each prompt, independent of batching up to rounding; see `Sampler.sample`."""
        self._stop = stop
        distinct, ids = self._sampling.distinct_samples(n), self._encoded(prompts)
        rows = [(p, index) for p in range(len(prompts)) for index in range(distinct)]
        seeds = seeds_of(seed, prompts)
        keys = [row_key(seeds[p], prompts[p], index) for p, index in rows]
        written = self._write([ids[p] for p, _ in rows], keys) if rows else []
        return [[written[p * distinct + index % distinct] for index in range(n)] for p in range(len(prompts))]

    @abstractmethod
    def close(self) -> None:
        """See `Sampler.close`."""

    @abstractmethod
    def _write(self, prompt_ids: Sequence[list[int]], keys: Sequence[int]) -> list[_Sampled]:
        """Return one completion per row; its RNG key (64 bits, signed) alone determines its randomness."""

    def _encoded(self, prompts: Sequence[str]) -> list[list[int]]:
        """Return the prompts' token ids, each within the limit."""
        if long := prompts_too_long(self, prompts):
            listed = "; ".join(f"prompt {i} ({prompts[i][:40]!r}…): {tokens} tokens" for i, tokens in long.items())
            raise GenerationError(
                f"sampling: {len(long)} of {len(prompts)} prompts are longer than the {self.max_prompt_tokens} tokens "
                f"that leave room for {self._sampling.max_new_tokens} new ones: {listed}. Skip these documents "
                "(prompts_too_long finds them), shorten them, or lower sampling.max_new_tokens."
            )
        ids = [prompt_token_ids(self._tokenizer, prompt) for prompt in prompts]
        if empty := [index for index, row in enumerate(ids) if not row]:
            raise GenerationError(f"sampling: prompts {empty} hold no token; give prompts with text")
        return ids

    def _completion(self, sampled: Sequence[int]) -> Completion:
        """Return sampled tokens as a completion."""
        ended = up_to_end(sampled, self._ends, self._stops, self._decoded)
        return Completion(text=ended.text, token_ids=ended.tokens, finish_reason=ended.reason)

    @property
    def _stops(self) -> tuple[str, ...]:
        return () if self._stop is None else (self._stop,)

    def _decoded(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def _stopped(self, rows: Sequence[Sequence[int]]) -> list[bool]:
        """Return which rows of sampled tokens have just completed the stop string."""
        return have_stopped(rows, self._stops, self._decoded)


def end_of_turn(tokenizer: Any) -> frozenset[int]:
    """Return the token with which a chat template ends an assistant's turn; none without such a template."""
    if not getattr(tokenizer, "chat_template", None):
        return frozenset()
    turns = [{"role": "user", "content": "Question"}, {"role": "assistant", "content": "Answer"}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:  # templates raise whatever they like; a prompt that needs this one says so
        return frozenset()
    ids = tokenizer(text.rpartition("Answer")[2].strip(), add_special_tokens=False)["input_ids"]
    return frozenset(ids[:1]) & frozenset(tokenizer.added_tokens_decoder)
