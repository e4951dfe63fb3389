from __future__ import annotations

from typing import Any

import pytest
import torch

from evaluation.answers import AnswerFormat, score_answers
from evaluation.checkpoints import model_digest
from evaluation.errors import ScoringError, UpdateError
from evaluation.tasks import Document, Question
from student.adapters import Adapter
from student.config import UpdateRecipe
from student.lora_bank import LoraBank
from student.scoring import ScoringFailure
from student.sequences import SkippedLine, SkipReason, TrainingSequence
from student.updates import UpdateJob, UpdateOutcome, make_job
from teacher.self_edit import Implication, SelfEdit, TrainingSpec
from tests.student.conftest import MakeModel
from tests.student.jobs import adapter_of, deltas, mixed_jobs, same_bits, sequences
from tests.student.reference import starting_point, train_alone


def _without_a_layer(adapter: Adapter) -> Adapter:
    return Adapter(dict(list(adapter.factors.items())[1:]), adapter.rank, adapter.alpha, adapter.base_digest)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma", "granite"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_train_mixed_slots_equal_separate_peft_trainings(
    make_model: MakeModel, kind: str, dtype: torch.dtype, tolerance: float
) -> None:
    jobs = mixed_jobs()
    model = make_model(kind, dtype)
    with LoraBank(model) as bank:
        results = bank.train(jobs)
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


def test_train_named_modules_equal_peft(make_model: MakeModel) -> None:
    recipe = UpdateRecipe(target_modules=("q_proj", "v_proj"), epochs=2, batch_size=2)
    job = UpdateJob("a", sequences(0, [4, 6, 5]), recipe, seed=3)
    model = make_model(dtype=torch.float64)
    with LoraBank(model, recipe.target_modules) as bank:
        (result,) = bank.train([job])
    expected, _ = train_alone(make_model(dtype=torch.float64), job, starting_point(model, job))
    assert sorted(expected) == sorted(adapter_of(result).factors)
    assert torch.allclose(deltas(adapter_of(result).factors, 2.0), deltas(expected, 2.0), rtol=0, atol=1e-9)


def test_train_permuted_slots_permute_results(make_model: MakeModel) -> None:
    jobs = mixed_jobs()
    order = [2, 0, 3, 1]
    with LoraBank(make_model(dtype=torch.float64)) as bank:
        results, permuted = bank.train(jobs), bank.train([jobs[i] for i in order])
    assert [result.key for result in permuted] == [jobs[i].key for i in order]
    for i, other in zip(order, permuted, strict=True):
        left, right = deltas(adapter_of(results[i]).factors, 1.0), deltas(adapter_of(other).factors, 1.0)
        assert torch.allclose(left, right, rtol=0, atol=1e-12)


def test_train_does_not_depend_on_neighbours_or_groups(make_model: MakeModel) -> None:
    jobs = mixed_jobs()
    long = UpdateJob("long", sequences(9, [40, 3, 3]), UpdateRecipe(rank=16, epochs=8), seed=1)
    with LoraBank(make_model(dtype=torch.float64)) as bank:
        together = bank.train([*jobs, long])
    with LoraBank(make_model(dtype=torch.float64), max_slots=2, max_pass_places=64) as bank:
        apart = bank.train(jobs)
    for left, right in zip(together, apart, strict=False):
        pair = deltas(adapter_of(left).factors, 1.0), deltas(adapter_of(right).factors, 1.0)
        assert torch.allclose(*pair, rtol=0, atol=1e-10)


@pytest.mark.parametrize("place", [0, 2, 4])
def test_train_poisoned_slot_fails_alone(make_model: MakeModel, place: int) -> None:
    jobs = mixed_jobs()
    values = UpdateRecipe(epochs=5, batch_size=2).model_dump()
    healthy = UpdateJob("poisoned", sequences(7, [6, 6]), UpdateRecipe(**values), seed=0)
    poison = UpdateRecipe.model_construct(**{**values, "learning_rate": 1e30})
    poisoned = UpdateJob("poisoned", healthy.sequences, poison, seed=0)
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
    recipe = UpdateRecipe(epochs=12, batch_size=4, max_gradient_norm=None)
    job = UpdateJob("first", sequences(4, [6, 8, 7, 5]), recipe, seed=2)
    model = make_model(dtype=torch.float64)
    with LoraBank(model) as bank:
        (first,) = bank.train([job])
        again = UpdateJob("second", job.sequences, recipe, seed=3, initial=adapter_of(first))
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
        good = bank.train(jobs[:1])[0]
        skipped = (SkippedLine(0, SkipReason.TOO_LONG, "99 tokens, allowed are 9"),)
        results = bank.train(
            [
                UpdateJob("empty", (), UpdateRecipe(), 0),
                UpdateJob("long", (), UpdateRecipe(), 0, skipped),
                UpdateJob("other rank", jobs[0].sequences, UpdateRecipe(rank=4), 0, initial=adapter_of(good)),
                UpdateJob("positions", sequences(0, [300]), UpdateRecipe(), 0),
                UpdateJob(
                    "few layers", jobs[0].sequences, UpdateRecipe(), 0, initial=_without_a_layer(adapter_of(good))
                ),
                UpdateJob("partly", jobs[0].sequences, UpdateRecipe(epochs=1), 0, skipped),
            ]
        )
        assert bank.train([]) == []
    outcomes = [result.outcome.value for result in results]
    assert outcomes == [
        "empty_edit",
        "sequence_too_long",
        "initial_mismatch",
        "sequence_too_long",
        "initial_mismatch",
        "ok",
    ]
    assert "99 tokens" in results[1].detail
    assert "256 positions" in results[3].detail
    assert "1 of 6 lines" in results[-1].detail
    assert all(result.adapter is None and not result.losses for result in results[:-1])


