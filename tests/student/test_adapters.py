from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from evaluation.common.checkpoints import model_digest
from evaluation.common.errors import ModelError
from student.adapters import CONFIG_FILE, WEIGHTS_FILE, Adapter, load_adapter, save_adapter
from student.config import UpdateRecipe
from student.updates import TrainingSequence, UpdateRequest
from tests.student.factories import MakeModel, adapter_of, train

IDS = torch.arange(3, 15).view(2, 6)


def _trained(model: Any, rank: int = 3) -> Adapter:
    sequences = (TrainingSequence(tuple(range(40, 50)), (True,) * 10),)
    job = UpdateRequest("a", sequences, UpdateRecipe(rank=rank, epochs=4, alpha=5.0), seed=1)
    return adapter_of(train(model, [job])[0])


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_save_adapter_gives_peft_the_same_logits_as_merged_weights(
    make_model: MakeModel, tmp_path: Path, kind: str
) -> None:
    model = make_model(kind, torch.float64)
    adapter = _trained(model)
    base = model(IDS).logits.detach()
    directory = save_adapter(adapter, tmp_path / "student" / "v1", "base")
    merged = make_model(kind, torch.float64)
    with torch.no_grad():
        for name, (a, b) in adapter.factors.items():
            merged.get_submodule(name).weight += adapter.alpha / adapter.rank * b @ a
    expected = merged(IDS).logits.detach()
    opened = PeftModel.from_pretrained(model, directory, autocast_adapter_dtype=False)
    assert torch.allclose(opened(IDS).logits, expected, rtol=0, atol=1e-9)
    assert float((expected - base).abs().max()) > 1e-3
    assert sorted(p.name for p in directory.parent.iterdir()) == ["v1"]  # Nothing of the staging is left.


def test_adapter_round_trip_keeps_digest_and_replaces_an_older_one(make_model: MakeModel, tmp_path: Path) -> None:
    first, second = _trained(make_model()), _trained(make_model(), rank=2)
    save_adapter(first, tmp_path / "a")
    save_adapter(second, tmp_path / "a")
    back = load_adapter(tmp_path / "a")
    assert back.digest == second.digest != first.digest
    assert back.base_digest == model_digest(make_model())
    assert (back.rank, back.alpha) == (2, 5.0)


def test_load_adapter_written_by_peft_gives_its_logits_in_a_bank(make_model: MakeModel, tmp_path: Path) -> None:
    peft_model = get_peft_model(make_model(), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=generator)
    peft_model.save_pretrained(str(tmp_path))
    adapter = load_adapter(tmp_path)
    assert adapter.base_digest == ""
    weights = dict(peft_model.named_parameters())
    for name, (a, b) in adapter.factors.items():
        assert torch.equal(a, weights[f"base_model.model.{name}.lora_A.default.weight"])
        assert torch.equal(b, weights[f"base_model.model.{name}.lora_B.default.weight"])


def test_adapter_digest_depends_on_values_scale_and_base() -> None:
    a, b = torch.ones(1, 2), torch.ones(3, 1)
    adapters = [
        Adapter({"x": (a, b)}, 1, 2.0, "base"),
        Adapter({"x": (a, 2 * b)}, 1, 2.0, "base"),
        Adapter({"x": (a, b)}, 1, 3.0, "base"),
        Adapter({"x": (a, b)}, 1, 2.0, "other"),
        Adapter({"y": (a, b)}, 1, 2.0, "base"),
    ]
    assert len({adapter.digest for adapter in adapters}) == 5
    assert Adapter({"x": (a.clone(), b.clone())}, 1, 2.0, "base").digest == adapters[0].digest


@pytest.mark.parametrize(
    "change",
    [{"use_dora": True}, {"use_rslora": True}, {"bias": "all"}, {"rank_pattern": {"q": 2}}, {"peft_type": "IA3"}],
)
def test_load_adapter_of_another_kind_is_refused(make_model: MakeModel, tmp_path: Path, change: dict[str, Any]) -> None:
    save_adapter(_trained(make_model()), tmp_path / "a")
    path = tmp_path / "a" / CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ModelError, match="Allowed: plain LoRA"):
        load_adapter(tmp_path / "a")


def test_load_adapter_damaged_or_missing_files_are_refused(make_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no adapter_config"):
        load_adapter(tmp_path)
    adapter = _trained(make_model())
    weights = save_adapter(adapter, tmp_path / "a") / WEIGHTS_FILE
    tensors = load_file(weights)
    name = next(iter(tensors))
    tensors[name] = tensors[name] + 1
    save_file(tensors, weights, metadata={"base_digest": adapter.base_digest, "digest": adapter.digest})
    with pytest.raises(ModelError, match="changed or damaged"):
        load_adapter(tmp_path / "a")
    save_file({"lora.other": torch.zeros(1)}, weights)
    with pytest.raises(ModelError, match="pairs of lora_A"):
        load_adapter(tmp_path / "a")
    weights.unlink()
    with pytest.raises(ModelError, match="no adapter_model"):
        load_adapter(tmp_path / "a")


def test_save_adapter_that_fails_leaves_the_old_one(make_model: MakeModel, tmp_path: Path) -> None:
    old = _trained(make_model())
    save_adapter(old, tmp_path / "a")
    shared = torch.zeros(3, 3)
    with pytest.raises(RuntimeError):  # safetensors refuses tensors that share memory.
        save_adapter(Adapter({"x": (shared, shared)}, 3, 1.0, ""), tmp_path / "a")
    assert load_adapter(tmp_path / "a").digest == old.digest
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
