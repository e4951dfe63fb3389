"""Time the LoRA bank: `python -m pipelines.experiments.bench_bank`.

It trains random updates in pairs of alternating order with a sequential PEFT loop, with the bank of another checkout,
and, where only upper blocks are adapted, with the same bank that computes the blocks below at every step. The speedup
is a geometric mean over pairs with its bootstrap interval; with OMP_NUM_THREADS=1, seconds are those of the processor.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # a worker runs this file with the modules of another checkout
    from pipelines.experiments.pairs import Side

ROOT = Path(__file__).resolve().parents[2]
SMOLLM2: dict[str, Any] = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
"""Shape of SmolLM2-135M."""
DEPTHS = {"all": (0.0, 1.0), "half": (0.5, 1.0), "third": (2 / 3, 1.0)}
"""Upper part of the model that is adapted."""
QUESTIONS, WORDS = 8, (6, 12)
"""Questions that all adapters are asked, and the range of their lengths in words."""
_RATE_ROWS = 1024
"""Of the matrix products that the machine's rate is measured on."""


class Workload(NamedTuple):
    """What an adapter is trained on: lines of random tokens."""

    lines: int
    lengths: tuple[int, int]
    """Range of a line's length in tokens."""
    share: int
    """Loss is on the last 1 / `share` of each line, as on a question's answer; 1 for all of it."""
    recipe: dict[str, Any]


DEMO = Workload(6, (8, 16), 1, {"rank": 8, "alpha": 16.0, "learning_rate": 5e-3, "epochs": 16, "batch_size": 16})
"""Sized like the demo's self-edits."""
_MLP = ("gate_proj", "up_proj", "down_proj")
_REAL = {"rank": 16, "alpha": 32.0, "learning_rate": 1e-3, "epochs": 8, "batch_size": 8, "target_modules": _MLP}
REAL = Workload(8, (20, 40), 4, _REAL)
"""Sized like those of a real small model."""


