"""The first rival of the bank: a clean sequential PEFT loop with dynamic padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import get_constant_schedule_with_warmup, get_linear_schedule_with_warmup

from student.banked_model import find_targets
from student.batching import sequence_order
from student.updates import UpdateJob

NO_LOSS = -100
"""Label that carries no loss."""
_PREFIX = "base_model.model."


class TrainedAlone(NamedTuple):
    """One adapter that a rival trained."""

    factors: dict[str, tuple[Tensor, Tensor]]
    """Layer -> A (R, D_in) and B (D_out, R), on the CPU."""
    losses: list[float]
    """Of each optimizer step, in nats a label."""
    tokens: int
    """Token places computed that were not padding, over all steps."""
    padded_tokens: int
    """Token places computed."""


def train_sequentially(model: Any, jobs: Sequence[UpdateJob]) -> list[TrainedAlone]:
    """Return the adapters of all jobs, trained one after another as a careful user of PEFT would.

    The base is loaded already and wrapped once; each job adds a fresh adapter and drops the one before it
    (`add_adapter`, `delete_adapter`), which takes less time than wrapping the base anew. Steps are those of the bank:
    the same lines in the same order, the same batch size, schedule and clipping, loss on the same labels. Lines are
    padded to the longest of their step. AdamW is torch's fused one, several times faster here than the default.
    """
    wrapped: Any = None
    trained = []
    try:
        for number, job in enumerate(jobs):
            name = f"job-{number}"
            torch.manual_seed(job.seed)
            if wrapped is None:
                wrapped = get_peft_model(model, lora_config(model, job), adapter_name=name).eval()
            else:
                wrapped.add_adapter(name, lora_config(model, job))
                wrapped.set_adapter(name)
                wrapped.delete_adapter(f"job-{number - 1}")
            trained.append(_train_adapter(wrapped, name, job))
    finally:
        if wrapped is not None:
            wrapped.unload()
    return trained


def lora_config(model: Any, job: UpdateJob) -> LoraConfig:
    """Return PEFT's configuration for a job's recipe on a model."""
    recipe = job.recipe
    targets = list(find_targets(model, recipe.target_modules, recipe.depth))
    return LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=targets, task_type="CAUSAL_LM")


def _train_adapter(wrapped: Any, name: str, job: UpdateJob) -> TrainedAlone:
    """Train the active adapter on one job."""
    recipe, layers = job.recipe, _layers(wrapped)
    if job.initial is not None:
        _copy_into(layers, name, job)
    parameters = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters,
        lr=recipe.learning_rate,
        betas=recipe.adam_betas,
        eps=recipe.adam_epsilon,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    total = recipe.total_steps(len(job.sequences))
    if recipe.schedule == "linear":
        schedule = get_linear_schedule_with_warmup(optimizer, recipe.warmup_steps, total)
    else:
        schedule = get_constant_schedule_with_warmup(optimizer, recipe.warmup_steps)
    losses: list[Tensor] = []
    places = padded = 0
    for ids, mask, labels, lengths in _steps(job, total, parameters[0].device):
        loss = wrapped(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        loss.backward()
        if recipe.max_gradient_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, recipe.max_gradient_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        places += lengths
        padded += ids.numel()
    return TrainedAlone(trained_factors(wrapped, name), torch.stack(losses).tolist(), places, padded)


def _steps(job: UpdateJob, total: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
    """Yield ids, attention mask and labels (N, T) of each optimizer step, with the number of places that are tokens."""
    size = job.recipe.batch_size
    ids = [torch.tensor(sequence.tokens) for sequence in job.sequences]
    labels = [
        row.masked_fill(~torch.tensor(sequence.loss_mask), NO_LOSS)
        for row, sequence in zip(ids, job.sequences, strict=True)
    ]
    done = 0
    for order in sequence_order(len(ids), job.seed, job.recipe.epochs):
        for start in range(0, len(order), size):
            if done == total:
                return
            chosen = order[start : start + size]
            lengths = torch.tensor([len(ids[i]) for i in chosen])
            rows = pad_sequence([ids[i] for i in chosen], batch_first=True)
            wanted = pad_sequence([labels[i] for i in chosen], batch_first=True, padding_value=NO_LOSS)
            mask = (torch.arange(rows.shape[1]) < lengths[:, None]).long()
            yield rows.to(device), mask.to(device), wanted.to(device), int(lengths.sum())
            done += 1


def trained_factors(wrapped: Any, name: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Return an adapter's A and B by layer as they are now, on the CPU."""
    return {layer: (_kept(part.lora_A[name]), _kept(part.lora_B[name])) for layer, part in _layers(wrapped).items()}


def _layers(wrapped: Any) -> dict[str, Any]:
    """Return PEFT's layers by their name in the base."""
    return {name.removeprefix(_PREFIX): module for name, module in wrapped.named_modules() if hasattr(module, "lora_A")}


def _copy_into(layers: dict[str, Any], name: str, job: UpdateJob) -> None:
    """Set the factors to those that the job continues from."""
    assert job.initial is not None
    with torch.no_grad():
        for layer, (a, b) in job.initial.factors.items():
            layers[layer].lora_A[name].weight.copy_(a)
            layers[layer].lora_B[name].weight.copy_(b)


def _kept(factor: Any) -> Tensor:
    """Return a factor as it is now, on the CPU."""
    kept: Tensor = factor.weight.detach().cpu().clone()
    return kept
