"""A tiny random teacher, its likelihoods, and groups of completions, shared by the teacher's tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evaluation.common.checkpoints import Checkpoint
from teacher.algorithms.algorithm import CompletionGroup, CompletionReward, WeightedExample
from teacher.policy import PolicyRecord, TeacherPolicy
from teacher.prompts import prompt_token_ids


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


def tiny_chat_base() -> Checkpoint:
    """Return a random model of a few words that often ends a turn or begins another passage, and has a chat template.

    The end of a turn, token 1, is known from the template alone.
    """
    base = tiny_base(vocabulary=8, context=512)
    words = ["<pad>", "<|im_end|>", "<unk>", "\nPassage", ":", ": w", "w", "\n"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Fuse()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", extra_special_tokens=["<|im_end|>"]
    )
    wrapped.chat_template = (
        "{% for m in messages %}{{ m.role }} {{ m.content }} <|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}assistant {% endif %}"
    )
    base.model.generation_config.eos_token_id = None
    return Checkpoint(base.model, wrapped)


def shaken(policy: TeacherPolicy, seed: int = 5) -> TeacherPolicy:
    """Set every adapter weight, B included, to a random value, so that the policy differs from its base."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in policy.adapter_parameters():
            weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    return policy


def loaded(directory: Path, base: Checkpoint) -> TeacherPolicy:
    """Return the policy saved in a directory."""
    policy = TeacherPolicy(base, PolicyRecord.read(directory).config, seed=0)
    policy.restore(directory)
    return policy


def token_log_probs(of: TeacherPolicy, example: WeightedExample) -> torch.Tensor:
    """Return the log-probabilities of a completion's tokens (T,), one sequence alone, with gradient."""
    ids = torch.tensor([[*prompt_token_ids(of.tokenizer, example.prompt), *example.token_ids]])
    log_probs = torch.log_softmax(of.model(ids).logits[0, :-1], -1).gather(1, ids[0, 1:, None])[:, 0]
    return log_probs[-len(example.token_ids) :]


def log_likelihoods(of: TeacherPolicy, examples: Sequence[WeightedExample]) -> list[float]:
    """Return the log-probability of each example's completion given its prompt, in nats."""
    with torch.no_grad():
        return [float(token_log_probs(of, example).sum()) for example in examples]


def group(name: str, *rewards: float | None, base: float | None = 0.0) -> CompletionGroup:
    """Return a group whose completions have the token ids (0,), (1,), ... in order."""
    completions = tuple(CompletionReward(token_ids=(i,), reward=reward) for i, reward in enumerate(rewards))
    return CompletionGroup(id=name, prompt=f"prompt of {name}", completions=completions, base_reward=base)


GROUPS = st.lists(st.lists(st.none() | st.floats(-1.0, 1.0), max_size=6), max_size=5).map(
    lambda rows: [group(f"g{i}", *row) for i, row in enumerate(rows)]
)
