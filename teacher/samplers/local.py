"""What the engines that run a model of this machine have in common: prompts, ends, keys of samples."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from typing import Any

from evaluation.errors import ConfigError, GenerationError
from teacher.prompts import prompt_token_ids
from teacher.samplers import Completion


def longest_prompt(model: Any, max_new_tokens: int) -> int | None:
    """Return the longest prompt in tokens that leaves room for a completion; None for a model without a fixed context.

    Raises:
        ConfigError: The longest completion alone fills the model's context.
    """
    context = getattr(model.config, "max_position_embeddings", None)
    if context is None:
        return None
    if int(context) <= max_new_tokens:
        raise ConfigError(
            f"sampling.max_new_tokens: got {max_new_tokens}, allowed is less than the model's context of "
            f"{context} tokens. Lower it, or use a model with a longer context."
        )
    return int(context) - max_new_tokens


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the tokens that end a completion: the checkpoint's own, or the tokenizer's where it names none."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    ends = tokenizer.eos_token_id if ends is None else ends
    return frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])


def row_key(seed: int, prompt: str, index: int) -> int:
    """Return the 64-bit key, signed, of the randomness of the completion number `index` of `prompt`."""
    content = f"{seed}\x00{index}\x00{prompt}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "little", signed=True)


def encoded_prompts(
    tokenizer: Any, prompts: Sequence[str], n: int, limit: int | None, max_new_tokens: int
) -> list[list[int]]:
    """Return the token ids of the prompts of a call.

    Raises:
        ValueError: `n` is not positive.
        GenerationError: Prompts are longer than `limit` tokens or hold none.
    """
    if n < 1:
        raise ValueError(f"n: got {n}, allowed is at least 1")
    ids = [prompt_token_ids(tokenizer, prompt) for prompt in prompts]
    long = [i for i, row in enumerate(ids) if limit is not None and len(row) > limit]
    if long:
        listed = "; ".join(f"prompt {i} ({prompts[i][:40]!r}…): {len(ids[i])} tokens" for i in long)
        raise GenerationError(
            f"sampling: {len(long)} of {len(prompts)} prompts are longer than the {limit} tokens that leave "
            f"room for {max_new_tokens} new ones: {listed}. Skip these documents (prompts_too_long finds them), "
            "shorten them, or lower sampling.max_new_tokens."
        )
    if empty := [index for index, row in enumerate(ids) if not row]:
        raise GenerationError(f"sampling: prompts {empty} hold no token; give prompts with text")
    return ids


def completion_of(tokenizer: Any, sampled: Sequence[int], ends: Collection[int]) -> Completion:
    """Return what was sampled as a completion: what follows an end token is cut off, the token itself is kept."""
    end = next((i for i, token in enumerate(sampled) if token in ends), None)
    kept = list(sampled if end is None else sampled[: end + 1])
    text = tokenizer.decode(kept if end is None else kept[:-1], skip_special_tokens=True)
    return Completion(text=text, token_ids=tuple(kept), finish_reason="length" if end is None else "stop")
