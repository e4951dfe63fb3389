"""Context distillation in a bank equals PEFT, torch and a second pass with the passage in context."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import MistralConfig, MistralForCausalLM

from evaluation.exact_match import AnswerFormat
from evaluation.tasks import Document, lines_of
from student.bank.bank import LoraBank
from student.bank.distillation import with_targets
from student.bank.layers import frozen_head_loss, weighted_loss
from student.bank.model import BankedModel
from student.config import UpdateRecipe
from student.updates import SkipReason, TrainingSequence, UpdateOutcome, UpdateRequest, build_sequences
from teacher.self_edit import Implication, SelfEdit
from tests.student.factories import (
    MakeModel,
    adapter_of,
    assert_same_updates,
    deltas,
    distilled,
    mixed_jobs,
    same_bits,
    sequences,
    torch_threads,
    train,
)
from tests.student.reference import starting_point, train_alone


# In single precision rounding alone moves what PEFT trains of the tiny Qwen2 by 3e-5.
@pytest.mark.parametrize(
    ("kind", "dtype", "tolerance"),
    [
        *((kind, torch.float64, 1e-9) for kind in ("llama", "qwen2", "granite")),
        *((kind, torch.float32, 1e-5) for kind in ("llama", "granite")),
    ],
)
def test_distilled_slots_equal_separate_peft_trainings(
    make_model: MakeModel, kind: str, dtype: torch.dtype, tolerance: float
) -> None:
    jobs = [distilled(job, seed) for seed, job in enumerate(mixed_jobs())]
    model = make_model(kind, dtype)
    for job, result in zip(jobs, train(model, jobs), strict=True):
        expected, losses = train_alone(make_model(kind, dtype), job, starting_point(model, job))
        got, want = deltas(adapter_of(result).factors, job.recipe.scale), deltas(expected, job.recipe.scale)
        assert float((got - want).norm()) < tolerance * float(want.norm())
        assert result.losses == pytest.approx(losses, rel=1e-5, abs=1e-6)
        assert result.losses[-1] < result.losses[0]


@pytest.mark.parametrize("window", [None, 12])
def test_passage_that_is_read_once_gives_what_each_sequence_gives_alone(window: int | None) -> None:
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "num_hidden_layers": 2}
    config = MistralConfig(**heads, vocab_size=260, hidden_size=32, intermediate_size=48, sliding_window=window)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MistralForCausalLM(config).double().eval()
    passage = sequences(1, [20])[0].tokens
    lines = sequences(0, [9, 14, 5], answers_only=True)
    lines = tuple(replace(line, behind=passage + line.tokens) for line in lines)
    student = BankedModel(model, "all-linear")
    assert student.packed
    for places in (1000, 30):
        found = with_targets(student, lines, places)
        assert found is not None
        for got, line in zip(found, lines, strict=True):
            kept = [i - 1 for i in range(len(line.behind) - sum(line.loss_mask), len(line.behind))]
            with torch.no_grad(), student.unpacked():
                want = model.model(input_ids=torch.tensor([line.behind])).last_hidden_state[0, kept]
            assert got.targets is not None
            assert torch.allclose(got.targets, want, rtol=0, atol=1e-12)


def test_objectives_share_a_bank_and_leave_each_other_alone(make_model: MakeModel) -> None:
    jobs = mixed_jobs()
    both = [*jobs, *(distilled(job) for job in jobs)]
    with LoraBank(make_model()) as bank:
        together, plain = bank.train(both), bank.train(jobs)
    assert all(same_bits(adapter_of(a), adapter_of(b)) for a, b in zip(together, plain, strict=False))
    with torch_threads(2):
        small = train(make_model(dtype=torch.float64), both, max_slots=3, max_pass_places=40)
    assert_same_updates(train(make_model(dtype=torch.float64), both), small, 1e-10)


def test_passage_that_runs_out_of_memory_is_read_in_parts_or_fails_alone(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = distilled(UpdateRequest("long", sequences(5, [40, 41]), UpdateRecipe(epochs=2), seed=3))
    jobs = [distilled(mixed_jobs()[0]), long]
    whole, states = train(make_model(), jobs), BankedModel.states
    room = max(len(sequence.behind) for sequence in jobs[0].sequences)

    def limited(self: BankedModel, batch: Any) -> torch.Tensor:
        if not torch.is_grad_enabled() and batch.input_ids.numel() > room:
            raise torch.OutOfMemoryError
        return states(self, batch)

    monkeypatch.setattr(BankedModel, "states", limited)
    parts = train(make_model(), jobs)
    assert_same_updates(whole[:1], parts[:1], 1e-6)
    assert (parts[1].outcome, parts[1].losses) == (UpdateOutcome.OUT_OF_MEMORY, ())
    assert "passage in context" in parts[1].detail


def test_passage_too_long_for_the_student_is_refused(make_model: MakeModel) -> None:
    sequence = TrainingSequence((1, 2), (True, True), (*range(257), 1, 2))
    recipe = UpdateRecipe(objective="context_distillation")
    (result,) = train(make_model(), [UpdateRequest("a", (sequence,), recipe, seed=0)])
    assert (result.outcome, "256 positions" in result.detail) == (UpdateOutcome.SEQUENCE_TOO_LONG, True)


def test_frozen_head_divergence_equals_that_of_whole_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    draw: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
    hidden, targets = torch.randn(50, 8, requires_grad=True, **draw), torch.randn(50, 8, **draw)
    head, weights = torch.randn(9000, 8, **draw), torch.rand(50, **draw)  # more labels than fit in one block of logits
    total, losses = frozen_head_loss(hidden, head, None, targets, weights)
    expected, parts = weighted_loss(nn.functional.linear(hidden, head), nn.functional.linear(targets, head), weights)
    assert torch.allclose(losses, parts, rtol=1e-10)
    (got,), (want,) = torch.autograd.grad(3 * total, hidden), torch.autograd.grad(3 * expected, hidden)
    assert torch.allclose(got, want, rtol=0, atol=1e-12)


def test_sequences_behind_the_passage_end_with_what_carries_loss(tokenizer: Any) -> None:
    document = Document(id="d", title="Iguanas", text="Iguanas climb.")
    lines = (("Iguanas can climb.", None), ("What climbs?", "An iguana"), ("No.", None))
    edit = SelfEdit(implications=tuple(Implication(text=text, answer=answer) for text, answer in lines))
    recipe = UpdateRecipe(objective="context_distillation")
    data = build_sequences(lines_of(edit), document, tokenizer, recipe, AnswerFormat(opening="Hello. "))
    statement, answered = data.sequences
    assert tokenizer.decode(statement.behind) == "<s>Passage: Iguanas climb.\nIguanas can climb.</s>"
    assert tokenizer.decode(answered.behind).startswith("<s>Hello. Passage: Iguanas climb.\nQuestion: What climbs?")
    for sequence, text in ((statement, "nas can climb.</s>"), (answered, " An iguana</s>")):
        kept = [token for token, loss in zip(sequence.tokens, sequence.loss_mask, strict=True) if loss]
        assert tokenizer.decode(kept) == text
        assert sequence.behind[-len(kept) :] == tuple(kept)
    assert [(line.line, line.reason) for line in data.skipped] == [(2, SkipReason.TOO_SHORT)]
