from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest

from evaluation.checkpoints import load_checkpoint, model_digest
from evaluation.engines.vllm_engine import VllmEngine
from evaluation.errors import ScoringError
from student.lora_bank import LoraBank
from student.scoring import ScoringFailure
from student.vllm_answers import answer_with_vllm
from tests.vllm_parts import SMALL, needs_vllm, random_adapter

pytestmark = needs_vllm


@pytest.fixture(scope="module")
def engine() -> Iterator[VllmEngine]:
    # As in a process that has searched documents: the search library imports it where it is installed, which vLLM's
    # own start did not survive.
    importlib.import_module("numba")
    with VllmEngine("micro-student", SMALL, max_rank=8) as running:
        yield running


def questions(count: int) -> list[str]:
    return [f"Question: Where does {name} work? Answer:" for name in ("Mara Velt", "Otto Klein", "Ines Roth")[:count]]


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