def random_model(shape: Mapping[str, Any] = SMOLLM2) -> Any:
    """Return a random Llama of some shape, frozen: nothing is fetched, and time does not depend on the weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**shape)).eval().requires_grad_(False)


def seconds_of(work: Callable[[], object]) -> float:
    """Return the seconds of some work: of the processor where one thread computes, which other load disturbs less."""
    import torch

    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    gc.collect()  # garbage of earlier runs is not timed
    begun = clock()
    work()
    return clock() - begun


def make_requests(workload: Workload, adapters: int, vocabulary: int, depth: tuple[float, float]) -> list[Any]:
    """Return updates of a part of the model."""
    from student.config import UpdateRecipe
    from student.updates import TrainingSequence, UpdateRequest

    generator, recipe = random.Random(0), UpdateRecipe.model_validate({**workload.recipe, "depth": depth})
    made = []
    for number in range(adapters):
        lengths = [generator.randint(*workload.lengths) for _ in range(workload.lines)]
        lines = [tuple(generator.randrange(vocabulary) for _ in range(length)) for length in lengths]
        loss = [tuple(place >= length - length // workload.share for place in range(length)) for length in lengths]
        sequences = tuple(TrainingSequence(line, mask) for line, mask in zip(lines, loss, strict=True))
        made.append(UpdateRequest(f"random#{number}", sequences, recipe, number))
    return made


def open_work(place: str | None, adapters: int, depth: str) -> tuple[Any, list[Any]]:
    """Return the frozen model of a directory with the demo's updates, or a random one of SmolLM2's size with its."""
    from pipelines.process import prepare_process

    prepare_process()
    from transformers import AutoModelForCausalLM

    if place is None:
        model, workload = random_model(), REAL
    else:
        model, workload = AutoModelForCausalLM.from_pretrained(place, dtype="float32").eval(), DEMO
    return model, make_requests(workload, adapters, model.get_input_embeddings().weight.shape[0], DEPTHS[depth])


def train(model: Any, requests: Sequence[Any], *, reuse: bool = True) -> tuple[float, list[Any]]:
    """Return the seconds of training in a bank that is open, and the results; RuntimeError if an update failed."""
    from student.bank.bank import LoraBank

    recipe, results = requests[0].recipe, list[Any]()
    with LoraBank(model, recipe.target_modules, depth=recipe.depth, base_digest="", reuse=reuse) as bank:
        seconds = seconds_of(lambda: results.extend(bank.train(requests)))
    if failed := [result for result in results if result.adapter is None]:
        raise RuntimeError(f"bench_bank: update {failed[0].key!r} failed, {failed[0].outcome}: {failed[0].detail}.")
    return seconds, results


def score(model: Any, adapters: Sequence[Any], *, reuse: bool) -> tuple[float, list[Any]]:
    """Return the seconds of asking each adapter the same questions in a bank that is open, and their scores."""
    from transformers import AutoTokenizer

    from evaluation.common.checkpoints import MICRO_MODELS
    from evaluation.exact_match import AnswerFormat
    from student.bank.bank import LoraBank

    tokenizer, questions, scores = AutoTokenizer.from_pretrained(MICRO_MODELS["micro-student"]), make_questions(), []
    with LoraBank(model, _MLP, base_digest="", reuse=reuse) as bank:
        work = partial(bank.score, adapters, [questions] * len(adapters), tokenizer, AnswerFormat())
        return seconds_of(lambda: scores.extend(work())), scores


def make_questions() -> list[Any]:
    """Return questions of random words with answers of one word."""
    from evaluation.tasks import Question

    generator, made = random.Random(0), []
    for _ in range(QUESTIONS):
        words = ["".join(generator.choices("aeioulnrst", k=4)) for _ in range(generator.randint(*WORDS))]
        made.append(Question(question=" ".join(words), answer=generator.choice(words)))
    return made


def change_apart(ours: Any, theirs: Any) -> float:
    """Return the distance of two adapters' changes B A, as a share of the second one's; each is layer -> (A, B)."""
    import torch

    one, other = (
        torch.cat([(b.double() @ a.double()).flatten() for _, (a, b) in sorted(factors.items())])
        for factors in (ours, theirs)
    )
    return float((one - other).norm() / other.norm())


def useful_flops(model: Any, requests: Sequence[Any]) -> float:
    """Return the FLOPs that the updates need in products with weights and factors, two for each multiply-add.

    The blocks below the lowest adapted one read each sequence once. Each epoch, the others and the head at labelled
    places go forward and backward to activations, the factors forward and backward to themselves and activations.
    """
    from student.bank.model import find_targets

    recipe = requests[0].recipe
    sizes = {name: layer.weight.numel() for name, layer in find_targets(model, "all-linear").items()}
    adapted = find_targets(model, recipe.target_modules, recipe.depth)
    lowest = min(int(name.split(".")[2]) for name in adapted)
    lower = sum(size for name, size in sizes.items() if int(name.split(".")[2]) < lowest)
    upper, head = sum(sizes.values()) - lower, model.get_output_embeddings().weight.numel()
    factors = recipe.rank * sum(layer.in_features + layer.out_features for layer in adapted.values())
    sequences = [sequence for request in requests for sequence in request.sequences]
    places, labels = (sum(map(count, sequences)) for count in (lambda s: len(s.tokens) - 1, lambda s: sum(s.loss_mask)))
    return float(places * (2 * lower + recipe.epochs * (4 * upper + 6 * factors)) + labels * recipe.epochs * 4 * head)


def matrix_rate(width: int, inner: int) -> float:
    """Return FLOPs a second of products as large as the model's, the best of a few."""
    import torch

    from student.bank.layers import frozen_product

    x, weight = torch.randn(_RATE_ROWS, width), torch.randn(inner, width)
    return 2.0 * _RATE_ROWS * width * inner / min(seconds_of(partial(frozen_product, x, weight)) for _ in range(20))


def bench_training(model: Any, requests: Sequence[Any], pairs: int) -> None:
    """Print seconds, speedups and differences of the bank, the same without reuse where that is another, and a loop."""
    from pipelines.experiments.pairs import compare, first_weights, train_sequentially

    starts, recipe = first_weights(model, requests), requests[0].recipe
    ours, (alone,) = train(model, requests)[1], train_sequentially(model, requests[:1], starts)
    print(f"bank against loop: changes of weights differ by {change_apart(ours[0].adapter.factors, alone):.1e} of them")
    sides: dict[str, Side] = {"bank": lambda: train(model, requests)[0]}
    if recipe.depth != DEPTHS["all"]:
        both = list(zip(ours, train(model, requests, reuse=False)[1], strict=True))
        losses = max(abs(x - y) / y for one, other in both for x, y in zip(one.losses, other.losses, strict=True))
        apart = max(change_apart(one.adapter.factors, other.adapter.factors) for one, other in both)
        print(
            f"reuse against without: losses differ by {losses:.1e} of them at most, changes of weights by {apart:.1e}"
        )
        sides["bank without reuse"] = lambda: train(model, requests, reuse=False)[0]
    sides["sequential PEFT loop"] = lambda: seconds_of(partial(train_sequentially, model, requests, starts))
    seconds = compare(sides, pairs, len(requests))
    flops, rate = useful_flops(model, requests), matrix_rate(model.config.hidden_size, model.config.intermediate_size)
    shares = ", ".join(f"{100 * flops / rate / statistics.median(taken):.0f} %" for taken in seconds)
    print(f"useful FLOPs an adapter: {flops / len(requests):.3g}; at the {rate:.3g}/s of large products {shares}")


