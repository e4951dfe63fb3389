"""What one configuration needs: models, heads, device, keys. Nothing is downloaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from pydantic import BaseModel

from evaluation.checkpoints import MICRO_MODELS
from evaluation.endpoints.config import EndpointConfig
from pipelines.doctor.checks import Check
from pipelines.doctor.children import Outcome
from pipelines.doctor.configuration import (
    device_checks,
    head_dimension,
    head_dimension_check,
    key_checks,
    lacking_files,
    model_checks,
    wants_vllm,
)
from tests.pipelines.doctor_parts import named
from tests.pipelines.small import small_config

NO_GPU = Outcome(data={"devices": []})


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MICRO_MODELS["micro-teacher"], tmp_path / "model"))


def models(*overrides: str) -> list[Check]:
    return list(model_checks(small_config(*overrides)))


def with_heads(checkpoint: Path, size: int) -> Path:
    """Change what a checkpoint says of its heads; its weights do not matter here."""
    content = json.loads((checkpoint / "config.json").read_text())
    content |= {"head_dim": None, "hidden_size": 4 * size, "num_attention_heads": 4}
    (checkpoint / "config.json").write_text(json.dumps(content))
    return checkpoint


def test_shipped_models_and_directories_are_at_hand(checkpoint: Path) -> None:
    checks = models(f"teacher.model={checkpoint}")
    assert {check.name: check.status for check in checks} == {"teacher model": "ok", "student model": "ok"}
    assert named(checks, "student model").found == "micro-student: ships with Preceptor"


def test_a_directory_that_lacks_parts_of_a_checkpoint(checkpoint: Path) -> None:
    assert lacking_files(checkpoint) == []
    (checkpoint / "tokenizer.json").unlink()
    (checkpoint / "config.json").write_text("{")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    check = named(models(f"teacher.model={checkpoint}"), "teacher model")
    assert check.status == "missing"
    for part in ("config.json", "tokenizer", "model-00001-of-00002.safetensors, which"):
        assert part in check.found
    (checkpoint / "model.safetensors").unlink()
    assert any(part.startswith("weights") for part in lacking_files(checkpoint))


@pytest.mark.parametrize("name", ["/nowhere/model", "./model", "some/where/else"])
def test_a_path_without_a_model_is_missing(name: str) -> None:
    check = named(models(f"student.model={name}"), "student model")
    assert (check.status, "no such directory" in check.found) == ("missing", True)


def test_a_hub_name_is_only_told_unless_downloads_are_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    override = "student.model=nobody/never-downloaded"
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    check = named(models(override), "student model")
    assert (check.status, check.fix) == ("ok", "")
    assert "the run downloads it" in check.found
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    check = named(models(override), "student model")
    assert (check.status, check.fix) == ("missing", "HF_HUB_OFFLINE=0 hf download nobody/never-downloaded")


@pytest.mark.parametrize(("size", "status"), [(24, "broken"), (48, "ok"), (64, "ok"), (40, "broken")])
def test_heads_that_vllm_does_not_compute_on_a_cpu(checkpoint: Path, size: int, status: str) -> None:
    with_heads(checkpoint, size)
    wanting = (f"teacher.model={checkpoint}", "teacher.sampling={type: vllm}")
    config = small_config(*wanting)
    assert wants_vllm(config)
    check = named(model_checks(config), "teacher's heads")
    assert check.status == status
    assert str(size) in check.found
    # Another engine, or a GPU, computes any size.
    for override in ("teacher.sampling={type: transformers}", "device=cuda"):
        assert "teacher's heads" not in [c.name for c in models(*wanting, override)]


def test_the_size_of_heads_by_what_kinds_of_models_say() -> None:
    assert head_dimension({"head_dim": 128, "hidden_size": 1024, "num_attention_heads": 16}) == 128
    assert head_dimension({"text_config": {"hidden_size": 96, "num_attention_heads": 4}}) == 24
    assert head_dimension({"n_embd": 768, "n_head": 12}) == 64
    assert head_dimension({"model_type": "mamba"}) is None
    assert head_dimension_check("nobody/never-downloaded").status == "warning"


def test_the_shipped_teacher_is_one_that_vllm_computes() -> None:
    assert head_dimension_check("micro-teacher").status == "ok"


def test_a_device_that_is_not_there() -> None:
    [check] = device_checks(small_config("device=cuda"), NO_GPU, native_bfloat16=False)
    assert check.status == "missing"
    [check] = device_checks(small_config("device=cuda"), Outcome(data={"devices": [{}]}), native_bfloat16=False)
    assert check.status == "ok"
    assert [c.status for c in device_checks(small_config(), NO_GPU, native_bfloat16=False)] == ["ok"]


def test_bfloat16_without_instructions_for_it_is_a_warning() -> None:
    config = small_config("dtype=bfloat16")
    assert named(device_checks(config, NO_GPU, native_bfloat16=False), "dtype").status == "warning"
    assert [c.name for c in device_checks(config, NO_GPU, native_bfloat16=True)] == ["device"]


class Part(BaseModel):
    endpoint: EndpointConfig | None


class Whole(BaseModel):
    parts: tuple[Part, ...]
    name: str = "whole"


def test_keys_are_looked_for_anywhere_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with_key = EndpointConfig(base_url="http://127.0.0.1:8000/v1", model="m", key_env="DOCTOR_TEST_KEY")
    without = EndpointConfig(base_url="http://127.0.0.1:8000/v1", model="m")
    whole = Whole(parts=(Part(endpoint=None), Part(endpoint=without), Part(endpoint=with_key)))
    monkeypatch.delenv("DOCTOR_TEST_KEY", raising=False)
    [check] = key_checks(whole)
    assert (check.status, check.fix) == ("missing", "export DOCTOR_TEST_KEY='the key'")
    monkeypatch.setenv("DOCTOR_TEST_KEY", "sesame")
    [check] = key_checks(whole)
    assert check.status == "ok"
    assert "sesame" not in check.model_dump_json()
    monkeypatch.setenv("DOCTOR_TEST_KEY", "sesame street")
    [check] = key_checks(whole)
    assert check.status == "missing"
    assert "street" not in check.model_dump_json()
