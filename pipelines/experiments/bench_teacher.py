"""Time a teacher that reads a prompt once for all its samples against one that reads it for each of them.

`python -m pipelines.experiments.bench_teacher`: random weights of SmolLM2-135M's size, two prompts, in pairs of
alternating order.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

from pipelines.experiments.pairs import Side, measure, timed

VOCABULARY = 49_152


def open_policy(ends: float) -> Any:
    """Return a random policy whose tokens end a sample with the probability `ends`."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from evaluation.common.checkpoints import Checkpoint, resolve_model
    from pipelines.process import prepare_process
    from teacher.policy import PolicyConfig, TeacherPolicy

    prepare_process()
    torch.manual_seed(0)
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": VOCABULARY}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, max_position_embeddings=8192)).eval()
    model.generation_config.eos_token_id = list(range(round(ends * VOCABULARY))) or None
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("micro-teacher"))
    return TeacherPolicy(Checkpoint(model, tokenizer), PolicyConfig(), seed=0)


def sides(policy: Any, prompts: Sequence[str], samples: int, tokens: int, *, shared: bool) -> dict[str, Side]:
    """Return sampling, and a step of learning from random completions of `tokens` tokens, with or without sharing."""
    from teacher.algorithms.algorithm import WeightedExample, learn
    from teacher.algorithms.grpo import GroupRelativeConfig
    from teacher.samplers.transformers import TransformersSampler, TransformersSampling

    sampling, draw = TransformersSampling(max_new_tokens=tokens), random.Random(0)
    sampler = TransformersSampler(policy.model, policy.tokenizer, sampling, shared=shared)
    rows = [(text, tuple(draw.choices(range(VOCABULARY), k=tokens))) for text in prompts for _ in range(samples)]
    examples = [WeightedExample(text, written, draw.uniform(-1, 1), text) for text, written in rows]
    learning = partial(learn, policy, examples, GroupRelativeConfig(learning_rate=1e-5), 0, shared=shared)
    sample = partial(sampler.sample, prompts, n=samples, seed=0)
    return {"sampling": partial(timed, sample), "learning": partial(timed, learning)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and print the ratios."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.experiments.bench_teacher", description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="runs of each side [5]")
    parser.add_argument("--prompt", type=int, default=200, help="tokens of a prompt, about [200]")
    parser.add_argument("--samples", type=int, default=8, help="of each prompt [8]")
    parser.add_argument("--tokens", type=int, default=120, help="longest completion [120]")
    parser.add_argument("--ends", type=float, default=0.0, help="probability that a token ends a sample [0]")
    chosen = parser.parse_args(arguments)
    policy = open_policy(chosen.ends)
    words = [policy.tokenizer.decode([token]) for token in range(300, 400)]
    prompts = ["".join(random.Random(seed).choices(words, k=chosen.prompt)) for seed in range(2)]
    once, each = (sides(policy, prompts, chosen.samples, chosen.tokens, shared=shared) for shared in (True, False))
    for name in once:
        print(name)
        seconds = measure(("prompt read once", "for each sample"), (once[name], each[name]), chosen.pairs)
        ratios = [slow / fast for fast, slow in zip(*seconds, strict=True)]
        print(f"{name}: {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}] times as fast\n")


if __name__ == "__main__":
    main()
