"""Blocks below the lowest adapted one read each sequence once, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from evaluation.exact_match import AnswerFormat
from evaluation.tasks import Question
from student.bank.bank import LoraBank
from student.bank.model import BankedModel
from student.config import UpdateRecipe
from student.updates import UpdateRequest
from tests.student.architectures import save_checkpoint
from tests.student.factories import MakeModel, adapter_of, deltas, same_bits, sequences, torch_threads

UPPER = (0.5, 1.0)
KINDS = ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "gemma3", "gpt2", "bloom", "gptj")
"""Packed and padded ones; those with sliding windows, and with blocks that return tuples."""


def _model(kind: str, place: Path, dtype: torch.dtype = torch.float64) -> Any:
    return AutoModelForCausalLM.from_pretrained(save_checkpoint(kind, place / kind), dtype=dtype).eval()


def _jobs(depth: tuple[float, float] = UPPER) -> list[UpdateRequest]:
    recipes = [UpdateRecipe(epochs=3, batch_size=2, depth=depth), UpdateRecipe(epochs=4, batch_size=4, depth=depth)]
    lengths = [[5, 9, 3, 7, 4], [12, 2, 6]]
    return [UpdateRequest(str(k), sequences(k, lengths[k], k == 1), recipe, k) for k, recipe in enumerate(recipes)]


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_scoring_with_reuse_equal_those_without(kind: str, tmp_path: Path, tokenizer: Any) -> None:
    model, found = _model(kind, tmp_path), []
    questions = [Question(question="who is it", answer="Tom"), Question(question="where", answer="at home now")]
    for reuse in (True, False):
        with LoraBank(model, depth=UPPER, reuse=reuse) as bank:
            assert (bank._opened()[0].lower.first_of(bank._opened()[0].shapes) > 0) == reuse
            results = bank.train(_jobs())
            adapters = [*map(adapter_of, results), None]
            scores = bank.score(adapters, [questions, questions, questions[:1]], tokenizer, AnswerFormat())
        assert all(isinstance(slot, list) for slot in scores)
        logs = [score.log_probability for slot in scores if isinstance(slot, list) for score in slot]
        found.append((results, logs))
    assert not any("forward" in vars(module) for module in model.modules())
    (ours, logs), (whole, expected) = found
    assert logs == pytest.approx(expected, rel=1e-7)
    for one, other in zip(ours, whole, strict=True):
        assert one.losses == pytest.approx(other.losses, rel=1e-7)
        changes = deltas(adapter_of(one).factors, 1.0), deltas(adapter_of(other).factors, 1.0)
        assert (changes[0] - changes[1]).norm() <= 1e-5 * changes[1].norm()


def test_lower_blocks_read_a_training_sequence_once(make_model: MakeModel) -> None:
    """The updates train on 23 and 17 places; with two threads, and where memory is short, results are the same."""
    for threads, most, memory in ((2, 64, None), (1, 1, None), (1, 64, 1)):
        found = []
        for reuse in (True, False):
            bank = LoraBank(make_model(), depth=UPPER, reuse=reuse, max_slots=most, memory_bytes=memory)
            with torch_threads(threads), bank:
                bank.train(_jobs())  # what is tried once is done
                seen: list[int] = []
                norm = bank._opened()[0].model.model.layers[0].input_layernorm
                norm.register_forward_hook(lambda _, inputs, __, seen=seen: seen.append(inputs[0].shape[1]))
                found.append((bank.train(_jobs()), sum(seen)))
        (ours, few), (whole, many) = found
        assert many - few >= 23 * 3 + 17 * 4 - (23 + 17)
        for one, other in zip(ours, whole, strict=True):
            changes = deltas(adapter_of(one).factors, 1.0), deltas(adapter_of(other).factors, 1.0)
            assert torch.allclose(*changes, rtol=0, atol=1e-5)


def test_reuse_is_tried_once_for_all_banks_of_a_model(make_model: MakeModel) -> None:
    model, passes = make_model(), [0, 0]
    for bank in range(2):
        student = BankedModel(model, "all-linear", UPPER)

        def count(*_: object, bank: int = bank) -> None:
            passes[bank] += 1

        with model.model.layers[0].register_forward_hook(count):
            assert student.lower.first_of(student.shapes) == 1
        student.restore()
    assert passes[0] > 0 == passes[1]


def test_adapters_at_all_depths_reuse_nothing(make_model: MakeModel) -> None:
    jobs = _jobs((0.0, 1.0))
    with LoraBank(make_model()) as bank:
        ours = bank.train(jobs)
        assert not any("forward" in vars(module) for module in bank._opened()[0].model.modules())
    with LoraBank(make_model(), reuse=False) as bank:
        whole = bank.train(jobs)
    assert all(same_bits(adapter_of(one), adapter_of(other)) for one, other in zip(ours, whole, strict=True))


def test_model_whose_blocks_give_more_than_hidden_states_reuses_nothing(tmp_path: Path) -> None:
    student = BankedModel(_model("xlnet", tmp_path, torch.float32), "all-linear", UPPER)
    assert student.lower.first_of(student.shapes) == 0
    student.restore()


def test_model_whose_upper_blocks_look_back_reuses_nothing(make_model: MakeModel) -> None:
    """A block that adds what the one below was given gets other numbers when that one does not run."""
    model = make_model()
    lower, upper = model.model.layers
    kept: list[torch.Tensor] = []
    lower.mlp.register_forward_hook(lambda _, inputs, __: kept.append(inputs[0]))
    upper.register_forward_hook(lambda _, inputs, output: output + kept[-1][:, :1])
    with LoraBank(model, depth=UPPER) as bank:
        student = bank._opened()[0]
        assert student.lower.first_of(student.shapes) == 0
        assert student.lower.state_bytes(1) == 0


def test_hidden_states_count_as_memory_of_a_slot(make_model: MakeModel) -> None:
    from student.bank.layers import FlatLayout
    from student.bank.training import Slot, bytes_of_slots

    student = BankedModel(make_model(), "all-linear", UPPER)
    layout = FlatLayout(student.shapes, 8)
    slots = [Slot(job, list(student.shapes)) for job in _jobs()]
    with_states = bytes_of_slots(student, layout, slots)
    student.lower.enabled = False
    assert with_states - bytes_of_slots(student, layout, slots) == 23 * 64 * 4
    student.restore()