def bench_scoring(model: Any, requests: Sequence[Any], pairs: int) -> None:
    """Print the same of asking adapters that change something, and the base, the same questions."""
    from dataclasses import replace

    from pipelines.experiments.pairs import compare, first_weights

    adapters: list[Any] = [
        replace(start, factors={name: (a, a.new_full(b.shape, 1e-3)) for name, (a, b) in start.factors.items()})
        for start in first_weights(model, requests)
    ]
    ask = partial(score, model, [*adapters, None])
    found = [[each.log_probability for one in ask(reuse=reuse)[1] for each in one] for reuse in (True, False)]
    apart = max(abs((x - y) / y) for x, y in zip(*found, strict=True))
    print(f"reuse against without: log-probabilities differ by {apart:.1e} of them at most")
    compare({"with reuse": lambda: ask(reuse=True)[0], "each whole": lambda: ask(reuse=False)[0]}, pairs, len(adapters))


def bench_checkouts(other: Path, options: Sequence[str], pairs: int, adapters: int) -> None:
    """Print seconds and speedup of this tree's bank over that of another checkout, each run in its own process."""
    from pipelines.experiments.pairs import compare

    digests: set[str] = set()

    def side(tree: Path) -> float:
        command = [sys.executable, "-P", __file__, "--worker", *options]
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise RuntimeError(f"bench_bank: the bank of {tree} failed; its error is above. Is it a checkout?")
        seconds, digest = json.loads(done.stdout)
        digests.add(digest)
        return float(seconds)

    compare({"this tree": partial(side, ROOT), str(other): partial(side, other.resolve())}, pairs, adapters)
    print(f"Their adapters are {'bit-equal' if len(digests) == 1 else 'not equal'}.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.experiments.bench_bank", description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="runs of each side, at least 2 [5]")
    parser.add_argument("--against", type=Path, help="checkout to compare with [a sequential PEFT loop]")
    parser.add_argument("--model", default="micro-student", help="directory, hub name or micro model [micro-student]")
    parser.add_argument("--adapters", type=int, default=64, help="trained in each run [64]")
    parser.add_argument("--workload", choices=("smollm2", "smollm2-scoring"), help="a random model of its size instead")
    parser.add_argument("--depth", choices=tuple(DEPTHS), help="adapted upper part [all; half of smollm2]")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.pairs < 2:
        parser.error("--pairs must be at least 2")
    if chosen.against is not None and chosen.workload == "smollm2-scoring":
        parser.error("--against compares training; leave it out, or take --workload smollm2")
    if chosen.worker:
        # An editable installation would import this tree's modules.
        sys.meta_path[:] = [e for e in sys.meta_path if not getattr(e, "__module__", "").startswith("__editable__")]
    from evaluation.common.checkpoints import resolve_model

    depth = chosen.depth or ("half" if chosen.workload else "all")
    if chosen.against is not None:
        options = ["--model", chosen.model, "--adapters", str(chosen.adapters), "--depth", depth]
        options += ["--workload", chosen.workload] if chosen.workload else []
        bench_checkouts(chosen.against, options, chosen.pairs, chosen.adapters)
        return
    work = open_work(None if chosen.workload else resolve_model(chosen.model), chosen.adapters, depth)
    if chosen.worker:
        digest = " ".join(result.adapter.digest for result in train(*work)[1])  # a warm-up, too
        print(json.dumps([train(*work)[0], digest]))
    elif chosen.workload == "smollm2-scoring":
        bench_scoring(*work, chosen.pairs)
    else:
        bench_training(*work, chosen.pairs)


if __name__ == "__main__":
    main()
