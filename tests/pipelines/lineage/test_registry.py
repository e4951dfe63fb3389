"""Versions and aliases in a real SQLite store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from evaluation.common.errors import ConfigError, LineageError
from pipelines.lineage.registry import Registry
from pipelines.lineage.run import Lineage
from pipelines.settings import AnyFlow, load
from student.adapters import load_adapter
from tests.pipelines.conftest import registered_versions
from tests.pipelines.factories import CONFIGS, make_learning, make_round

Open = Callable[..., Lineage]


@pytest.mark.usefixtures("global_store")
def test_registered_teacher_opens_with_peft_and_has_the_same_logits(open_run: Open, tmp_path: Path) -> None:
    from mlflow.artifacts import download_artifacts
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}

    def base() -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return LlamaForCausalLM(LlamaConfig(vocab_size=300, initializer_range=0.2, **sizes)).eval()

    tokens = torch.arange(10, 26)[None]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        teacher = get_peft_model(base(), lora).eval()
        expected, untrained = teacher(tokens).logits, base()(tokens).logits
    teacher.save_pretrained(tmp_path / "teacher")
    lineage = open_run()
    learning = make_learning(load_adapter(tmp_path / "teacher").digest)
    lineage.log_round(make_round(learning=learning), tmp_path / "teacher")
    places = [
        download_artifacts("models:/preceptor-teacher@candidate"),
        str(lineage.registry.fetch("teacher", "candidate", tmp_path / "copies")),
    ]
    with torch.no_grad():
        for place in places:
            assert torch.equal(PeftModel.from_pretrained(base(), place).eval()(tokens).logits, expected)
    assert not torch.allclose(expected, untrained)


def test_register_student_ties_metrics_to_the_model_once(open_run: Open, policy_dir: Path) -> None:
    lineage = open_run()
    for _ in range(2):
        assert (
            lineage.registry.register(
                "student",
                policy_dir,
                digest="e" * 64,
                run_id=lineage.run_id,
                tags={"preceptor.gate": "passed"},
                metrics={"eval/accuracy": 0.5},
            )
            == 1
        )
    (found,) = registered_versions(lineage, "student")
    assert found.tags["preceptor.gate"] == "passed"
    model = lineage.store.client.get_logged_model(found.tags["preceptor.model_id"])
    assert [(m.key, m.value) for m in model.metrics] == [("eval/accuracy", 0.5)]
    assert str(model.status) == "READY"
    assert lineage.registry.aliases("student") == {"candidate": 1}


def test_unknown_version_is_refused_with_the_next_step(open_run: Open, tmp_path: Path) -> None:
    for version in ("champion", 9):
        with pytest.raises(ConfigError, match="preceptor versions --role teacher"):
            open_run().registry.number("teacher", version)
    with pytest.raises(LineageError, match="version 9 of 'preceptor-teacher'"):
        open_run().registry.fetch("teacher", 9, tmp_path / "files")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_commands_on_the_store_read_the_file_of_any_flow(path: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(path.read_text()) | {"tracking": {"experiment": "ours/any"}}
    if "student" not in content:
        missing = "teacher, student are missing" if path.name.endswith("-plan.yaml") else "student is missing"
        with pytest.raises(ConfigError, match=missing):
            load(path, AnyFlow)
        return
    (tmp_path / "ours.yaml").write_text(yaml.safe_dump(content))
    flow = load(tmp_path / "ours.yaml", AnyFlow)
    assert (flow.tracking.registry_prefix, flow.student.model) == ("ours", content["student"]["model"])


def test_registry_commands_take_a_flows_file(
    open_run: Open, policy_dir: Path, preceptor: Callable[..., str], tmp_path: Path
) -> None:
    config = tmp_path / "night.yaml"
    config.write_text((CONFIGS / "nights-demo.yaml").read_text() + "tracking: {experiment: ours/nights}\n")
    lineage, file = open_run(), ("--config", str(config))
    registry = Registry(lineage.store, "ours")
    for digit in "ab":
        registry.register("teacher", policy_dir, digest=digit * 64, run_id=lineage.run_id, tags={})
    said = preceptor("promote", "teacher", "1", *file)
    assert "Version 1 of the teacher is the champion; there was none before." in said
    assert "the previous one is version 1" in preceptor("promote", "teacher", "2", *file)
    back = preceptor("rollback", "--role", "teacher", "--because", "x", *file)
    assert "Version 1 of the teacher is the champion again" in back
    assert "champion" in preceptor("versions", "--role", "teacher", *file)
    assert registry.aliases("teacher")["champion"] == 1
    assert lineage.registry.aliases("teacher") == {}
