"""Tiny random language models and a byte-level tokenizer for them, built without any download."""

from __future__ import annotations

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
