"""Students that are really trained, with and without a planted regression."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from junitparser import JUnitXml
from rich.console import Console

from pipelines.progress import Reporter
from pipelines.regression.example import Training, lines_for
from pipelines.regression.flakiness import Flakiness, Trial, flakiness_table, measure
from pipelines.regression.scoring import open_student
from pipelines.regression.suite import load_content, load_suite
from pipelines.regression.way_flakiness import measure_ways
from tests.pipelines.regression.parts import SHIPPED

ROOT = SHIPPED.parents[2]
WORKFLOW = ROOT / "docs" / "github-actions" / "regression.yml"


def commands() -> tuple[dict[str, str], list[str]]:
    """Return the environment and the commands of the workflow, in order, but for what installs the project."""
    whole = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    steps = whole["jobs"]["regression"]["steps"]
    return whole["env"], [step["run"] for step in steps if "run" in step and step["name"] != "Install"]


def run_workflow(place: Path, changes: dict[str, str]) -> tuple[int, str]:
    """Return the exit code of the first command that fails, as a CI server would, and what all of them wrote."""
    place.mkdir()
    for name in ("configs", "constraints.txt"):
        (place / name).symlink_to(ROOT / name)
    told, steps = commands()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    summary = place / "summary.md"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path, "GITHUB_STEP_SUMMARY": str(summary)}
    output = ""
    for step in steps:
        done = subprocess.run(
            ["bash", "-e", "-c", step],
            cwd=place,
            env={**environment, **told, **changes},
            capture_output=True,
            text=True,
        )
        output += done.stdout + done.stderr
        if done.returncode:
            return done.returncode, output
    return 0, output + summary.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.flow
def test_the_workflow_passes_as_it_is_and_fails_on_a_planted_regression(tmp_path: Path) -> None:
    code, output = run_workflow(tmp_path / "fine", {})
    assert code == 0, output[-4000:]
    assert output.count("# PASSED") == 2
    code, output = run_workflow(tmp_path / "planted", {"LEFT_OUT": "0.11"})
    assert code == 1, output[-4000:]
    (junit,) = list(JUnitXml.fromfile(str(tmp_path / "planted" / "build" / "regression.xml")))
    assert junit.failures == 1
    assert "# REGRESSED" in (tmp_path / "planted" / "build" / "regression.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_verdicts_on_students_of_other_seeds_are_right() -> None:
    suite = load_suite(SHIPPED)
    found = measure(suite, load_content(suite), open_student(suite), runs=3)
    assert found.false_alarms == 0
    assert found.misses == 0
    assert all("documents" in trial.failed for trial in found.trials if trial.planted)
    assert -0.13 < found.mean_change(planted=True) < -0.07
    assert abs(found.mean_change(planted=False)) < 0.04


@pytest.mark.slow
def test_verdicts_on_ways_of_adapting_with_other_seeds_are_right(tmp_path: Path, prefect_server: None) -> None:
    with Reporter(Console(file=io.StringIO()), 1) as reporter:
        found = measure_ways(load_suite(SHIPPED), tmp_path, reporter, runs=2, learning_rate=1e-3)
    assert found.false_alarms == 0
    assert found.misses == 0
    assert found.mean_change(planted=True) < -0.1
    assert abs(found.mean_change(planted=False)) < 0.06


def test_a_planted_regression_leaves_whole_facts_out_by_its_seed() -> None:
    suite = load_suite(SHIPPED)
    content = load_content(suite)
    whole, planted, again, other = (
        {(line.text, line.answer) for line in lines_for(suite, content, training).implications}
        for training in (Training(1), Training(1, 0.25), Training(1, 0.25), Training(2, 0.25))
    )
    assert len(whole) == 80 * 2 * 2  # facts, phrasings
    assert planted < whole
    assert len(planted) == 0.75 * len(whole)
    assert planted == again
    assert planted != other
    asked = {question.question for questions in content.questions.values() for question in questions}
    assert not {text for text, _ in whole} & asked  # no phrasing of the suite is trained on


def test_the_table_counts_what_was_found() -> None:
    trials = tuple(
        Trial(seed=i, planted=planted, outcome=outcome, change=change)
        for i, (planted, outcome, change) in enumerate(
            [
                (False, "passed", 0.01),
                (False, "regressed", -0.06),
                (True, "regressed", -0.1),
                (True, "undecided", -0.07),
                (True, "passed", -0.01),
            ]
        )
    )
    found = Flakiness(suite="s", suite_digest="d", planted="10% of the facts not learned", trials=trials, seconds=1.0)
    assert (found.false_alarms, found.misses) == (1, 2)
    assert "| unchanged | 1 | 1 | 0 | -2.5 | -6.0 | +1.0 |" in flakiness_table(found)
    assert "| 10% of the facts not learned | 1 | 1 | 1 | -6.0 | -10.0 | -1.0 |" in flakiness_table(found)


def test_the_workflow_is_about_the_shipped_suite() -> None:
    environment, steps = commands()
    assert environment == {"LEFT_OUT": "0"}
    assert sum("configs/suites/micro-world.yaml" in step for step in steps) == 3
    assert shutil.which("bash")
