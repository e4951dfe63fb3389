"""Time what the bank saves by reading blocks below the lowest adapted one once: `bench_bank --workload smollm2`.

The model has the shape of SmolLM2-135M and random weights, so that nothing is fetched; time does not depend on them.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from pipelines.experiments.pairs import Side, first_weights, measure, speed_ratio, timed, train_sequentially

SHAPE: dict[str, Any] = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
DEPTHS = {"half": (0.5, 1.0), "third": (2 / 3, 1.0)}
"""Upper part of the model that is adapted."""
LINES, LENGTHS = 8, (20, 40)
"""Training lines of an update, and the range of their lengths in tokens."""
RECIPE: dict[str, Any] = {
    "rank": 16,
    "alpha": 32.0,
    "learning_rate": 1e-3,
    "epochs": 8,
    "batch_size": 8,
    "target_modules": ("gate_proj", "up_proj", "down_proj"),
}
QUESTIONS, WORDS = 8, (6, 12)
"""Questions that all adapters are asked, and the range of their lengths in words."""
_RATE_ROWS = 1024
"""Of the matrix products that the machine's rate is measured on."""


def open_model(shape: dict[str, Any]) -> Any:
    """Return a random Llama of some shape, frozen."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**shape)).eval().requires_grad_(False)


def make_updates(adapters: int, vocabulary: int, depth: tuple[float, float]) -> list[Any]:
    """Return updates on random tokens with loss on the last quarter of each line, as on a question's answer."""
    from student.config import UpdateRecipe
    from student.updates import TrainingSequence, UpdateRequest

    generator, recipe = random.Random(0), UpdateRecipe.model_validate({**RECIPE, "depth": depth})
    made = []
    for number in range(adapters):
        lines = [[generator.randrange(vocabulary) for _ in range(generator.randint(*LENGTHS))] for _ in range(LINES)]
        sequences = tuple(TrainingSequence(tuple(line), _on_answer(len(line))) for line in lines)
        made.append(UpdateRequest(f"random#{number}", sequences, recipe, number))
    return made


