"""Real students of the micro-world on a real store, compared by the flow and by the command."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from junitparser import JUnitXml
from typer.testing import CliRunner

from evaluation.errors import ConfigError, InputError, LineageError, ModelError, ScoringError
from pipelines.cli import app
from pipelines.config import TrackingConfig
from pipelines.lineage import Lineage
from pipelines.registry import Registry
from pipelines.regression.check import compare_subjects
from pipelines.regression.subjects import check_store, open_subject, parse_subject
from pipelines.regression.suite import load_suite
from tests.pipelines.regression.parts import made_adapter, run_config, saved_adapter, small_suite, ways_suite
from tests.pipelines.test_registry import Open


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bases",
        "adapter:",
        "version:",
        "version:student",
        "version:student/0",
        "version:teacher",
        "version:grader/1",
        "teacher:",
        "config:",
        "x:y",
        "version:student@",
    ],
)
def test_words_that_name_no_subject_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="allowed are base, adapter:DIRECTORY"):
        parse_subject(text)


def test_subjects_are_read_as_they_are_written(tmp_path: Path) -> None:
    assert parse_subject("base").kind == "base"
    assert parse_subject(f"adapter:{tmp_path}").directory == tmp_path
    assert parse_subject("version:student/12").version == 12
    assert parse_subject("version:student@champion").version == "champion"
    with pytest.raises(ConfigError, match="there is no directory"):
        parse_subject(f"adapter:{tmp_path}/nowhere")
    with pytest.raises(ConfigError, match="holds no runs"):
        check_store([parse_subject("version:student/1")], TrackingConfig(), tmp_path)
    check_store([parse_subject("base")], TrackingConfig(), tmp_path)


def test_versions_are_opened_by_number_and_by_alias(open_run: Open, work_dir: Path, tmp_path: Path) -> None:
    lineage: Lineage = open_run()
    adapter = made_adapter(0.0)
    directory = saved_adapter(tmp_path / "adapter", 0.0)
    version = lineage.register("student", directory, digest=adapter.digest, tags={}, metrics={})
    Registry.open(TrackingConfig(), work_dir).promote("student", version.version)
    for text in (f"version:student/{version.version}", "version:student@champion"):
        opened = open_subject(parse_subject(text), TrackingConfig(), work_dir, tmp_path / "scratch")
        assert opened.adapter is not None
        assert (opened.adapter.digest, opened.version) == (adapter.digest, version.version)
    with pytest.raises(ConfigError, match="has no alias 'previous'"):
        open_subject(parse_subject("version:student@previous"), TrackingConfig(), work_dir, tmp_path)
    with pytest.raises(LineageError):
        open_subject(parse_subject("version:student/99"), TrackingConfig(), work_dir, tmp_path)


def test_a_student_compared_with_itself_passes_and_a_ruined_one_has_regressed(tmp_path: Path) -> None:
    suite = load_suite(small_suite(tmp_path))
    same = compare_subjects(suite, f"adapter:{saved_adapter(tmp_path / 'same', 0.0)}", "base", tmp_path)
    assert same.outcome == "passed"
    assert same.candidate is not None
    assert same.baseline is not None
    assert same.candidate.accuracy == same.baseline.accuracy
    assert same.baseline.probes is not None
    assert same.baseline.probes > 0.9  # what the base was pretrained on
    assert (same.documents, same.questions) == (60, 60)
    ruined = compare_subjects(suite, f"adapter:{saved_adapter(tmp_path / 'ruined', 1.0)}", "base", tmp_path)
    assert ruined.outcome == "regressed"
    assert {check.name: check.verdict for check in ruined.checks}["retention probes"] == "fail"


def test_what_is_not_pinned_or_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = small_suite(tmp_path)
    suite = load_suite(path)
    other = saved_adapter(tmp_path / "other", 0.0)
    (other / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="Allowed: plain LoRA"):
        compare_subjects(suite, f"adapter:{other}", "base", tmp_path)
    changed = suite.model_copy(update={"questions_per_document": 2})
    with pytest.raises(InputError, match="is not what was pinned: 60 documents"):
        compare_subjects(changed, "base", "base", tmp_path)
    from student.adapters import Adapter, save_adapter

    fit = made_adapter(0.0)
    foreign = save_adapter(Adapter(fit.factors, fit.rank, fit.alpha, "f" * 64), tmp_path / "foreign")
    with pytest.raises(ScoringError, match=r"subject 'adapter:.*foreign' cannot be scored"):
        compare_subjects(suite, f"adapter:{foreign}", "base", tmp_path)


@pytest.mark.flow
def test_command_exits_with_0_1_and_3_and_logs_what_it_found(
    tmp_path: Path, empty_store: Path, prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PREFECT_HOME", "PREFECT_LOCAL_STORAGE_PATH", "PREFECT_MEMO_STORE_PATH"):
        monkeypatch.setenv(name, str(tmp_path / "prefect"))  # else the command would set them for all later tests
    suite = small_suite(tmp_path)
    ruined = saved_adapter(tmp_path / "ruined", 1.0)
    broken = tmp_path / "broken"
    shutil.copytree(ruined, broken)
    (broken / "adapter_model.safetensors").write_bytes(b"no weights")
    out = ["--junit", str(tmp_path / "r.xml"), "--json", str(tmp_path / "r.json"), "--markdown", str(tmp_path / "r.md")]
    found: dict[str, tuple[int, str, int, int]] = {}
    runs: list[Any] = []
    for candidate in ("base", f"adapter:{ruined}", f"adapter:{broken}"):
        # A directory each: the server of a run that ended is stopped by the next one there, and here they share theirs.
        work = tmp_path / f"work {len(found)}"
        work.mkdir()
        shutil.copy(empty_store, work / "mlflow.db")
        arguments = ["check-regression", str(suite), "--candidate", candidate, "--baseline", "base"]
        outcome = CliRunner().invoke(app, [*arguments, "--work-dir", str(work), "--seed", "7", *out])
        (junit,) = list(JUnitXml.fromfile(str(tmp_path / "r.xml")))
        report = json.loads((tmp_path / "r.json").read_text())
        found[candidate.partition(":")[2]] = (outcome.exit_code, report["outcome"], junit.failures, junit.errors)
        if outcome.exit_code != 3:
            assert (tmp_path / "r.md").read_text() == outcome.stdout
            assert report["limits"]["seed"] == 7
            runs += logged_runs(work)
            assert runs[-1].info.run_id == report["mlflow_run_id"]
    assert found[""] == (0, "passed", 0, 0)
    assert found[str(ruined)][:2] == (1, "regressed")
    assert found[str(ruined)][2] >= 1
    assert found[str(broken)] == (3, "undecided", 0, 1)
    assert [run.data.tags["preceptor.outcome"] for run in runs] == ["passed", "regressed"]
    assert runs[1].data.tags["preceptor.candidate"] == f"adapter:{ruined}"
    assert runs[1].info.status == "FINISHED"
    assert runs[0].data.metrics["change/documents"] == 0.0
    assert runs[1].data.metrics["change/retention probes"] < -0.5


def logged_runs(work: Path) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{work / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("preceptor/check-regression")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"]))


def test_command_refuses_misuse_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    suite = small_suite(tmp_path, pin=False)
    (tmp_path / "ways").mkdir()
    ways = ways_suite(tmp_path / "ways", pin=False)
    other = run_config(tmp_path / "other.yaml", "student.model=elsewhere")
    cases = [
        [str(suite)],
        [str(suite), "--candidate", "nobody", "--baseline", "base"],
        [str(tmp_path / "none.yaml"), "--candidate", "base", "--baseline", "base"],
        [str(suite), "--candidate", "base"],
        ["--nothing"],
        [str(suite), "--candidate", "teacher:base", "--baseline", "base"],
        [str(suite), "--candidate", "teacher:base", "--baseline", "teacher:base"],
        [str(ways), "--candidate", f"config:{other}", "--baseline", "teacher:base"],
    ]
    code = (
        "import sys, json\n"
        "from pipelines.cli import main\n"
        "codes = []\n"
        f"for arguments in {cases!r}:\n"
        "    sys.argv = ['preceptor', 'check-regression', *arguments]\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as error:\n"
        "        codes.append(error.code)\n"
        "heavy = [n for n in ('torch', 'transformers', 'mlflow', 'prefect') if n in sys.modules]\n"
        "print(json.dumps([codes, heavy]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [[2] * len(cases), []]
    for told in ("allowed are base, adapter:DIRECTORY", "is a way of adapting", "no section 'adaptation'", "elsewhere"):
        assert told in done.stderr


def test_command_pins_a_suite(tmp_path: Path) -> None:
    suite = small_suite(tmp_path, pin=False)
    outcome = CliRunner().invoke(app, ["check-regression", str(suite), "--pin"], catch_exceptions=False)
    assert outcome.exit_code == 0
    assert "Pinned 60 documents with 60 questions and 60 probes" in outcome.output
    assert compare_subjects(load_suite(suite), "base", "base", tmp_path).outcome == "passed"
