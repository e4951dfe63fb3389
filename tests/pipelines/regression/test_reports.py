from __future__ import annotations

from pathlib import Path

import pytest
from junitparser import JUnitXml

from evaluation.gate import GateCheck
from pipelines.regression.reports import (
    RegressionReport,
    ReportPaths,
    SubjectRecord,
    junit_xml,
    regression_markdown,
    write_reports,
)
from pipelines.regression.verdict import VerdictConfig

SUBJECT = SubjectRecord(
    subject="adapter:a|b", adapter_digest="a" * 64, version=None, accuracy=0.5, probability=0.25, probes=0.75
)
LOST = GateCheck(
    name="documents",
    verdict="fail",
    sentence="A loss of 9.0 points.",
    estimate=-0.09,
    low=-0.12,
    high=-0.06,
    limit=-0.05,
)
UNSURE = GateCheck(name="retention probes", verdict="undecided", sentence="Too few.", needed=70, documents=9)
GROUP = GateCheck(name="group x", verdict="undecided", sentence="It may be chance.")
FINE = GateCheck(name="empty or degenerate answers", verdict="pass", sentence="0 of 9 <answers> & so on.")


def report(**changes: object) -> RegressionReport:
    fields: dict[str, object] = {
        "suite": "small",
        "suite_digest": "d" * 64,
        "outcome": "regressed",
        "candidate": SUBJECT,
        "baseline": SUBJECT.model_copy(update={"subject": "base", "probes": None}),
        "checks": (LOST, UNSURE, GROUP, FINE),
        "limits": VerdictConfig(),
        "minimum_detectable": 0.03,
        "documents": 80,
        "questions": 320,
        "seconds": 12.5,
    }
    return RegressionReport.model_validate(fields | changes)


def test_junit_has_a_case_for_each_check_with_what_was_measured() -> None:
    found = JUnitXml.fromstring(junit_xml(report()))
    (suite,) = list(found)
    cases = {case.name: case for case in suite}
    assert (suite.tests, suite.failures, suite.errors, suite.skipped) == (4, 1, 1, 1)
    assert suite.time == pytest.approx(12.5)
    (failure,) = cases["documents"].result
    assert failure.message == "A loss of 9.0 points. Measured -9.0, bounds -12.0 to -6.0 points."
    assert [type(result).__name__ for name in cases for result in cases[name].result] == ["Failure", "Error", "Skipped"]
    assert cases[FINE.name].is_passed


def test_the_page_says_the_verdict_first_and_keeps_its_tables_whole() -> None:
    page = regression_markdown(report())
    assert page.startswith("# REGRESSED")
    assert "- documents: A loss of 9.0 points." in page
    assert "candidate `adapter:a\\|b`" in page
    assert "80 documents, 320 questions" in page
    assert "A loss of 3.0 points would be told" in page
    for columns in (4, 7):
        rows = [line for line in page.splitlines() if line.replace("\\|", "").count("|") == columns + 1]
        assert len(rows) >= 4


def test_a_test_that_could_not_be_made_is_an_error_with_its_reason() -> None:
    broken = report(outcome="undecided", problem="the store is gone", candidate=None, baseline=None, checks=())
    assert broken.exit_code == 3
    assert "the store is gone" in regression_markdown(broken)
    (suite,) = list(JUnitXml.fromstring(junit_xml(broken)))
    assert (suite.tests, suite.errors) == (1, 1)


def test_reports_are_written_whole_and_replace_older_ones(tmp_path: Path) -> None:
    paths = ReportPaths(tmp_path / "a" / "r.xml", tmp_path / "r.json", tmp_path / "r.md")
    for found in (report(), report(outcome="passed", checks=(FINE,))):
        write_reports(found, paths)
    assert paths.json is not None
    assert RegressionReport.model_validate_json(paths.json.read_text()) == report(outcome="passed", checks=(FINE,))
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["r.json", "r.md", "r.xml"]
