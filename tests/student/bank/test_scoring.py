"""Questions and prompts put to many adapters at once."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import torch
from peft import PeftModel

from evaluation.common.checkpoints import load_checkpoint, model_digest
from evaluation.common.errors import ScoringError
from evaluation.engines.vllm import VllmEngine
from evaluation.exact_match import AnswerFormat, score_answers
from evaluation.tasks import Document, Question
from student.adapters import Adapter, save_adapter
from student.bank.bank import LoraBank
from student.bank.scoring import ScoringFailure, answer_with_vllm
from student.config import UpdateRecipe
from student.updates import make_request
from teacher.self_edit import Implication, SelfEdit
from tests.student.factories import MakeModel, adapter_of, mixed_jobs
from tests.vllm_parts import SMALL, needs_vllm, random_adapter


def test_score_equals_plain_scores_of_each_adapter(make_model: MakeModel, tokenizer: Any) -> None:
    """Scored together, each slot answers as its adapter does alone: trained answers exactly, others not."""
    wrapper = AnswerFormat(prompt="{question}?")
    recipe = UpdateRecipe(epochs=40, batch_size=2, learning_rate=1e-2)
    facts = [("cat", "Tom"), ("dog", "Rex")]
    document = Document(id="d", text="none")
    jobs = [
        make_request(
            q, SelfEdit(implications=(Implication(text=q, answer=a),)), document, tokenizer, recipe, wrapper, 0
        )
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


@pytest.fixture(scope="module")
def engine() -> Iterator[VllmEngine]:
    # As in a process that has searched documents: the search library imports it where it is installed, which vLLM's
    # own start did not survive.
    importlib.import_module("numba")
    with closing(VllmEngine("micro-student", SMALL, max_rank=8)) as running:
        yield running


def questions(count: int) -> list[str]:
    return [f"Question: Where does {name} work? Answer:" for name in ("Mara Velt", "Otto Klein", "Ines Roth")[:count]]


@needs_vllm
def test_answers_equal_those_of_the_bank(engine: VllmEngine) -> None:
    student = load_checkpoint("micro-student")
    adapters = [None, *(random_adapter(student.model, seed, rank=4 + seed % 5) for seed in range(9)), None]
    adapters += [
        random_adapter(student.model, 9, depth=(0.5, 1.0)),
        random_adapter(student.model, 10, depth=(0.0, 0.5)),
    ]
    prompts = [questions(k % 4) for k in range(len(adapters))]
    with LoraBank(student.model, max_slots=4, base_digest=model_digest(student.model)) as bank:
        wanted = bank.generate(adapters, prompts, student.tokenizer, max_new_tokens=12)
    found = answer_with_vllm(engine, adapters, prompts, student.tokenizer, max_new_tokens=12)
    assert found == wanted
    flat = [text for texts in found if isinstance(texts, list) for text in texts]
    assert len(set(flat)) > len(flat) // 2, "answers that are all alike would hide a mix-up"


@needs_vllm
def test_an_adapter_that_does_not_fit_fails_alone(engine: VllmEngine) -> None:
    student = load_checkpoint("micro-student")
    adapters = [random_adapter(student.model, 0), random_adapter(student.model, 1, rank=64), None]
    prompts = [questions(2)] * 3
    fine, failed, base = answer_with_vllm(engine, adapters, prompts, student.tokenizer, max_new_tokens=8)
    assert isinstance(failed, ScoringFailure)
    assert "refused the adapter" in failed.reason
    alone: Any = answer_with_vllm(engine, adapters[:1], prompts[:1], student.tokenizer, max_new_tokens=8)
    assert [fine] == alone
    assert isinstance(base, list)
    with pytest.raises(ScoringError, match="got 3 adapters and 1 lists"):
        answer_with_vllm(engine, adapters, prompts[:1], student.tokenizer, max_new_tokens=8)
