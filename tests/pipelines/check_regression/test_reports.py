from __future__ import annotations

import json
from pathlib import Path

import pytest
from junitparser import JUnitXml

from evaluation.gate.checks import GateCheck
from pipelines.check_regression.reports import junit_xml, regression_markdown, tell_github, write_reports
from pipelines.check_regression.verdict import (
    ComparedQuestion,
    EditsRecord,
    RegressionReport,
    SubjectRecord,
    VerdictConfig,
    check_unscored,
    lost_questions,
)

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


def test_junit_has_a_case_for_each_check_with_its_figures() -> None:
    (suite,) = list(JUnitXml.fromstring(junit_xml(report())))
    cases = {case.name: case for case in suite}
    assert (suite.tests, suite.failures, suite.errors, suite.skipped) == (4, 1, 1, 1)
    assert suite.time == pytest.approx(12.5)
    (failure,) = cases["documents"].result
    assert "Measured -9.0, bounds -12.0 to -6.0 points" in failure.message
    assert [type(result).__name__ for name in cases for result in cases[name].result] == ["Failure", "Error", "Skipped"]
    assert cases[FINE.name].is_passed


def question(i: int, **changes: object) -> ComparedQuestion:
    fields: dict[str, object] = {
        "document": f"d{i}",
        "question": f"Who has 50%, {i}|{i}?",
        "gold": "Ann",
        "candidate": 0.0,
        "baseline": 1.0,
        "candidate_answer": "Ben ...",
        "baseline_answer": "Ann",
        "candidate_probability": 0.125,
        "baseline_probability": 0.75,
    }
    return ComparedQuestion.model_validate(fields | changes)


def test_questions_that_got_worse_are_ordered_by_score_and_then_by_probability() -> None:
    half = question(1, candidate=0.5)
    unsure = question(2, candidate_probability=0.5)
    others = [question(4, candidate=1.0), question(5, candidate=None), question(6, baseline=0.0)]
    assert lost_questions([half, unsure, *others, question(3)]) == (question(3), unsure, half)


def test_every_report_names_the_questions_that_got_worse() -> None:
    variant = {"candidate": 0.5, "candidate_answer": "", "baseline_answer": ""}
    found = report(lost=(question(0), question(1, **variant)), lost_count=31)
    page = regression_markdown(found)
    assert "31 questions got worse, the 2 worst of them" in page
    assert "| d0 | Who has 50%, 0\\|0? | Ann | Ann (75.0%) | Ben ... (12.5%) |" in page
    assert "| right (75.0%) | 50.0% right (12.5%) |" in page
    record = json.loads(found.model_dump_json())
    assert (record["lost"][0]["candidate_answer"], record["lost_count"]) == ("Ben ...", 31)
    told = "document d0: Who has 50%, 0|0?\ngold: Ann\nbefore: Ann (75.0%)\nafter: Ben ... (12.5%)"
    (suite,) = list(JUnitXml.fromstring(junit_xml(found)))
    cases = {case.name: case for case in suite}
    assert told in cases["documents"].result[0].text
    assert not any(case.system_out for case in suite)
    unsure = report(outcome="undecided", checks=(UNSURE, FINE), lost=found.lost, lost_count=2)
    (suite,) = list(JUnitXml.fromstring(junit_xml(unsure)))
    assert [bool(case.system_out) for case in suite] == [True, False]
    assert told in next(iter(suite)).system_out


def test_a_step_of_github_has_annotations_summary_and_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = report(lost=tuple(map(question, range(10))), lost_count=31)
    tell_github(found, "suite.yaml")
    assert not capsys.readouterr().out
    for variable, name in {"GITHUB_STEP_SUMMARY": "SUMMARY", "GITHUB_OUTPUT": "OUTPUT"}.items():
        monkeypatch.setenv(variable, str(tmp_path / name))
        (tmp_path / name).write_text("before\n")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    tell_github(found, "a,b:c.yaml")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert lines[0] == (
        "::error file=a%2Cb%3Ac.yaml,title=got worse%3A d0::Who has 50%25, 0|0?%0Agold: Ann%0Abefore: Ann (75.0%25)"
        "%0Aafter: Ben ... (12.5%25)"
    )
    assert (tmp_path / "SUMMARY").read_text() == "before\n" + regression_markdown(found)
    assert (tmp_path / "OUTPUT").read_text() == "before\noutcome=regressed\nexit-code=1\n"
    levels = {"passed": "notice", "undecided": "warning"}
    for outcome, level in levels.items():
        tell_github(found.model_copy(update={"outcome": outcome}), "suite.yaml")
        assert capsys.readouterr().out.startswith(f"::{level} ")
    tell_github(report(outcome="misuse", problem="two\nlines", checks=()), "suite.yaml")
    assert capsys.readouterr().out == "::error file=suite.yaml,title=check-regression%3A misuse::two%0Alines\n"


def test_the_page_starts_with_the_verdict_and_keeps_its_tables_whole() -> None:
    page = regression_markdown(report())
    assert page.startswith("# REGRESSED")
    for fact in ("- documents: A loss of 9.0 points.", "candidate `adapter:a\\|b`", "80 documents, 320 questions"):
        assert fact in page
    for columns in (4, 7):
        rows = [line for line in page.splitlines() if line.replace("\\|", "").count("|") == columns + 1]
        assert len(rows) >= 4


def test_variants_are_reported_with_their_self_edits_and_the_documents_left_out() -> None:
    edits = EditsRecord(digest="c" * 64, written=40, unscored={"parse_failed": 4, "update_failed": 2})
    variant = SUBJECT.model_copy(update={"subject": "version:teacher/2", "accuracy": None, "edits": edits})
    fine = edits.model_copy(update={"unscored": {}})
    found = report(
        outcome="undecided",
        candidate=variant,
        baseline=variant.model_copy(update={"edits": fine}),
        checks=(check_unscored(edits, fine, 2, 20),),
        documents=20,
        left_out=("x", "y"),
    )
    page = regression_markdown(found)
    assert "| candidate `version:teacher/2` |  | 25.0% | 75.0% | 40 | 6 (parse_failed 4, update_failed 2) |" in page
    assert "| baseline `version:teacher/2` |  | 25.0% | 75.0% | 40 | 0 |" in page
    assert "20 documents, 2 left out" in page
    assert 'errors="1"' in junit_xml(found)
    assert RegressionReport.model_validate_json(found.model_dump_json()) == found


def test_a_failed_comparison_is_an_error_with_its_reason() -> None:
    broken = report(outcome="undecided", problem="the store is gone", candidate=None, baseline=None, checks=())
    assert broken.exit_code == 3
    assert "the store is gone" in regression_markdown(broken)
    (suite,) = list(JUnitXml.fromstring(junit_xml(broken)))
    assert (suite.tests, suite.errors) == (1, 1)


def test_reports_are_written_whole_and_replace_older_ones(tmp_path: Path) -> None:
    files = {"junit": tmp_path / "a" / "r.xml", "json": tmp_path / "r.json", "markdown": tmp_path / "r.md"}
    for found in (report(), report(outcome="passed", checks=(FINE,))):
        write_reports(found, {kind: str(file) for kind, file in files.items()})
    assert RegressionReport.model_validate_json(files["json"].read_text()) == report(outcome="passed", checks=(FINE,))
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {*files.values()}
