"""Time a teacher that reads a prompt once for all its samples against one that reads it for each of them.

`python -m pipelines.experiments.bench_teacher`: random weights of SmolLM2-135M's size, two prompts, in pairs of
alternating order; with OMP_NUM_THREADS=1, seconds are those of the processor.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from functools import partial
from typing import Any

from pipelines.experiments.bench_bank import SMOLLM2, random_model, seconds_of
from pipelines.experiments.pairs import Side, compare

VOCABULARY: int = SMOLLM2["vocab_size"]


def open_policy(ends: float) -> Any:
    """Return a random policy whose tokens end a sample with the probability `ends`."""
    from transformers import AutoTokenizer

    from evaluation.common.checkpoints import Checkpoint, resolve_model
    from pipelines.process import prepare_process
    from teacher.policy import PolicyConfig, TeacherPolicy

    prepare_process()
    model = random_model()
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
    return {"sampling": partial(seconds_of, sample), "learning": partial(seconds_of, learning)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.experiments.bench_teacher", description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="runs of each side, at least 2 [5]")
    parser.add_argument("--prompt", type=int, default=200, help="tokens of a prompt, about [200]")
    parser.add_argument("--samples", type=int, default=8, help="of each prompt [8]")
    parser.add_argument("--tokens", type=int, default=120, help="longest completion [120]")
    parser.add_argument("--ends", type=float, default=0.0, help="probability that a token ends a sample [0]")
    parser.add_argument("--work", choices=("sampling", "learning"), action="append", help="timed [both]")
    chosen = parser.parse_args(arguments)
    policy = open_policy(chosen.ends)
    words = [policy.tokenizer.decode([token]) for token in range(300, 400)]
    prompts = ["".join(random.Random(seed).choices(words, k=chosen.prompt)) for seed in range(2)]
    once, each = (sides(policy, prompts, chosen.samples, chosen.tokens, shared=shared) for shared in (True, False))
    for name in chosen.work or once:
        print(name)
        compare({"prompt read once": once[name], "for each sample": each[name]}, chosen.pairs)


if __name__ == "__main__":
    main()
