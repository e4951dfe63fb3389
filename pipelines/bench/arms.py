"""The arms of the benchmark: ways to train the same jobs, each with the jobs that it is timed on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from evaluation.errors import UpdateError
from pipelines.bench.published import published_width, train_published
from pipelines.bench.records import BankBench
from pipelines.bench.sequential import train_sequentially
from pipelines.bench.workloads import Workload, heaviest_job, spread_sample, typical_job
from student.adapters import Adapter
from student.lora_bank import LoraBank
from student.updates import UpdateJob, UpdateResult

Factors = Mapping[str, tuple[Tensor, Tensor]]
"""Layer -> A (R, D_in) and B (D_out, R)."""

PUBLISHED, SEQUENTIAL = "published", "sequential"
_FEW = 16
"""Adapters that a bank of fewer slots is timed on: it is slow, and the time for one is what is wanted."""


class Places(NamedTuple):
    """Token places that a run computed."""

    tokens: int
    padded_tokens: int


class Arm(NamedTuple):
    """One way to train."""

    name: str
    label: str
    jobs: tuple[UpdateJob, ...]
    """Timed together, in each pair."""
    warm_up: tuple[UpdateJob, ...]
    """Trained once before, and the memory measured; as much memory as the timed work takes."""
    run: Callable[[Sequence[UpdateJob]], Places]


def bank_name(slots: int, jobs: int | None = None) -> str:
    """Return the name of a bank's arm, of one on fewer jobs than there are where `jobs` is given."""
    return f"bank-{slots}" if jobs is None else f"bank-{slots}-of-{jobs}"


def growth_counts(adapters: int) -> tuple[int, ...]:
    """Return the numbers of candidates, below all of them, at which growth is measured."""
    return tuple(sorted({count for count in (adapters // 4, adapters // 2) if count >= 1} - {adapters}))


def train_in_bank(workload: Workload, slots: int, jobs: Sequence[UpdateJob]) -> list[UpdateResult]:
    """Return what a bank of `slots` makes of the jobs; opening and closing the bank is part of the work.

    Raises:
        UpdateError: An update failed: times of failed ones would mean nothing.
    """
    recipe, model = jobs[0].recipe, workload.student.model
    with LoraBank(
        model, recipe.target_modules, depth=recipe.depth, max_slots=slots, base_digest=workload.digest
    ) as bank:
        results = bank.train(jobs)
    for result in results:
        if result.adapter is None:
            raise UpdateError(
                f"benchmark: update {result.key!r} ended as {result.outcome.value}: {result.detail}. "
                "Choose a workload whose updates succeed."
            )
    return results


def build_arms(bench: BankBench, workload: Workload) -> list[Arm]:
    """Return all arms; those that are compared with each other most closely stand next to each other."""
    largest = bench.sizes[-1]
    arms = [_bank(workload, largest, workload.jobs, bank_name(largest)), _sequential(workload)]
    if bench.published:
        arms.insert(0, _published(workload))
    for count in growth_counts(len(workload.jobs)):
        arms.append(_bank(workload, largest, spread_sample(workload.jobs, count), bank_name(largest, count)))
    for slots in reversed(bench.sizes[:-1]):
        jobs = workload.jobs if slots >= _FEW else spread_sample(workload.jobs, _FEW)
        arms.append(_bank(workload, slots, jobs, bank_name(slots)))
    return arms


def _bank(workload: Workload, slots: int, jobs: tuple[UpdateJob, ...], name: str) -> Arm:
    def run(chosen: Sequence[UpdateJob]) -> Places:
        results = train_in_bank(workload, slots, chosen)
        return Places(sum(r.tokens for r in results), sum(r.padded_tokens for r in results))

    return Arm(name, f"bank, K = {slots}", jobs, jobs, run)


def _sequential(workload: Workload) -> Arm:
    def run(chosen: Sequence[UpdateJob]) -> Places:
        trained = train_sequentially(workload.student.model, chosen)
        return Places(sum(one.tokens for one in trained), sum(one.padded_tokens for one in trained))

    return Arm(SEQUENTIAL, "sequential PEFT loop", workload.jobs, (heaviest_job(workload.jobs),), run)


def _published(workload: Workload) -> Arm:
    model, tokenizer = workload.student
    pad_token = next((i for i in (tokenizer.eos_token_id, tokenizer.pad_token_id) if i is not None), 0)

    def run(chosen: Sequence[UpdateJob]) -> Places:
        trained = [train_published(model, job, pad_token) for job in chosen]
        return Places(sum(one.tokens for one in trained), sum(one.padded_tokens for one in trained))

    job = typical_job(workload.jobs)
    one_pass = replace(job, recipe=job.recipe.model_copy(update={"epochs": 1}))
    return Arm(PUBLISHED, f"published loop (lines of {published_width(model)})", (job,), (one_pass,), run)


def factor_difference(workload: Workload, slots: int, trained: Adapter) -> float:
    """Return how far apart bank and sequential loop end from the same start: the arms do the same work.

    Args:
        workload: Its typical job is trained.
        slots: Size of the bank.
        trained: Any adapter from the bank; gives the layers and their shapes.

    Returns:
        Norm of the difference of the two weight changes B A over the norm of the sequential loop's.
    """
    job = typical_job(workload.jobs)
    generator = torch.Generator().manual_seed(job.seed)
    shapes = {layer: (a.shape[1], b.shape[0]) for layer, (a, b) in trained.factors.items()}
    factors = {
        layer: (
            torch.empty(job.recipe.rank, d_in).uniform_(-(d_in**-0.5), d_in**-0.5, generator=generator),
            torch.zeros(d_out, job.recipe.rank),
        )
        for layer, (d_in, d_out) in shapes.items()
    }
    job = replace(job, initial=Adapter(factors, job.recipe.rank, job.recipe.alpha, workload.digest))
    in_bank = train_in_bank(workload, slots, [job])[0].adapter
    (alone,) = train_sequentially(workload.student.model, [job])
    assert in_bank is not None
    return relative_difference(in_bank.factors, alone.factors)


def relative_difference(got: Factors, wanted: Factors) -> float:
    """Return how far the weight change B A of all layers is from the wanted one, over the norm of the wanted one."""
    change = _change(wanted)
    return float((_change(got) - change).norm() / change.norm())


def _change(factors: Factors) -> Tensor:
    """Return the products B A of all layers in one vector."""
    return torch.cat([(b.double() @ a.double()).flatten() for _, (a, b) in sorted(factors.items())])
