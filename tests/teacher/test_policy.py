from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from evaluation.common.checkpoints import Checkpoint
from evaluation.common.errors import ModelError
from teacher.policy import PolicyConfig, TeacherPolicy
from tests.teacher.factories import loaded, shaken, tiny_base


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(3, 23)[None]).logits
    return found


def test_create_equals_its_base() -> None:
    base = tiny_base()
    expected = logits(base.model)
    policy = TeacherPolicy(base, PolicyConfig(rank=4), seed=1)
    assert torch.equal(logits(policy.model), expected)
    assert policy.optimizer_state is None


def test_create_adapts_all_linear_layers_except_the_output_layer() -> None:
    policy = TeacherPolicy(tiny_base(), PolicyConfig(rank=4), seed=1)
    assert len(policy.adapter_parameters()) == 2 * 2 * 7  # A and B of 7 linear layers in 2 blocks
    trained = {name for name, weight in policy.model.named_parameters() if weight.requires_grad}
    assert all(".lora_" in name for name in trained)
    assert not any("lm_head" in name for name in trained)


def test_create_depends_on_its_seed_alone_and_leaves_the_global_generator() -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = TeacherPolicy(tiny_base(), PolicyConfig(rank=4), seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    assert TeacherPolicy(tiny_base(), PolicyConfig(rank=4), seed=1).digest == first.digest
    assert TeacherPolicy(tiny_base(), PolicyConfig(rank=4), seed=2).digest != first.digest
    assert TeacherPolicy(tiny_base(), PolicyConfig(rank=4, alpha=8.0), seed=1).digest != first.digest
    assert TeacherPolicy(tiny_base(seed=3), PolicyConfig(rank=4), seed=1).digest != first.digest


def test_create_refuses_a_base_that_carries_an_adapter() -> None:
    base = tiny_base()
    policy = TeacherPolicy(base, PolicyConfig(rank=4), seed=1)
    with pytest.raises(ModelError, match="already carries an adapter"):
        TeacherPolicy(Checkpoint(policy.model, base.tokenizer), PolicyConfig(rank=4), seed=1)
    with pytest.raises(ModelError, match="already carries an adapter"):
        TeacherPolicy(base, PolicyConfig(rank=4), seed=1)


def test_reference_is_the_base_and_ends() -> None:
    base = tiny_base()
    expected = logits(base.model)
    policy = shaken(TeacherPolicy(base, PolicyConfig(rank=4), seed=1))
    adapted = logits(policy.model)
    assert not torch.allclose(adapted, expected, atol=1e-2)
    with policy.reference():
        assert torch.equal(logits(policy.model), expected)
    assert torch.equal(logits(policy.model), adapted)
    assert all(weight.requires_grad for weight in policy.adapter_parameters())


def test_reset_makes_the_policy_its_base_again() -> None:
    fresh = TeacherPolicy(tiny_base(), PolicyConfig(rank=4), seed=1)
    policy = shaken(TeacherPolicy(tiny_base(), PolicyConfig(rank=4), seed=2))
    policy.optimizer_state = {"state": {}}
    policy.reset(seed=1)
    assert policy.digest == fresh.digest
    assert policy.optimizer_state is None


def test_save_then_load_is_exact_and_in_peft_format(tmp_path: Path) -> None:
    policy = shaken(TeacherPolicy(tiny_base(), PolicyConfig(rank=4, alpha=6.0), seed=1))
    policy.optimizer_state = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}
    policy.save(tmp_path / "policy")
    again = loaded(tmp_path / "policy", tiny_base())
    assert again.digest == policy.digest
    assert again.config == policy.config
    assert again.optimizer_state == policy.optimizer_state
    assert torch.equal(logits(again.model), logits(policy.model))
    opened = PeftModel.from_pretrained(tiny_base().model, str(tmp_path / "policy"))
    assert torch.equal(logits(opened), logits(policy.model))


def test_save_replaces_an_existing_policy_completely(tmp_path: Path) -> None:
    policy = TeacherPolicy(tiny_base(), PolicyConfig(rank=4), seed=1)
    policy.save(tmp_path / "policy")
    (tmp_path / "policy" / "stale.txt").write_text("of the old version")
    shaken(policy).save(tmp_path / "policy")
    assert loaded(tmp_path / "policy", tiny_base()).digest == policy.digest
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    assert not (tmp_path / "policy" / "stale.txt").exists()


def test_load_refuses_another_base_and_damaged_directories(tmp_path: Path) -> None:
    shaken(TeacherPolicy(tiny_base(), PolicyConfig(rank=4), seed=1)).save(tmp_path / "policy")
    with pytest.raises(ModelError, match="trained on the base"):
        loaded(tmp_path / "policy", tiny_base(seed=9))
    with pytest.raises(ModelError, match="holds no complete policy"):
        loaded(tmp_path / "nowhere", tiny_base())
    for name in ("optimizer.pt", "adapter_model.safetensors"):
        shutil.copytree(tmp_path / "policy", tmp_path / name)
        (tmp_path / name / name).write_bytes(b"torn")
        with pytest.raises(ModelError, match="changed or damaged"):
            loaded(tmp_path / name, tiny_base())
        (tmp_path / name / name).unlink()
        with pytest.raises(ModelError, match="changed or damaged"):
            loaded(tmp_path / name, tiny_base())
    (tmp_path / "policy" / "policy.json").write_text('{"config": {}}')
    with pytest.raises(ModelError, match="holds no complete policy"):
        loaded(tmp_path / "policy", tiny_base())
