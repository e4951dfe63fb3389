"""Slots of different kinds in one bank: layers, refilling, freezing, text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import PeftModel

from evaluation.answers import AnswerFormat
from evaluation.errors import ScoringError
from evaluation.tasks import Question
from student.adapters import Adapter, save_adapter
from student.config import UpdateRecipe
from student.lora_bank import LoraBank
from student.scoring import ScoringFailure
from student.updates import UpdateJob, UpdateOutcome
from tests.student.conftest import MakeModel
from tests.student.jobs import adapter_of, deltas, mixed_jobs, same_bits, sequences
from tests.student.reference import starting_point, train_alone


def _targets(k: int) -> Any:
    return ["all-linear", ("q_proj", "v_proj"), ("down_proj",), ("layers.1.mlp.up_proj",)][k]


def _job(k: int, **recipe: Any) -> UpdateJob:
    values: dict[str, Any] = {"rank": 2 + k, "epochs": 3, "batch_size": 2, "target_modules": _targets(k), **recipe}
    return UpdateJob(f"job-{k}", sequences(k, [5, 3 + k, 6]), UpdateRecipe.model_validate(values), seed=k)


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


@pytest.mark.usefixtures("one_thread")
def test_slots_leave_and_new_ones_take_their_place(make_model: MakeModel) -> None:
    jobs = [
        UpdateJob(f"{k}", sequences(k, [4, 5, 6]), UpdateRecipe(epochs=1 + k % 4, batch_size=2), seed=k)
        for k in range(11)
    ]
    with LoraBank(make_model(dtype=torch.float64), max_slots=3) as bank:
        few = bank.train(jobs)
        usage = bank.usage
    assert usage.slots == 3
    steps = sum(job.recipe.total_steps(3) for job in jobs)
    assert steps / 3 <= usage.steps < 0.7 * steps  # A bank that waits for its slowest slot would need 8 + 8 + 8 + 6.
    with LoraBank(make_model(dtype=torch.float64)) as bank:
        many = bank.train(jobs)
        assert bank.usage.slots == 11
    for left, right in zip(few, many, strict=True):
        assert left.key == right.key
        pair = deltas(adapter_of(left).factors, 2.0), deltas(adapter_of(right).factors, 2.0)
        assert torch.allclose(*pair, rtol=0, atol=1e-10)


def test_finished_slot_is_frozen_to_the_bit(make_model: MakeModel) -> None:
    """Two neighbours that go on for three or for nine epochs: the first steps are the same to the bit."""
    short = UpdateJob("short", sequences(0, [5, 4]), UpdateRecipe(epochs=3), seed=1)
    frozen = []
    for epochs in (3, 9):
        recipe = UpdateRecipe(epochs=epochs, schedule="constant")
        neighbours = [UpdateJob(f"{k}", sequences(k, [6, 5]), recipe, seed=k) for k in (1, 2)]
        with LoraBank(make_model()) as bank:
            frozen.append(adapter_of(bank.train([neighbours[0], short, neighbours[1]])[1]))
    assert same_bits(*frozen)


def test_packed_slots_carry_little_padding(make_model: MakeModel) -> None:
    """Edits of 2 to 12 lines of 3 to 20 tokens; a full step of the fullest slot has many times the places of
    the smallest one's."""
    generator = torch.Generator().manual_seed(0)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    jobs = [
        UpdateJob(
            f"{k}",
            sequences(k, [draw(3, 20) for _ in range(draw(2, 12))]),
            UpdateRecipe(epochs=2, batch_size=16),
            seed=k,
        )
        for k in range(64)
    ]
    with LoraBank(make_model()) as bank:
        results = bank.train(jobs)
        usage = bank.usage
    assert usage.padding_share < 0.15
    assert usage.tokens == sum(result.tokens for result in results)
    assert usage.places == sum(result.padded_tokens for result in results)


def test_generate_equals_each_adapter_alone_in_peft(make_model: MakeModel, tokenizer: Any, tmp_path: Any) -> None:
    prompts = [["abc", "a longer prompt"], ["xyz"], ["abc", "", "qr"]]
    model = make_model()
    with LoraBank(model) as bank:
        first, second = (adapter_of(result) for result in bank.train(mixed_jobs()[:2]))
        foreign = Adapter(first.factors, 8, 16.0, "other base")
        written = bank.generate(
            [first, second, None, foreign, first], [*prompts, ["a"], []], tokenizer, max_new_tokens=6
        )
        with pytest.raises(ScoringError, match="1 adapters and 0"):
            bank.generate([first], [], tokenizer, max_new_tokens=6)
    assert isinstance(written[3], ScoringFailure)
    assert written[4] == []
    for adapter, asked, got in zip([first, second, None], prompts, written, strict=False):
        alone: Any = make_model()
        if adapter is not None:
            alone = PeftModel.from_pretrained(alone, str(save_adapter(adapter, tmp_path / adapter.digest[:8])))
        for prompt, text in zip(asked, got, strict=True):
            ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]])
            out = alone.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=0
            )
            assert text == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


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
    for left, right in zip(results, expected, strict=True):
        assert left.losses == pytest.approx(right.losses, rel=1e-9)
        pair = deltas(adapter_of(left).factors, 1.0), deltas(adapter_of(right).factors, 1.0)
        assert torch.allclose(*pair, rtol=0, atol=1e-9)
    assert all(torch.equal(before[name], parameter) for name, parameter in active.named_parameters())
    assert torch.equal(active(ids).logits, logits)
    assert len(digests) == 2
    with LoraBank(active) as bank:
        assert bank.score([None], [[Question(question="cat", answer="Tom")]], _tokenizer(), wrapper)


def _tokenizer() -> Any:
    from tests.student.tiny import byte_tokenizer

    return byte_tokenizer()


def test_update_that_asks_for_more_steps_than_its_budget_is_refused_untrained(make_model: MakeModel) -> None:
    """Five sequences by two are three steps an epoch: two epochs fit a budget of six, and three do not."""
    lines = sequences(0, [4, 5, 6, 4, 5])
    jobs = [
        UpdateJob(f"{epochs}", lines, UpdateRecipe(epochs=epochs, batch_size=2, step_budget=6, max_steps=4), seed=0)
        for epochs in (2, 3)
    ]
    with LoraBank(make_model()) as bank:
        fits, refused = bank.train(jobs)
    assert (fits.outcome, fits.steps) == (UpdateOutcome.OK, 4)
    assert (refused.outcome, refused.steps, refused.adapter) == (UpdateOutcome.OVER_BUDGET, 0, None)
    assert refused.detail == "9 optimizer steps, allowed are 6 (step_budget): 3 epochs of 5 sequences"
