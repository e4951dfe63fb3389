"""Samplers: engines that write completions, behind one protocol, and what engines on this machine share.

A new engine is a module beside this one with a subclass of `Sampling`, its configuration, and a line in
`teacher/samplers/__init__.py` (docs/extending.md). An engine's module imports the engine's library when a sampler is
used, not before.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from pydantic import Field

from evaluation.common.data import Frozen
from evaluation.common.errors import ConfigError, GenerationError
from teacher.prompts import prompt_token_ids

if TYPE_CHECKING:
    from teacher.policy import TeacherPolicy


class Sampling(Frozen):
    """How to sample, with any engine."""

    type: str
    """Selects the engine."""
    temperature: float = Field(default=1.0, ge=0.0, le=5.0)
    """Divides the logits, in [0, 5]; 0 takes the most likely token (all samples of a prompt are then equal)."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Share of probability kept, in (0, 1]: the smallest set of tokens that reaches it; 1 keeps all tokens."""
    max_new_tokens: int = Field(default=160, ge=1, le=32_768)
    """Longest completion in tokens, in [1, 32768]; together with the prompt it must fit the model's context."""

    def distinct_of(self, n: int) -> int:
        """Return how many of `n` samples of a prompt differ."""
        return n if self.temperature > 0.0 else 1


class LocalSampling(Sampling):
    """Sampling from a model on this machine, which can be trained."""

    @abstractmethod
    def build(self, policy: TeacherPolicy, model: str, dtype: Literal["float32", "bfloat16"]) -> Sampler:
        """Return the engine, which samples from the current state of `policy` at each call.

        Args:
            policy: Whose completions to write.
            model: Directory or hub name of its base, for an engine that opens the base once more.
            dtype: Number format of that base.
        """


@dataclass(frozen=True, slots=True)
class Completion:
    """What a language model wrote after a prompt."""

    text: str
    """The decoded completion without special tokens."""
    token_ids: tuple[int, ...]
    """Every sampled token; when `finish_reason` is `stop` the last one is the token that ended it. Empty where the
    engine returns text alone, from which no policy can learn."""
    finish_reason: Literal["stop", "length"]
    """`stop`: the model ended it; `length`: cut at the longest completion allowed."""
    completion_tokens: int | None = None
    """Tokens as the engine counts them, where it does not return their ids; None is the number of `token_ids`."""


@dataclass(frozen=True, slots=True)
class FailedCompletion:
    """A completion that the engine did not deliver, while others of the same call came through."""

    reason: str
    """Typed by the engine, such as `timeout`."""
    detail: str
    """Message of the engine or the network."""


class Sampler(Protocol):
    """An engine that samples completions."""

    @property
    def max_prompt_tokens(self) -> int | None:
        """Longest prompt in tokens that leaves room for a completion; None when the engine does not know."""

    def count_tokens(self, prompt: str) -> int:
        """Return the number of tokens that the model reads for `prompt`."""

    def sample(self, prompts: Sequence[str], *, n: int, seed: int) -> Sequence[Sequence[Completion | FailedCompletion]]:
        """Return `n` completions of each prompt, in the order of the prompts; a failed one is in its place.

        Args:
            prompts: Rendered prompts.
            n: Completions of each, at least 1.
            seed: With the prompt and the index of the completion it determines what is sampled.

        Raises:
            GenerationError: The engine failed, or prompts are too long (`prompts_too_long` finds them beforehand).
        """

    def close(self) -> None:
        """Free what the engine holds beside the policy; sampling again starts it anew."""


def prompts_too_long(sampler: Sampler, prompts: Sequence[str]) -> dict[int, int]:
    """Return the lengths in tokens of the prompts that `sampler` would refuse, by position; a run skips these."""
    limit = sampler.max_prompt_tokens
    if limit is None:
        return {}
    lengths = enumerate(map(sampler.count_tokens, prompts))
    return {index: tokens for index, tokens in lengths if tokens > limit}


def row_key(seed: int, prompt: str, index: int) -> int:
    """Return the 64-bit key, signed, of the randomness of the completion number `index` of `prompt`."""
    content = f"{seed}\x00{index}\x00{prompt}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "little", signed=True)


_Written = TypeVar("_Written", bound=Completion | FailedCompletion)


