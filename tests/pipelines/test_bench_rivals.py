"""The rivals do the work that they are said to do: the sequential loop the bank's own, the published loop SEAL's."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from evaluation.checkpoints import Checkpoint, model_digest
from evaluation.errors import UpdateError
from pipelines.bench.arms import build_arms, factor_difference, relative_difference, train_in_bank
from pipelines.bench.common import demo_config
from pipelines.bench.published import published_width, train_published
from pipelines.bench.records import BankBench
from pipelines.bench.sequential import train_sequentially
from pipelines.bench.workloads import Workload, synthetic_jobs
from student.adapters import Adapter
from student.config import UpdateRecipe
from student.sequences import TrainingSequence
from student.updates import UpdateJob
from tests.student.tiny import BOS, EOS, VOCABULARY, byte_tokenizer, tiny_model

PLAIN = UpdateRecipe(rank=4, epochs=3, batch_size=2)
RECIPES = (
    PLAIN,
    UpdateRecipe(rank=2, alpha=5.0, learning_rate=2e-3, epochs=2, batch_size=3, warmup_steps=2, weight_decay=0.1),
    UpdateRecipe(rank=3, epochs=2, batch_size=8, schedule="constant", max_gradient_norm=None),
    UpdateRecipe(rank=4, epochs=9, batch_size=2, max_steps=5, max_gradient_norm=0.1, target_modules="all-linear"),
)


def mixed_jobs(model: Any) -> list[UpdateJob]:
    """Jobs that differ in everything a recipe may choose, each with a start of its own; one has loss on half a line."""
    made = []
    for number, recipe in enumerate(RECIPES):
        (job,) = synthetic_jobs(recipe, VOCABULARY, 256, adapters=1, lines=5, tokens=12, seed=number)
        if number == 1:
            half = [TrainingSequence(s.tokens, tuple(i > 5 for i in range(len(s.tokens)))) for s in job.sequences]
            job = replace(job, sequences=tuple(half))
        made.append(replace(job, key=f"job-{number}", initial=start(model, recipe, number)))
    return made


def start(model: Any, recipe: UpdateRecipe, seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    factors = {
        name: (
            0.1 * torch.randn(recipe.rank, layer.in_features, generator=generator),
            0.1 * torch.randn(layer.out_features, recipe.rank, generator=generator),
        )
        for name, layer in layers.items()
    }
    return Adapter(factors, recipe.rank, recipe.alpha, "")


def workload(jobs: tuple[UpdateJob, ...] = (), model: Any = None) -> Workload:
    student = tiny_model() if model is None else model
    return Workload("tiny", Checkpoint(student, byte_tokenizer()), model_digest(student), jobs)


def change(factors: Any) -> Tensor:
    return torch.cat([(b @ a).flatten() for _, (a, b) in sorted(factors.items())])


def test_sequential_loop_and_bank_end_with_the_same_factors() -> None:
    model = tiny_model()
    jobs = mixed_jobs(model)
    results = train_in_bank(workload(model=model), 4, jobs)
    alone = train_sequentially(model, jobs)
    assert len(alone) == len(jobs)
    for job, result, one in zip(jobs, results, alone, strict=True):
        assert result.adapter is not None
        assert job.initial is not None
        wanted, begun = change(one.factors), change(job.initial.factors)
        moved = float((wanted - begun).norm())
        assert moved > 0.01 * float(begun.norm())
        assert float((change(result.adapter.factors) - wanted).norm()) < 1e-4 * moved
        assert one.losses == pytest.approx(result.losses, rel=1e-5)
        assert len(one.losses) == result.steps == job.recipe.total_steps(5)


def test_factor_difference_is_rounding_for_equal_work_and_large_for_other_work() -> None:
    made = workload(synthetic_jobs(PLAIN, VOCABULARY, 256, adapters=3, lines=4, tokens=10, seed=0))
    (result,) = train_in_bank(made, 2, made.jobs[:1])
    assert result.adapter is not None
    assert 0 < factor_difference(made, 2, result.adapter) < 1e-4
    job = replace(made.jobs[0], initial=start(made.student.model, PLAIN, 0))
    shorter = PLAIN.model_copy(update={"epochs": PLAIN.epochs - 1})
    whole, cut = train_sequentially(made.student.model, [job, replace(job, recipe=shorter)])
    assert relative_difference(cut.factors, whole.factors) > 0.01
    assert relative_difference(whole.factors, whole.factors) == 0.0


def test_rivals_leave_the_base_as_it_was_and_say_nothing() -> None:
    model = tiny_model()
    (job,) = synthetic_jobs(PLAIN, VOCABULARY, 256, adapters=1, lines=2, tokens=10, seed=0)
    digest, names, modules = model_digest(model), set(dict(model.named_parameters())), dict(model.named_modules())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for _ in range(2):
            train_sequentially(model, [job, job])
            train_published(model, job, EOS)
    assert model_digest(model) == digest
    assert set(dict(model.named_parameters())) == names
    assert dict(model.named_modules()) == modules
    assert not model.training


def test_sequential_loop_pads_to_the_longest_line_of_a_step() -> None:
    lines = tuple(TrainingSequence((BOS, *range(n - 1)), (True,) * n) for n in (4, 9, 5))
    job = UpdateJob("a", lines, UpdateRecipe(rank=1, epochs=2, batch_size=3), seed=0)
    (one,) = train_sequentially(tiny_model(), [job])
    assert (one.tokens, one.padded_tokens) == (2 * (4 + 9 + 5), 2 * 3 * 9)


def test_published_loop_takes_one_padded_line_a_step_and_learns_its_padding() -> None:
    model = tiny_model()
    (job,) = synthetic_jobs(PLAIN, VOCABULARY, 256, adapters=1, lines=3, tokens=10, seed=0)
    one = train_published(model, job, EOS)
    assert published_width(model) == 256  # the tiny model's limit, below SEAL's 2048
    assert len(one.losses) == PLAIN.epochs * 3
    assert one.padded_tokens == len(one.losses) * 256
    assert one.tokens == PLAIN.epochs * sum(len(sequence.tokens) for sequence in job.sequences)
    possible = []
    for sequence in job.sequences:  # B is zero at first, so the first loss is the base's on one of the lines.
        n = len(sequence.tokens)
        ids = torch.tensor([[*sequence.tokens, *[EOS] * (256 - n)]])
        mask = (torch.arange(256) < n).long()[None]
        with torch.inference_mode():
            possible.append(float(model(input_ids=ids, attention_mask=mask, labels=ids).loss))
    assert any(one.losses[0] == pytest.approx(loss, rel=1e-4) for loss in possible)
    assert float(change(one.factors).abs().max()) > 1e-3


def test_bank_refuses_to_time_updates_that_fail() -> None:
    (job,) = synthetic_jobs(PLAIN, VOCABULARY, 256, adapters=1, lines=2, tokens=10, seed=0)
    too_long = replace(job, sequences=(TrainingSequence((1,) * 300, (True,) * 300),))
    with pytest.raises(UpdateError, match="'synthetic#0' ended as sequence_too_long"):
        train_in_bank(workload(), 2, [too_long])


def test_arms_train_the_same_jobs_and_growth_is_measured_on_fewer() -> None:
    made = workload(synthetic_jobs(PLAIN, VOCABULARY, 256, adapters=40, lines=2, tokens=8, seed=0))
    arms = {arm.name: arm for arm in build_arms(BankBench(config=demo_config(), adapters=40), made)}
    assert set(arms) == {"published", "sequential", *(f"bank-{k}" for k in (1, 4, 16, 40))} | {
        "bank-40-of-10",
        "bank-40-of-20",
    }
    for name in ("sequential", "bank-16", "bank-40"):
        assert arms[name].jobs == made.jobs
    for name, count in {"published": 1, "bank-1": 16, "bank-4": 16, "bank-40-of-10": 10}.items():
        assert len(arms[name].jobs) == count
        assert set(map(id, arms[name].jobs)) <= set(map(id, made.jobs))
    skipped = build_arms(BankBench(config=demo_config(), adapters=40, published=False), made)
    assert "published" not in {arm.name for arm in skipped}
