"""Tiny random students with a byte-level tokenizer, and the reference trainer that banks are compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

MakeModel = Callable[..., Any]


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Byte-level BPE without merges: 256 bytes, then <s> and </s>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate([*alphabet, "<s>", "</s>"])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


@pytest.fixture
def make_model() -> MakeModel:
    """Return a function that builds a tiny random student: `llama` or `qwen2` (biases, tied head, grouped queries)."""

    def make(kind: str = "llama", dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
        sizes = {
            "vocab_size": 260,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 256,
            "initializer_range": 0.2,
        }
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            if kind == "qwen2":
                model = Qwen2ForCausalLM(Qwen2Config(**sizes, num_key_value_heads=1, tie_word_embeddings=True))
            else:
                model = LlamaForCausalLM(LlamaConfig(**sizes))
        return model.to(dtype).eval()

    return make
