"""Real teachers write for a real student of the micro-world, and what comes of it is compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from junitparser import JUnitXml
from typer.testing import CliRunner

from evaluation.checkpoints import load_checkpoint
from evaluation.errors import InputError
from pipelines.cli import app
from pipelines.config import TrackingConfig
from pipelines.lineage import Lineage
from pipelines.registry import Registry
from pipelines.regression.check import compare_subjects
from pipelines.regression.reports import RegressionReport
from pipelines.regression.suite import load_suite
from teacher.config import PolicyConfig
from teacher.policy import TeacherPolicy
from tests.pipelines.regression.parts import run_config, ways_suite
from tests.pipelines.regression.test_comparing import logged_runs
from tests.pipelines.small import save_tiny_model
from tests.pipelines.test_registry import Open

REWRITE = "teacher.prompt=micro-rewrite"
"""The micro teacher, untrained, writes more that is worth learning with it than with the suite's own prompt."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a pinned suite and a work directory, so that a way is measured once for all tests."""
    place = tmp_path_factory.mktemp("ways")
    ways_suite(place)
    (place / "work").mkdir()
    run_config(place / "good.yaml", REWRITE)
    return place


def compare(place: Path, candidate: str, baseline: str, work: str = "work") -> RegressionReport:
    return compare_subjects(load_suite(place / "suite.yaml"), candidate, baseline, place / work)


def verdicts(report: RegressionReport) -> dict[str, str]:
    return {check.name: check.verdict for check in report.checks}


def test_a_way_compared_with_itself_passes_without_any_change(place: Path, prefect_server: None) -> None:
    report = compare(place, f"config:{place}/good.yaml", f"config:{place}/good.yaml")
    assert report.outcome == "passed"
    assert set(verdicts(report).values()) == {"pass"}
    assert report.candidate is not None
    assert report.candidate == report.baseline
    assert report.candidate.edits is not None
    assert report.candidate.edits.written == report.documents == 20
    assert report.candidate.accuracy is not None
    assert report.candidate.accuracy > 0.2
    assert report.candidate.probes is not None
    assert report.candidate.probes > 0.7  # what the base was pretrained on
    assert [check.estimate for check in report.checks if check.name in ("documents", "retention probes")] == [0.0, 0.0]


@pytest.mark.parametrize(
    "planted",
    [(REWRITE, "student.update.learning_rate=1e-4"), ("teacher.prompt=implications",)],
    ids=["rate", "prompt"],
)
def test_a_regression_planted_in_a_configuration_is_found(
    place: Path, tmp_path: Path, prefect_server: None, planted: tuple[str, ...]
) -> None:
    worse = run_config(tmp_path / "worse.yaml", *planted)
    report = compare(place, f"config:{worse}", f"config:{place}/good.yaml")
    assert report.outcome == "regressed"
    assert verdicts(report)["documents"] == "fail"


def test_what_is_refused_or_fails_has_no_score_and_decides_nothing(
    place: Path, tmp_path: Path, prefect_server: None
) -> None:
    silent = save_tiny_model(tmp_path / "silent", silent=True)
    refused = (f"teacher.model={silent}", "teacher.sampling.temperature=0")
    for changes, reason in ((refused, "parse_failed"), (("student.update.learning_rate=1e-9",), "canary_failed")):
        file = run_config(tmp_path / "none.yaml", REWRITE, *changes)
        report = compare(place, f"config:{file}", f"config:{place}/good.yaml")
        assert (report.outcome, report.exit_code) == ("undecided", 3)
        assert report.candidate is not None
        assert report.candidate.edits is not None
        assert report.candidate.edits.unscored == {reason: 20}
        assert report.candidate.accuracy is None
        assert len(report.left_out) == 20
        assert report.questions == 0


def test_teachers_are_opened_from_a_directory_and_from_the_registry(
    place: Path, open_run: Open, work_dir: Path, prefect_server: None
) -> None:
    policy = TeacherPolicy.create(load_checkpoint("micro-teacher"), PolicyConfig(rank=2, alpha=4.0), 5)
    with torch.no_grad():
        for i, weight in enumerate(policy.adapter_parameters()):
            weight.copy_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(i)))
    policy.save(place / "teacher")
    own = compare(place, f"teacher:{place}/teacher", "teacher:base")
    assert own.candidate is not None
    assert own.baseline is not None
    assert (own.candidate.adapter_digest, own.baseline.adapter_digest) == (policy.digest, None)
    assert own.candidate.accuracy != own.baseline.accuracy  # the adapter writes, at another rank than the suite's
    lineage: Lineage = open_run()
    version = lineage.register("teacher", place / "teacher", digest=policy.digest, tags={}, metrics={})
    Registry.open(TrackingConfig(), work_dir).promote("teacher", version.version)
    suite = load_suite(place / "suite.yaml")
    registered = compare_subjects(suite, "version:teacher@champion", f"teacher:{place}/teacher", work_dir)
    assert registered.candidate is not None
    assert registered.baseline is not None
    assert (registered.candidate.version, registered.baseline.version) == (version.version, None)
    assert registered.candidate.edits == registered.baseline.edits
    assert registered.candidate.accuracy == own.candidate.accuracy


def test_another_teacher_than_the_pinned_one_is_refused(place: Path, prefect_server: None) -> None:
    suite = load_suite(place / "suite.yaml")
    assert suite.pins is not None
    other = suite.model_copy(update={"pins": suite.pins.model_copy(update={"teacher": "3" * 64})})
    with pytest.raises(InputError, match="the teacher 'micro-teacher' has the digest"):
        compare_subjects(other, "teacher:base", f"config:{place}/good.yaml", place / "work")


@pytest.mark.flow
def test_command_exits_with_1_on_a_planted_regression_and_writes_every_report(
    place: Path, tmp_path: Path, empty_store: Path, prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PREFECT_HOME", "PREFECT_LOCAL_STORAGE_PATH", "PREFECT_MEMO_STORE_PATH"):
        monkeypatch.setenv(name, str(tmp_path / "prefect"))  # else the command would set them for all later tests
    worse = run_config(tmp_path / "worse.yaml", REWRITE, "student.update.learning_rate=1e-4")
    shutil.copy(empty_store, place / "work" / "mlflow.db")
    out = ["--junit", str(tmp_path / "r.xml"), "--json", str(tmp_path / "r.json"), "--markdown", str(tmp_path / "r.md")]
    subjects = ["--candidate", f"config:{worse}", "--baseline", f"config:{place}/good.yaml"]
    work = ["--work-dir", str(place / "work")]
    outcome = CliRunner().invoke(app, ["check-regression", str(place / "suite.yaml"), *subjects, *work, *out])
    assert outcome.exit_code == 1
    assert outcome.stdout == (tmp_path / "r.md").read_text()
    report = RegressionReport.model_validate_json((tmp_path / "r.json").read_text())
    (junit,) = list(JUnitXml.fromfile(str(tmp_path / "r.xml")))
    assert (junit.tests, junit.failures, junit.errors) == (4, 1, 0)
    (run,) = logged_runs(place / "work")
    assert report.candidate is not None
    assert report.candidate.edits is not None
    assert run.info.run_id == report.mlflow_run_id
    assert run.data.tags["preceptor.candidate_way_sha"] == report.candidate.edits.digest
    assert run.data.metrics["candidate/unscored"] == 0.0
    assert run.data.metrics["change/documents"] < -0.1
    assert json.loads(run.data.params["adaptation.update.depth"]) == [0.5, 1.0]
