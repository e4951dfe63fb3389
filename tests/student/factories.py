"""Tiny random language models, a byte-level tokenizer for them, and updates of random tokens; no download."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from student.adapters import Adapter
from student.bank.bank import LoraBank
from student.config import UpdateRecipe
from student.updates import TrainingSequence, UpdateOutcome, UpdateRequest, UpdateResult

MakeModel = Callable[..., Any]
BOS, EOS, VOCABULARY = 256, 257, 260


def byte_tokenizer(merges: tuple[tuple[str, str], ...] = ()) -> Any:
    """Return byte-level BPE: 256 bytes, then <s> and </s>, then the merges' own tokens."""
    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<s>", "</s>", *("".join(pair) for pair in merges)]
    core = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=list(merges)))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


def tiny_model(
    kind: str = "llama", dtype: torch.dtype = torch.float32, seed: int = 0, initializer_range: float = 0.2
) -> Any:
    """Return a random language model with heads of 32.

    Args:
        kind: `llama`, `qwen2` (biases, tied output head, grouped queries) `gemma` (scaled, tied
            embeddings, gated GELU, one key head) or `granite` (scales its logits).
        dtype: Of all weights.
        seed: Of the weights.
        initializer_range: Their standard deviation.
    """
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": initializer_range,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "qwen2":
            model = Qwen2ForCausalLM(Qwen2Config(**sizes, num_key_value_heads=1, tie_word_embeddings=True))
        elif kind == "gemma":
            # Its embeddings are multiplied by sqrt(D) = 8: drawn as wide as the others', rounding alone moves what PEFT
            # trains in single precision by 3e-5 of what it trains in double.
            sizes["initializer_range"] = initializer_range / 2
            model = GemmaForCausalLM(GemmaConfig(**sizes, num_key_value_heads=1, head_dim=32, pad_token_id=0))
        elif kind == "granite":
            scales = {"attention_multiplier": 32**-0.5, "logits_scaling": 4.0}
            model = GraniteForCausalLM(GraniteConfig(**sizes, num_key_value_heads=2, **scales))
        else:
            model = LlamaForCausalLM(LlamaConfig(**sizes))
    return model.to(dtype).eval()


def sequences(seed: int, lengths: list[int], answers_only: bool = False) -> tuple[TrainingSequence, ...]:
    """Return random sequences of the given lengths, with loss on all tokens or on the second half."""
    generator = random.Random(seed)
    return tuple(
        TrainingSequence(
            tuple(generator.randrange(260) for _ in range(n)), tuple(not answers_only or i >= n // 2 for i in range(n))
        )
        for n in lengths
    )


def distilled(job: UpdateRequest, seed: int = 0) -> UpdateRequest:
    """Return a job that is distilled from the student with 3 to 20 random tokens in front of each sequence."""
    generator = random.Random(seed)

    def behind(sequence: TrainingSequence) -> TrainingSequence:
        passage = tuple(generator.randrange(260) for _ in range(generator.randrange(3, 20)))
        return replace(sequence, behind=(*passage, *sequence.tokens))

    recipe = job.recipe.model_copy(update={"objective": "context_distillation"})
    return replace(job, sequences=tuple(map(behind, job.sequences)), recipe=recipe)


def mixed_jobs() -> list[UpdateRequest]:
    """Four slots that differ in everything a self-edit or a recipe may choose."""
    recipes = [
        UpdateRecipe(epochs=3, batch_size=4),
        UpdateRecipe(rank=2, alpha=5.0, learning_rate=4e-3, epochs=5, batch_size=2, warmup_steps=3),
        UpdateRecipe(rank=4, learning_rate=1e-2, epochs=4, batch_size=3),
        UpdateRecipe(rank=1, learning_rate=1e-3, epochs=9, batch_size=8, max_steps=5),
    ]
    lengths = [[5, 9, 3, 7, 4], [12, 2, 6], [4, 4, 4, 4, 4, 4, 4], [8, 11]]
    return [
        UpdateRequest(f"job-{k}", sequences(k, lengths[k], answers_only=k in (1, 3)), recipe, seed=10 + k)
        for k, recipe in enumerate(recipes)
    ]


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use so many threads for a while: with more than one, each trains slots of its own."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def adapter_of(result: UpdateResult) -> Adapter:
    """Return the adapter of a job that went well."""
    assert result.outcome is UpdateOutcome.OK, result.detail
    assert result.adapter is not None
    return result.adapter


def deltas(factors: Any, scale: float) -> torch.Tensor:
    """Return `scale` B A of all layers in one vector."""
    return torch.cat([scale * (b.double() @ a.double()).flatten() for _, (a, b) in sorted(factors.items())])


def same_bits(left: Adapter, right: Adapter) -> bool:
    """Return whether two adapters are equal to the bit."""
    return all(torch.equal(x, y) for n in left.factors for x, y in zip(left.factors[n], right.factors[n], strict=True))


def train(model: Any, jobs: Sequence[UpdateRequest], **options: Any) -> list[UpdateResult]:
    """Return the results of a bank of its own."""
    with LoraBank(model, **options) as bank:
        return bank.train(jobs)


def assert_same_updates(left: Sequence[UpdateResult], right: Sequence[UpdateResult], tolerance: float) -> None:
    """See that updates give the same changes of the weights, up to `tolerance`."""
    for one, other in zip(left, right, strict=True):
        assert one.key == other.key
        pair = deltas(adapter_of(one).factors, 1.0), deltas(adapter_of(other).factors, 1.0)
        assert torch.allclose(*pair, rtol=0, atol=tolerance)


def run_alone(code: str) -> list[str]:
    """Return the words that a fresh process prints: reserves of this one would hide what is allocated."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()