def test_train_other_layers_or_foreign_tokens_are_refused(make_model: MakeModel) -> None:
    with LoraBank(make_model()) as bank:
        with pytest.raises(UpdateError, match="no_proj"):
            bank.train([UpdateJob("a", sequences(0, [4]), UpdateRecipe(target_modules=("no_proj",)), 0)])
        with pytest.raises(UpdateError, match="vocabulary of 260"):
            bank.train([UpdateJob("a", (TrainingSequence((1, 260), (True, True)),), UpdateRecipe(), 0)])
    with pytest.raises(UpdateError, match="not open"):
        bank.train([])


@pytest.mark.usefixtures("one_thread")
def test_train_counts_useful_and_padded_tokens(make_model: MakeModel) -> None:
    recipe = UpdateRecipe(epochs=2, batch_size=2)
    jobs = [UpdateJob("a", sequences(0, [5, 3]), recipe, 0), UpdateJob("b", sequences(1, [9]), recipe, 0)]
    with LoraBank(make_model()) as bank:
        a, b = bank.train(jobs)
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
        bank.train([UpdateJob("refused", (), UpdateRecipe(target_modules=("no_proj",)), 0)])
    assert all(module is modules[name] for name, module in model.named_modules())
    assert flags == [p.requires_grad for p in model.parameters()]
    assert modes == [m.training for m in model.modules()]
    assert torch.equal(before, model(ids).logits)
    assert digest == model_digest(model)


def test_score_equals_plain_scores_of_each_adapter(make_model: MakeModel, tokenizer: Any) -> None:
    """Scored together, each slot answers as its adapter does alone: trained answers exactly, others not."""
    wrapper = AnswerFormat(prompt="{question}?")
    recipe = UpdateRecipe(epochs=40, batch_size=2, learning_rate=1e-2)
    facts = [("cat", "Tom"), ("dog", "Rex")]
    document = Document(id="d", text="none")
    jobs = [
        make_job(q, SelfEdit(implications=(Implication(text=q, answer=a),)), document, tokenizer, recipe, wrapper, 0)
        for q, a in facts
    ]
    questions = [Question(question=q, answer=a) for q, a in facts]
    model = make_model()
    base = score_answers(model, tokenizer, questions, wrapper)
    with LoraBank(model) as bank:
        cat, dog = (adapter_of(result) for result in bank.train(jobs))
        scores = bank.score([cat, None, dog, cat], [questions, questions, questions[1:], []], tokenizer, wrapper)
    with LoraBank(model, max_slots=1) as bank:
        alone = bank.score([cat, None, dog], [questions, questions, questions[1:]], tokenizer, wrapper)
    assert scores[3] == []
    for got, want in zip(scores[:3], alone, strict=True):
        assert not isinstance(got, ScoringFailure)
        assert not isinstance(want, ScoringFailure)
        for left, right in zip(got, want, strict=True):
            assert left.exact == right.exact
            assert left.log_probability == pytest.approx(right.log_probability, abs=1e-4)
    by_cat, by_base, by_dog, _ = (s if isinstance(s, list) else [] for s in scores)
    assert by_cat[0].exact
    assert by_cat[0].probability > 0.9
    assert not by_cat[1].exact
    assert by_dog[0].exact
    assert [s.log_probability for s in by_base] == pytest.approx([s.log_probability for s in base], abs=1e-4)


def test_score_slot_without_finite_logits_or_fit_fails_alone(make_model: MakeModel, tokenizer: Any) -> None:
    wrapper, questions = AnswerFormat(), [Question(question="who", answer="me")]
    model = make_model()
    with LoraBank(model) as bank:
        good = adapter_of(bank.train(mixed_jobs()[:1])[0])
        bad = Adapter({n: (a * float("nan"), b) for n, (a, b) in good.factors.items()}, 8, 16.0, "")
        foreign = Adapter(good.factors, 8, 16.0, "other base")
        odd = Adapter({"no.such.layer": next(iter(good.factors.values()))}, 8, 16.0, "")
        only = bank.score([good], [questions], tokenizer, wrapper)
        scores = bank.score([bad, good, foreign, odd], [questions] * 4, tokenizer, wrapper)
        with pytest.raises(ScoringError, match="1 adapters and 0"):
            bank.score([good], [], tokenizer, wrapper)
    assert isinstance(scores[0], ScoringFailure)
    assert "not finite" in scores[0].reason
    assert isinstance(scores[2], ScoringFailure)
    assert isinstance(scores[3], ScoringFailure)
    assert isinstance(scores[1], list)
    assert isinstance(only[0], list)
    assert scores[1][0].log_probability == pytest.approx(only[0][0].log_probability, abs=1e-5)


def test_make_job_takes_the_training_spec_into_the_recipe(tokenizer: Any) -> None:
    edit = SelfEdit(implications=(Implication(text="x"),), training=TrainingSpec(rank=3, epochs=2, learning_rate=1e-3))
    job = make_job("k", edit, Document(id="d", text="t"), tokenizer, UpdateRecipe(), AnswerFormat(), 5)
    assert (job.recipe.rank, job.recipe.epochs, job.recipe.learning_rate) == (3, 2, 1e-3)
    assert job.recipe.alpha == UpdateRecipe().alpha


def test_bank_half_precision_base_keeps_float32_factors(make_model: MakeModel) -> None:
    with LoraBank(make_model(dtype=torch.bfloat16)) as bank:
        results = bank.train(mixed_jobs())
    for result in results:
        assert {t.dtype for pair in adapter_of(result).factors.values() for t in pair} == {torch.float32}
        assert result.losses[-1] < result.losses[0]
