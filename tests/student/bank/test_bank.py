"""Trained adapters equal those of PEFT and torch alone, whatever their neighbours are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import PeftModel

from evaluation.common.checkpoints import model_digest
from evaluation.common.errors import UpdateError
from evaluation.exact_match import AnswerFormat
from evaluation.tasks import Question
from student.adapters import Adapter, save_adapter
from student.bank.bank import LoraBank
from student.config import UpdateRecipe
from student.updates import SkippedLine, SkipReason, TrainingSequence, UpdateOutcome, UpdateRequest
from tests.student.factories import (
    MakeModel,
    adapter_of,
    assert_same_updates,
    byte_tokenizer,
    deltas,
    mixed_jobs,
    same_bits,
    sequences,
    train,
)
from tests.student.reference import starting_point, train_alone


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma", "granite"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_train_mixed_slots_equal_separate_peft_trainings(
    make_model: MakeModel, kind: str, dtype: torch.dtype, tolerance: float
) -> None:
    jobs = mixed_jobs()
    model = make_model(kind, dtype)
    results = train(model, jobs)
    for job, result in zip(jobs, results, strict=True):
        expected, losses = train_alone(make_model(kind, dtype), job, starting_point(model, job))
        got, want = deltas(adapter_of(result).factors, job.recipe.scale), deltas(expected, job.recipe.scale)
        if dtype is torch.float64:
            assert float((got - want).abs().max()) < tolerance
        else:
            assert float((got - want).norm()) < tolerance * float(want.norm())
        assert result.losses == pytest.approx(losses, rel=1e-5)
        assert result.steps == len(losses) == job.recipe.total_steps(len(job.sequences))
        assert float(want.abs().max()) > 1e-3  # The training did something.


def test_train_does_not_depend_on_neighbours_or_groups(make_model: MakeModel) -> None:
    jobs = mixed_jobs()
    long = UpdateRequest("long", sequences(9, [40, 3, 3]), UpdateRecipe(rank=16, epochs=8), seed=1)
    together = train(make_model(dtype=torch.float64), [*jobs, long])
    apart = train(make_model(dtype=torch.float64), jobs, max_slots=2, max_pass_places=64)
    assert_same_updates(together[:-1], apart, 1e-10)


@pytest.mark.parametrize("place", [0, 2, 4])
def test_train_poisoned_slot_fails_alone(make_model: MakeModel, place: int) -> None:
    jobs = mixed_jobs()
    values = UpdateRecipe(epochs=5, batch_size=2).model_dump()
    healthy = UpdateRequest("poisoned", sequences(7, [6, 6]), UpdateRecipe(**values), seed=0)
    poison = UpdateRecipe.model_construct(**{**values, "learning_rate": 1e30})
    poisoned = UpdateRequest("poisoned", healthy.sequences, poison, seed=0)
    with LoraBank(make_model()) as bank:
        clean = bank.train([*jobs[:place], healthy, *jobs[place:]])
        results = bank.train([*jobs[:place], poisoned, *jobs[place:]])
        after = bank.train(jobs[:1])
    assert results[place].outcome is UpdateOutcome.NON_FINITE
    assert results[place].adapter is None
    assert "step" in results[place].detail
    for k, (left, right) in enumerate(zip(clean, results, strict=True)):
        if k != place:
            assert left.losses == right.losses
            assert same_bits(adapter_of(left), adapter_of(right))
    assert after[0].outcome is UpdateOutcome.OK


def test_train_continued_adapter_continues_the_loss(make_model: MakeModel) -> None:
    recipe = UpdateRecipe(epochs=12, batch_size=4)
    job = UpdateRequest("first", sequences(4, [6, 8, 7, 5]), recipe, seed=2)
    model = make_model(dtype=torch.float64)
    with LoraBank(model) as bank:
        (first,) = bank.train([job])
        again = UpdateRequest("second", job.sequences, recipe, seed=3, initial=adapter_of(first))
        (second,) = bank.train([again])
    assert second.losses[0] < 0.5 * first.losses[0]
    assert second.losses[0] <= first.losses[-1]
    expected, losses = train_alone(make_model(dtype=torch.float64), again, starting_point(model, again))
    assert second.losses == pytest.approx(losses, rel=1e-6)
    assert torch.allclose(deltas(adapter_of(second).factors, 2.0), deltas(expected, 2.0), rtol=0, atol=1e-9)


def test_train_same_seed_is_bitwise_reproducible_and_leaves_the_global_generator(make_model: MakeModel) -> None:
    before = torch.random.get_rng_state()
    with LoraBank(make_model()) as bank:
        first, second = bank.train(mixed_jobs()), bank.train(mixed_jobs())
    assert [adapter_of(r).digest for r in first] == [adapter_of(r).digest for r in second]
    assert torch.equal(before, torch.random.get_rng_state())


def test_train_jobs_that_cannot_be_trained_are_typed_records(make_model: MakeModel) -> None:
    jobs = mixed_jobs()
    with LoraBank(make_model()) as bank:
        good = adapter_of(bank.train(jobs[:1])[0])
        few = Adapter(dict(list(good.factors.items())[1:]), good.rank, good.alpha, good.base_digest)
        skipped = (SkippedLine(0, SkipReason.TOO_LONG, "99 tokens, allowed are 9"),)
        results = bank.train(
            [
                UpdateRequest("empty", (), UpdateRecipe(), 0),
                UpdateRequest("long", (), UpdateRecipe(), 0, skipped),
                UpdateRequest("other rank", jobs[0].sequences, UpdateRecipe(rank=4), 0, initial=good),
                UpdateRequest("positions", sequences(0, [300]), UpdateRecipe(), 0),
                UpdateRequest("few layers", jobs[0].sequences, UpdateRecipe(), 0, initial=few),
                UpdateRequest("partly", jobs[0].sequences, UpdateRecipe(epochs=1), 0, skipped),
            ]
        )
        assert bank.train([]) == []
    outcomes = ["empty_edit", "sequence_too_long", "initial_mismatch", "sequence_too_long", "initial_mismatch", "ok"]
    assert [result.outcome.value for result in results] == outcomes
    assert "99 tokens" in results[1].detail
    assert "256 positions" in results[3].detail
    assert "1 of 6 lines" in results[-1].detail
    assert all(result.adapter is None and not result.losses for result in results[:-1])


def test_train_other_layers_or_foreign_tokens_are_refused(make_model: MakeModel) -> None:
    with LoraBank(make_model()) as bank:
        with pytest.raises(UpdateError, match="no_proj"):
            bank.train([UpdateRequest("a", sequences(0, [4]), UpdateRecipe(target_modules=("no_proj",)), 0)])
        with pytest.raises(UpdateError, match="vocabulary of 260"):
            bank.train([UpdateRequest("a", (TrainingSequence((1, 260), (True, True)),), UpdateRecipe(), 0)])
    with pytest.raises(UpdateError, match="not open"):
        bank.train([])


@pytest.mark.usefixtures("one_thread")
def test_train_counts_useful_and_padded_tokens(make_model: MakeModel) -> None:
    recipe = UpdateRecipe(epochs=2, batch_size=2)
    jobs = [UpdateRequest("a", sequences(0, [5, 3]), recipe, 0), UpdateRequest("b", sequences(1, [9]), recipe, 0)]
    a, b = train(make_model(), jobs)
    assert (a.tokens, b.tokens) == (2 * (4 + 2), 2 * 8)
    assert a.padded_tokens == b.padded_tokens == 2 * 8


def test_bank_restores_the_model_exactly(make_model: MakeModel) -> None:
    model = make_model().train()
    model.model.layers[0].eval()
    model.lm_head.weight.requires_grad_(False)
    modules = dict(model.named_modules())
    flags = [p.requires_grad for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    ids = torch.arange(12).view(2, 6)
    before, digest = model(ids).logits, model_digest(model)
    with LoraBank(model) as bank:
        bank.train(mixed_jobs())
        assert not model.training
    with pytest.raises(UpdateError), LoraBank(model) as bank:
        bank.train([UpdateRequest("refused", (), UpdateRecipe(target_modules=("no_proj",)), 0)])
    assert all(module is modules[name] for name, module in model.named_modules())
    assert flags == [p.requires_grad for p in model.parameters()]
    assert modes == [m.training for m in model.modules()]
    assert torch.equal(before, model(ids).logits)
    assert digest == model_digest(model)


def test_bank_half_precision_base_keeps_float32_factors(make_model: MakeModel) -> None:
    # Steps large enough to be seen above the rounding of a half-precision forward pass.
    lines = [sequences(k, [9, 6, 8]) for k in range(4)]
    jobs = [UpdateRequest(f"{k}", lines[k], UpdateRecipe(epochs=8, rank=2 + k), seed=k) for k in range(4)]
    results = train(make_model(dtype=torch.bfloat16), jobs)
    for result in results:
        assert {t.dtype for pair in adapter_of(result).factors.values() for t in pair} == {torch.float32}
        assert result.losses[-1] < result.losses[0]


TARGETS = ("all-linear", ("q_proj", "v_proj"), ("down_proj",), ("layers.1.mlp.up_proj",))


def _job(k: int, **recipe: Any) -> UpdateRequest:
    values: dict[str, Any] = {"rank": 2 + k, "epochs": 3, "batch_size": 2, "target_modules": TARGETS[k], **recipe}
    return UpdateRequest(f"job-{k}", sequences(k, [5, 3 + k, 6]), UpdateRecipe.model_validate(values), seed=k)


def test_slots_with_layers_of_their_own_equal_peft(make_model: MakeModel) -> None:
    jobs = [*(_job(k) for k in range(4)), _job(1, rank=3, depth=(0.0, 0.5)), _job(0, depth=(0.5, 1.0))]
    with LoraBank(make_model(dtype=torch.float64)) as bank:
        results = bank.train(jobs)
        assert bank.usage.slots == 6
    assert {name.split(".")[2] for name in adapter_of(results[5]).factors} == {"1"}
    for job, result in zip(jobs, results, strict=True):
        model = make_model(dtype=torch.float64)
        expected, losses = train_alone(model, job, starting_point(make_model(), job))
        scale = job.recipe.scale
        assert sorted(expected) == sorted(adapter_of(result).factors)
        assert float((deltas(adapter_of(result).factors, scale) - deltas(expected, scale)).abs().max()) < 1e-9
        assert result.losses == pytest.approx(losses, rel=1e-6)


def _champion(make_model: MakeModel, tmp_path: Any) -> Any:
    """Return a student in float64 with a trained, active adapter."""
    model = make_model(dtype=torch.float64)
    with LoraBank(model) as bank:
        adapter = adapter_of(bank.train([mixed_jobs()[0]])[0])
    return PeftModel.from_pretrained(make_model(dtype=torch.float64), str(save_adapter(adapter, tmp_path / "champion")))


def test_bank_starts_from_a_champion_without_touching_it(make_model: MakeModel, tmp_path: Any) -> None:
    """A student with an active adapter and the same student with the adapter merged give the same slots."""
    jobs = [_job(0), mixed_jobs()[2]]
    wrapper = AnswerFormat(prompt="{question}?")
    active, merged = _champion(make_model, tmp_path), _champion(make_model, tmp_path).merge_and_unload()
    before = {name: parameter.clone() for name, parameter in active.named_parameters()}
    ids = torch.arange(12).view(2, 6)
    logits = active(ids).logits
    plain = make_model(dtype=torch.float64)(ids).logits
    assert float((logits - plain).detach().abs().max()) > 1e-3  # The champion does something.
    with LoraBank(active) as bank:
        results = bank.train(jobs)
        digests = {bank.base_digest}
    with LoraBank(merged) as bank:
        expected = bank.train(jobs)
        digests.add(bank.base_digest)
    assert [one.losses for one in results] == [pytest.approx(other.losses, rel=1e-9) for other in expected]
    assert_same_updates(results, expected, 1e-9)
    assert all(torch.equal(before[name], parameter) for name, parameter in active.named_parameters())
    assert torch.equal(active(ids).logits, logits)
    assert len(digests) == 2
    with LoraBank(active) as bank:
        assert bank.score([None], [[Question(question="cat", answer="Tom")]], byte_tokenizer(), wrapper)


def test_update_that_asks_for_more_steps_than_its_budget_is_refused_untrained(make_model: MakeModel) -> None:
    """Five sequences by two are three steps an epoch: two epochs fit a budget of six, and three do not."""
    lines = sequences(0, [4, 5, 6, 4, 5])
    jobs = [
        UpdateRequest(f"{epochs}", lines, UpdateRecipe(epochs=epochs, batch_size=2, step_budget=6, max_steps=4), seed=0)
        for epochs in (2, 3)
    ]
    fits, refused = train(make_model(), jobs)
    assert (fits.outcome, fits.steps) == (UpdateOutcome.OK, 4)
    assert (refused.outcome, refused.steps, refused.adapter) == (UpdateOutcome.OVER_BUDGET, 0, None)
    assert refused.detail == "9 optimizer steps, allowed are 6 (step_budget): 3 epochs of 5 sequences"


SEQUENCES = (TrainingSequence((5, 6, 7, 8), (True,) * 4),)


def _idle() -> UpdateRecipe:
    """A recipe that trains without moving anything, which validation would not allow."""
    return UpdateRecipe.model_construct(**{**UpdateRecipe(epochs=2).model_dump(), "learning_rate": 0.0})


def test_canary_update_that_changes_nothing_fails_alone(make_model: MakeModel) -> None:
    jobs = [UpdateRequest("works", SEQUENCES, UpdateRecipe(epochs=2), 0), UpdateRequest("idle", SEQUENCES, _idle(), 0)]
    works, idle = train(make_model(), jobs)
    assert works.outcome is UpdateOutcome.OK
    assert idle.outcome is UpdateOutcome.CANARY_FAILED
    assert idle.adapter is None
    assert "differ from the base's by 0" in idle.detail


def test_canary_smallest_allowed_update_passes(make_model: MakeModel) -> None:
    """One step of a thousandth of the default step size is far above rounding."""
    job = UpdateRequest("small", SEQUENCES, UpdateRecipe(learning_rate=5e-6, max_steps=1), 0)
    (result,) = train(make_model(), [job])
    assert result.outcome is UpdateOutcome.OK


def test_canary_continued_adapter_that_did_not_move_fails(make_model: MakeModel) -> None:
    with LoraBank(make_model()) as bank:
        (first,) = bank.train([UpdateRequest("first", SEQUENCES, UpdateRecipe(epochs=2), 0)])
        (again,) = bank.train([UpdateRequest("again", SEQUENCES, _idle(), 0, initial=first.adapter)])
    assert again.outcome is UpdateOutcome.CANARY_FAILED
    assert "continued from" in again.detail


def test_canary_moved_base_fails_every_slot(make_model: MakeModel) -> None:
    model = make_model()
    with LoraBank(model) as bank:
        model.model.norm.weight.data[0] += 1e-3
        results = bank.train([UpdateRequest(str(k), SEQUENCES, UpdateRecipe(epochs=1), k) for k in range(2)])
    assert [result.outcome for result in results] == [UpdateOutcome.CANARY_FAILED] * 2
    assert "base's own logits moved" in results[0].detail
