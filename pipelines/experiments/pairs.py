"""What benchmarks share: sides that are timed in pairs of alternating order, and a sequential PEFT loop as one side."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

Side = Callable[[], float]
"""Does its work once and returns the seconds."""


def measure(names: Sequence[str], sides: Sequence[Side], pairs: int) -> tuple[list[float], ...]:
    """Return the seconds of each side; every other time they run in reverse order."""
    seconds: tuple[list[float], ...] = tuple([] for _ in sides)
    for pair in range(pairs):
        for i in range(len(sides)) if pair % 2 == 0 else reversed(range(len(sides))):
            seconds[i].append(sides[i]())
        told = (f"{name} {taken[-1]:.3g} s" for name, taken in zip(names, seconds, strict=True))
        print(f"pair {pair + 1} of {pairs}: {', '.join(told)}", flush=True)
    return seconds


def speed_ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Return the speedup: geometric mean over pairs and its 95 % bootstrap interval."""
    from evaluation.statistics import bootstrap_mean

    logs = [math.log(slower / faster) for faster, slower in zip(ours, theirs, strict=True)]
    found = bootstrap_mean(logs, bounds=(-10.0, 10.0))
    return math.exp(found.mean), math.exp(found.low), math.exp(found.high)


def compare(sides: Mapping[str, Side], pairs: int, items: int = 1) -> tuple[list[float], ...]:
    """Time the sides and print their seconds for each of `items`, and how much faster the first is than each other."""
    from pipelines.reports.format import markdown_table

    names, rows = list(sides), []
    seconds = measure(names, list(sides.values()), pairs)
    for name, taken in zip(names, seconds, strict=True):
        middle, *ends = (one / items for one in (statistics.median(taken), min(taken), max(taken)))
        rows.append([name, f"{middle:.3g} [{ends[0]:.3g}, {ends[1]:.3g}]"])
    print(markdown_table(["side", "seconds each, median [lowest, highest]"], rows))
    for name, taken in zip(names[1:], seconds[1:], strict=True):
        print("speedup of {} over {}: {:.2f} [{:.2f}, {:.2f}]".format(names[0], name, *speed_ratio(seconds[0], taken)))
    return seconds


def first_weights(model: Any, requests: Sequence[Any]) -> list[Any]:
    """Return the adapters that the bank starts from."""
    from student.bank.bank import LoraBank

    recipe = requests[0].recipe
    with LoraBank(model, recipe.target_modules, depth=recipe.depth, base_digest="") as bank:
        return [bank.no_change(request.recipe, request.seed) for request in requests]


def train_sequentially(model: Any, requests: Sequence[Any], starts: Sequence[Any]) -> list[dict[str, tuple[Any, Any]]]:
    """Return layer -> (A, B) of each update, trained sequentially with PEFT and fused AdamW.

    Initialisation (`starts`), sequences, order, batch size, schedule and clipping are the bank's; batches are padded.
    """
    from peft import LoraConfig, get_peft_model

    recipe = requests[0].recipe
    config = LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=list(starts[0].factors))
    wrapped: Any = get_peft_model(model, config, adapter_name="update-0").eval()
    trained = []
    for number, (request, start) in enumerate(zip(requests, starts, strict=False)):
        if number:
            wrapped.add_adapter(f"update-{number}", config)
            wrapped.set_adapter(f"update-{number}")
            wrapped.delete_adapter(f"update-{number - 1}")
        trained.append(_train_adapter(wrapped, f"update-{number}", request, start))
    wrapped.unload()
    return trained


def _train_adapter(wrapped: Any, name: str, request: Any, start: Any) -> dict[str, tuple[Any, Any]]:
    import torch
    from transformers import get_linear_schedule_with_warmup

    from student.bank.training import sequence_order

    recipe, base = request.recipe, wrapped.base_model.model
    modules = [(layer, base.get_submodule(layer)) for layer in start.factors]
    weights = {layer: (module.lora_A[name].weight, module.lora_B[name].weight) for layer, module in modules}
    for layer, (a, b) in start.factors.items():
        weights[layer][0].data.copy_(a)
        weights[layer][1].data.copy_(b)
    parameters = [weight for pair in weights.values() for weight in pair]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.0, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, recipe.total_steps(len(request.sequences)))
    rows = [torch.tensor(sequence.tokens) for sequence in request.sequences]
    with_loss = [row.where(torch.tensor(s.loss_mask), -100) for row, s in zip(rows, request.sequences, strict=True)]
    pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    for order in sequence_order(len(rows), request.seed, recipe.epochs):
        for begin in range(0, len(order), recipe.batch_size):
            chosen = order[begin : begin + recipe.batch_size]
            tokens, labels = pad([rows[i] for i in chosen]), pad([with_loss[i] for i in chosen], padding_value=-100)
            mask = pad([torch.ones_like(rows[i]) for i in chosen])
            wrapped(input_ids=tokens, attention_mask=mask, labels=labels, use_cache=False).loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return {layer: (a.detach().clone(), b.detach().clone()) for layer, (a, b) in weights.items()}