def _on_answer(tokens: int) -> tuple[bool, ...]:
    return tuple(place >= tokens - tokens // 4 for place in range(tokens))


def train(model: Any, requests: Sequence[Any], *, reuse: bool) -> tuple[float, list[Any]]:
    """Return the seconds of training in a bank that is open, and the results; RuntimeError if an update failed."""
    from student.bank.bank import LoraBank

    recipe = requests[0].recipe
    with LoraBank(model, recipe.target_modules, depth=recipe.depth, base_digest="", reuse=reuse) as bank:
        begun = time.perf_counter()
        results = bank.train(requests)
        seconds = time.perf_counter() - begun
    if failed := [result for result in results if result.adapter is None]:
        raise RuntimeError(f"bench_reuse: update {failed[0].key!r} failed, {failed[0].outcome}: {failed[0].detail}.")
    return seconds, results


def score(
    model: Any, adapters: Sequence[Any], questions: Sequence[Any], tokenizer: Any, *, reuse: bool
) -> tuple[float, list[Any]]:
    """Return the seconds of asking each adapter all questions in a bank that is open, and the scores."""
    from evaluation.exact_match import AnswerFormat
    from student.bank.bank import LoraBank

    with LoraBank(model, RECIPE["target_modules"], base_digest="", reuse=reuse) as bank:
        begun = time.perf_counter()
        scores = bank.score(adapters, [questions] * len(adapters), tokenizer, AnswerFormat())
        return time.perf_counter() - begun, scores


def make_questions(seed: int) -> list[Any]:
    """Return questions of random words with answers of one word."""
    from evaluation.tasks import Question

    generator, made = random.Random(seed), []
    for _ in range(QUESTIONS):
        words = ["".join(generator.choices("aeioulnrst", k=4)) for _ in range(generator.randint(*WORDS))]
        made.append(Question(question=" ".join(words), answer=generator.choice(words)))
    return made


def change_apart(ours: Any, theirs: Any) -> float:
    """Return the distance of two adapters' changes B A, as a share of the second one's; each is layer -> (A, B)."""
    pairs = [
        (b.double() @ a.double(), theirs[name][1].double() @ theirs[name][0].double()) for name, (a, b) in ours.items()
    ]
    apart, size = (
        sum(float(each.square().sum()) for each in part) for part in ([x - y for x, y in pairs], [y for _, y in pairs])
    )
    return float((apart / size) ** 0.5)


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
    return 2.0 * _RATE_ROWS * width * inner / min(timed(partial(frozen_product, x, weight)) for _ in range(20))


def bench_training(model: Any, requests: Sequence[Any], pairs: int) -> None:
    """Print seconds, ratios and differences of the three sides."""
    config = model.config
    starts = first_weights(model, requests)
    (_, ours), (_, whole) = (train(model, requests, reuse=reuse) for reuse in (True, False))
    losses = max(
        abs(x - y) / y
        for one, other in zip(ours, whole, strict=True)
        for x, y in zip(one.losses, other.losses, strict=True)
    )
    apart = max(
        change_apart(one.adapter.factors, other.adapter.factors) for one, other in zip(ours, whole, strict=True)
    )
    (alone,) = train_sequentially(model, requests[:1], starts)
    print(f"reuse against without: losses differ by {losses:.1e} of them at most, changes of weights by {apart:.1e}; ")
    print(f"bank against loop: changes of weights by {change_apart(ours[0].adapter.factors, alone):.1e}")

    def bank(reuse: bool) -> float:
        return train(model, requests, reuse=reuse)[0]

    loop = partial(timed, partial(train_sequentially, model, requests, starts))
    seconds = _report(
        ("bank with reuse", "bank without", "sequential PEFT loop"),
        (partial(bank, True), partial(bank, False), loop),
        pairs,
    )
    flops, rate = useful_flops(model, requests), matrix_rate(config.hidden_size, config.intermediate_size)
    shares = ", ".join(f"{100 * flops / rate / statistics.median(taken):.0f} %" for taken in seconds)
    print(f"useful FLOPs an adapter: {flops / len(requests):.3g}; at the {rate:.3g}/s of large products {shares}")


def bench_scoring(model: Any, adapters: Sequence[Any], pairs: int) -> None:
    """Print the same of asking adapters the same questions."""
    from transformers import AutoTokenizer

    from evaluation.common.checkpoints import MICRO_MODELS

    tokenizer = AutoTokenizer.from_pretrained(MICRO_MODELS["micro-student"])
    ask = partial(score, model, [*adapters, None], make_questions(0), tokenizer)
    ours, whole = (ask(reuse=reuse)[1] for reuse in (True, False))
    logs = [[each.log_probability for scores in found for each in scores] for found in (ours, whole)]
    apart = max(abs((x - y) / y) for x, y in zip(*logs, strict=True))
    print(f"reuse against without: log-probabilities differ by {apart:.1e} of them at most")
    _report(("with reuse", "each whole"), (lambda: ask(reuse=True)[0], lambda: ask(reuse=False)[0]), pairs)


def _report(names: Sequence[str], sides: Sequence[Side], pairs: int) -> Sequence[list[float]]:
    seconds = measure(names, sides, pairs)
    for name, taken in zip(names[1:], seconds[1:], strict=True):
        print("{} over {}: {:.2f} [{:.2f}, {:.2f}]".format(names[0], name, *speed_ratio(seconds[0], taken)))
    return seconds


def run(workload: str, depth: str, adapters: int, pairs: int, shape: dict[str, Any] | None = None) -> None:
    """Run the benchmark of `smollm2` or `smollm2-scoring` with a depth of `DEPTHS`."""
    from pipelines.process import prepare_process

    prepare_process()
    model = open_model(shape or SHAPE)
    requests = make_updates(adapters, model.config.vocab_size, DEPTHS[depth])
    if workload == "smollm2":
        bench_training(model, requests, pairs)
    else:
        bench_scoring(model, _moved(first_weights(model, requests)), pairs)


def _moved(starts: Sequence[Any]) -> list[Any]:
    """Return adapters that change something, as trained ones do."""
    from dataclasses import replace

    return [
        replace(start, factors={name: (a, a.new_full(b.shape, 1e-3)) for name, (a, b) in start.factors.items()})
        for start in starts
    ]
