"""The command line from outside: how fast it answers, what it refuses and with which exit code."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from evaluation.common.checkpoints import MICRO_MODELS
from pipelines.checks import OPENED_BYTES
from tests.flows.settings import CONFIGS, PATIENCE_SECONDS, ROOT, command, imports_of_mlflow, preceptor, run_command

HEAVY = ("torch", "transformers", "mlflow", "prefect", "datasets")


def test_help_takes_little_cpu_time(tmp_path: Path) -> None:
    cost, code, output = imports_of_mlflow(preceptor("--help"), tmp_path, 1.0)
    assert code == 0
    assert "train-teacher" in output
    assert cost < 1.0


RUN_DRY = set(CONFIGS.glob("*.yaml")) - set(CONFIGS.glob("*-plan.yaml")) - set(CONFIGS.glob("write-corpus*"))
"""Of a corpus there is a preview instead."""


@pytest.mark.parametrize("config", sorted(RUN_DRY), ids=lambda path: path.name)
def test_dry_run_takes_little_cpu_time_and_starts_nothing(config: Path, tmp_path: Path) -> None:
    work_dir, night = tmp_path / "work", config.stem.startswith("night")
    flow = "adapt-student" if night else "train-teacher"
    # Others need models, or data, that may not be here.
    shipped = "micro-student" in config.read_text()
    codes = (0,) if shipped and "smoke" not in config.stem else (0, 2)
    dry_run = preceptor(flow, str(config), "--dry-run", "--work-dir", str(work_dir))
    # A real model that is here is looked at, which takes the import of torch and transformers.
    limit = 1.5 if night else 1.0 if shipped else 10.0
    cost, code, output = imports_of_mlflow(dry_run, tmp_path, limit)
    assert code in codes, output
    assert ("Nothing was started" in output) == (code == 2)
    told = "Starts from", "New documents", "inbox add FILE --work-dir"
    for row in (f"name: {config.stem}", *(told if night else ("Student updates",))):
        assert row in output
    assert not work_dir.exists()
    assert cost < limit


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train-teacher", "--help"],
        ["train-teacher", "configs/demo.yaml", "--dry-run"],
        ["train-teacher", "configs/demo.yaml", "--set", "loop.round=1"],
        ["train-teacher", "configs/demo.yaml", "--set", "loop.documents=300"],
        ["adapt-student", "configs/nights-demo.yaml", "--dry-run", "--work-dir", "no-such-directory"],
    ],
    ids=" ".join,
)
def test_answers_without_a_run_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from pipelines.cli import app\n"
        f"CliRunner().invoke(app, {arguments!r})\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.flow
def test_run_that_fails_ends_with_the_reason_and_code_1(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    broken = Path(shutil.copytree(MICRO_MODELS["micro-teacher"], tmp_path / "broken model"))
    settings = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(
        json.dumps({**settings, "intermediate_size": settings["intermediate_size"] * 2})
    )
    with (broken / "pytorch_model.bin").open("wb") as file:
        file.truncate(OPENED_BYTES + 1)  # what is larger is opened by the run alone
    work_dir = tmp_path / "work"
    arguments = command(CONFIGS / "demo.yaml", work_dir, [f"teacher.model='{broken}'"], tmp_path / "result.json")
    code, output = run_command(arguments, tmp_path / "home")
    assert code == 1, output
    assert output.count("could not open the checkpoint") == 1
    assert "Traceback" not in output
    assert not (tmp_path / "result.json").exists()
    client = MlflowClient(f"sqlite:///{work_dir / 'mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert [run.info.status for run in runs] == ["FAILED"]
