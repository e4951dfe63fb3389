"""A tiny random teacher that the teacher's tests share."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evaluation.checkpoints import Checkpoint
from teacher.policy import TeacherPolicy


def tiny_base(vocabulary: int = 300, seed: int = 0, context: int = 128) -> Checkpoint:
    """Return a random Llama over the words w0, w1, ... with `<pad>`, `<eos>` and `<unk>` as tokens 0, 1 and 2."""
    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"w{i}": i + 3 for i in range(vocabulary - 3)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).eval()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    return Checkpoint(model, wrapped)


def shaken(policy: TeacherPolicy, seed: int = 5) -> TeacherPolicy:
    """Give every adapter weight, B included, a random value, so that the policy differs from its base."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in policy.adapter_parameters():
            weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    return policy