class LocalSampler(ABC, Generic[_Written]):
    """An engine on this machine: a subclass turns token ids and keys of randomness into completions."""

    def __init__(self, model: Any, tokenizer: Any, config: LocalSampling) -> None:
        """Prepare sampling.

        Args:
            model: Whose configuration gives the context and the end tokens.
            tokenizer: Its tokenizer.
            config: How to sample.

        Raises:
            ConfigError: The longest completion alone fills the model's context.
        """
        self._tokenizer = tokenizer
        self._sampling = config
        self._ends = _end_tokens(model, tokenizer)
        self._max_prompt_tokens = _longest_prompt(model, config.max_new_tokens)

    @property
    def max_prompt_tokens(self) -> int | None:
        """Longest prompt in tokens that leaves room for a completion; None for a model without a fixed context."""
        return self._max_prompt_tokens

    def count_tokens(self, prompt: str) -> int:
        """Return the number of tokens that the model reads for `prompt`."""
        return len(prompt_token_ids(self._tokenizer, prompt))

    def sample(self, prompts: Sequence[str], *, n: int, seed: int) -> list[list[_Written]]:
        """Return `n` completions of each prompt; see `Sampler.sample`.

        A completion depends on (seed, prompt, index) and not on what is sampled beside it, up to rounding of the
        logits. Every engine draws noise of its own.
        """
        if n < 1:
            raise ValueError(f"n: got {n}, allowed is at least 1")
        ids = self._encoded(prompts)
        distinct = self._sampling.distinct_of(n)
        rows = [(p, index) for p in range(len(prompts)) for index in range(distinct)]
        keys = [row_key(seed, prompts[p], index) for p, index in rows]
        written = self._write([ids[p] for p, _ in rows], keys) if rows else []
        return [[written[p * distinct + index % distinct] for index in range(n)] for p in range(len(prompts))]

    @abstractmethod
    def _write(self, prompt_ids: Sequence[list[int]], keys: Sequence[int]) -> list[_Written]:
        """Return one completion for each of at least one row, in the order given.

        Args:
            prompt_ids: Of each row.
            keys: 64 bits, signed, that alone decide a row's randomness.
        """

    def _encoded(self, prompts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of the prompts, which must fit.

        Raises:
            GenerationError: Prompts are too long or hold no token.
        """
        limit = self._max_prompt_tokens
        ids = [prompt_token_ids(self._tokenizer, prompt) for prompt in prompts]
        long = [i for i, row in enumerate(ids) if limit is not None and len(row) > limit]
        if long:
            listed = "; ".join(f"prompt {i} ({prompts[i][:40]!r}…): {len(ids[i])} tokens" for i in long)
            raise GenerationError(
                f"sampling: {len(long)} of {len(prompts)} prompts are longer than the {limit} tokens that leave room "
                f"for {self._sampling.max_new_tokens} new ones: {listed}. Skip these documents (prompts_too_long finds "
                "them), shorten them, or lower sampling.max_new_tokens."
            )
        if empty := [index for index, row in enumerate(ids) if not row]:
            raise GenerationError(f"sampling: prompts {empty} hold no token; give prompts with text")
        return ids

    def _completion(self, sampled: Sequence[int]) -> Completion:
        """Return sampled tokens as a completion: what follows an end token is cut off, the token itself is kept."""
        end = next((i for i, token in enumerate(sampled) if token in self._ends), None)
        kept = list(sampled if end is None else sampled[: end + 1])
        text = self._tokenizer.decode(kept if end is None else kept[:-1], skip_special_tokens=True)
        return Completion(text=text, token_ids=tuple(kept), finish_reason="length" if end is None else "stop")


def _longest_prompt(model: Any, max_new_tokens: int) -> int | None:
    context = getattr(model.config, "max_position_embeddings", None)
    if context is None:
        return None
    if int(context) <= max_new_tokens:
        raise ConfigError(
            f"sampling.max_new_tokens: got {max_new_tokens}, allowed is less than the model's context of "
            f"{context} tokens. Lower it, or use a model with a longer context."
        )
    return int(context) - max_new_tokens


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the tokens that end a completion: the checkpoint's own, or the tokenizer's where it names none."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    ends = tokenizer.eos_token_id if ends is None else ends
    return frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])
