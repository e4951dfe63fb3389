"""The same update made the usual way: PEFT around the model, torch's AdamW, transformers' schedules, one job alone."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy, kl_div
from transformers import get_linear_schedule_with_warmup

from student.bank.layers import FactorShape, FlatLayout, initial_factors
from student.bank.model import find_targets
from student.bank.training import sequence_order
from student.config import MAX_GRADIENT_NORM
from student.updates import TrainingSequence, UpdateRequest

Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]


def starting_point(model: Any, job: UpdateRequest) -> Factors:
    """The initial factors in PEFT's orientation; zeros for B."""
    if job.initial is not None:
        return dict(job.initial.factors)
    targets = find_targets(model, job.recipe.target_modules, job.recipe.depth)
    layout = FlatLayout({n: FactorShape(m.in_features, m.out_features) for n, m in targets.items()}, job.recipe.rank)
    views = layout.views(initial_factors(layout, job.recipe.rank, job.seed, list(targets))[None])
    return {name: (a[0], b[0].t()) for name, (a, b) in views.items()}


def train_alone(model: Any, job: UpdateRequest, start: Factors) -> tuple[Factors, list[float]]:
    """Return the factors and losses of one PEFT training of `model`, which is used up, from the factors `start`."""
    recipe = job.recipe
    blocks, (low, high) = model.config.num_hidden_layers, recipe.depth
    every = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        target_modules=every if recipe.target_modules == "all-linear" else list(recipe.target_modules),
        layers_to_transform=[i for i in range(blocks) if low <= (i + 0.5) / blocks <= high],
        task_type="CAUSAL_LM",
    )
    peft_model = get_peft_model(model, config).to(model.dtype)
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in peft_model.named_modules()
        if hasattr(module, "lora_A")
    }
    assert set(layers) == set(start)
    with torch.no_grad():
        for name, layer in layers.items():
            layer.lora_A["default"].weight.copy_(start[name][0])
            layer.lora_B["default"].weight.copy_(start[name][1])
    peft_model.eval()
    parameters = [p for p in peft_model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, betas=recipe.adam_betas, weight_decay=0.0)
    total = recipe.total_steps(len(job.sequences))
    schedule = get_linear_schedule_with_warmup(optimizer, recipe.warmup_steps, total)
    losses: list[float] = []
    for order in sequence_order(len(job.sequences), job.seed, recipe.epochs):
        for i in range(0, len(order), recipe.batch_size):
            if len(losses) == total:
                break
            chosen = [job.sequences[j] for j in order[i : i + recipe.batch_size]]
            ids, mask, labels = _pad(chosen)
            logits = peft_model(input_ids=ids, attention_mask=mask).logits
            if recipe.objective == "context_distillation":
                loss = kl_div(
                    logits[:, :-1][labels[:, 1:] >= 0].log_softmax(-1),
                    _with_passage(peft_model, chosen).log_softmax(-1),
                    reduction="batchmean",
                    log_target=True,
                )
            else:
                loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    trained = {
        name: (layer.lora_A["default"].weight.detach().clone(), layer.lora_B["default"].weight.detach().clone())
        for name, layer in layers.items()
    }
    return trained, losses


@torch.no_grad()
def _with_passage(peft_model: Any, sequences: list[TrainingSequence]) -> torch.Tensor:
    """Return the base's logits (labels, V) with the passage in front, a sequence at a time."""
    found = []
    with peft_model.disable_adapter():
        for sequence in sequences:
            logits = peft_model(input_ids=torch.tensor([sequence.behind])).logits[0]
            shift = len(sequence.behind) - len(sequence.tokens)
            found += [logits[i + shift - 1] for i, flag in enumerate(sequence.loss_mask) if flag and i]
    return torch.stack(found)


def _pad(sequences: list[TrainingSequence]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    rows = [torch.tensor(sequence.tokens) for sequence in sequences]
    labels = [row.masked_fill(~torch.tensor(s.loss_mask), -100) for row, s in zip(rows, sequences, strict=True)]
    return pad(rows), pad(list(map(torch.ones_like, rows))), pad(labels, padding_value=-100)
