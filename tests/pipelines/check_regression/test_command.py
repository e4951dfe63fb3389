"""The command with its exit codes, and the documented workflow with a planted regression."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from junitparser import JUnitXml
from typer.testing import CliRunner

from pipelines.check_regression.compare import compare_subjects
from pipelines.check_regression.suite import RegressionSuite, load_content
from pipelines.cli import app
from pipelines.experiments.example_student import lines_for
from pipelines.settings import load
from tests.pipelines.check_regression import factories


def logged_runs(work: Path) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{work / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("preceptor/check-regression")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"]))


def run_command(place: Path, work: Path, suite: Path, candidate: str, baseline: str) -> tuple[int, str, Any, Any]:
    """Return the exit code, what was printed, the JUnit suite and the JSON report."""
    out = ["--junit", str(place / "r.xml"), "--json", str(place / "r.json"), "--markdown", str(place / "r.md")]
    arguments = ["check-regression", str(suite), "--candidate", candidate, "--baseline", baseline]
    done = CliRunner().invoke(app, [*arguments, "--work-dir", str(work), *out])
    (junit,) = list(JUnitXml.fromfile(str(place / "r.xml")))
    return done.exit_code, done.stdout, junit, json.loads((place / "r.json").read_text())


@pytest.mark.flow
def test_command_exits_with_0_1_and_3_and_logs_its_runs(tmp_path: Path, empty_store: Path, own_prefect: None) -> None:
    suite = factories.small_suite(tmp_path)
    ruined = factories.saved_adapter(tmp_path / "ruined", 1.0)
    broken = tmp_path / "broken"
    shutil.copytree(ruined, broken)
    (broken / "adapter_model.safetensors").write_bytes(b"no weights")
    cases = {"base": (0, "passed"), f"adapter:{ruined}": (1, "regressed"), f"adapter:{broken}": (3, "undecided")}
    runs: list[Any] = []
    for candidate, (code, outcome) in cases.items():
        # A directory each: the server of a run that ended is stopped by the next one there, and here they share theirs.
        work = tmp_path / f"work {code}"
        work.mkdir()
        shutil.copy(empty_store, work / "mlflow.db")
        found, printed, junit, report = run_command(tmp_path, work, suite, candidate, "base")
        assert (found, report["outcome"]) == (code, outcome)
        assert (junit.failures > 0, junit.errors > 0) == (code == 1, code != 0)
        if code != 3:
            assert (tmp_path / "r.md").read_text() == printed
            runs += logged_runs(work)
            assert runs[-1].info.run_id == report["mlflow_run_id"]
            assert f"/runs/{report['mlflow_run_id']}" in printed
            assert ("lost most: document" in printed) == (code == 1)
    assert [run.data.tags["preceptor.outcome"] for run in runs] == ["passed", "regressed"]
    assert runs[1].data.tags["preceptor.candidate"] == f"adapter:{ruined}"
    assert runs[1].info.status == "FINISHED"
    assert runs[0].data.metrics["change/documents"] == 0.0
    low, mean, high = (runs[1].data.metrics[f"change/documents{bound}"] for bound in ("_ci_low", "", "_ci_high"))
    assert low < mean < high
    assert "evaluation.json" in runs[1].data.tags["mlflow.loggedArtifacts"]
    assert runs[1].data.metrics["change/retention probes"] < -0.5


@pytest.mark.flow
def test_command_on_variants_logs_their_self_edits(tmp_path: Path, work_dir: Path, own_prefect: None) -> None:
    suite = factories.adaptation_suite(tmp_path)
    worse = factories.run_config(tmp_path / "worse.yaml", "student.update.learning_rate=1e-4")
    good = factories.run_config(tmp_path / "good.yaml", "teacher.prompt=micro-rewrite")
    code, printed, junit, report = run_command(tmp_path, work_dir, suite, f"config:{worse}", f"config:{good}")
    assert code == 1
    assert printed == (tmp_path / "r.md").read_text()
    assert (junit.tests, junit.failures, junit.errors) == (4, 1, 0)
    (run,) = logged_runs(work_dir)
    assert run.info.run_id == report["mlflow_run_id"]
    assert run.data.tags["preceptor.candidate_variant_sha"] == report["candidate"]["edits"]["digest"]
    assert run.data.metrics["candidate/unscored"] == 0.0
    assert run.data.metrics["change/documents"] < -0.1
    assert json.loads(run.data.params["adaptation.update.depth"]) == [0.5, 1.0]


def test_command_refuses_misuse_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    suite = factories.small_suite(tmp_path, pin=False)
    (tmp_path / "variants").mkdir()
    variants = factories.adaptation_suite(tmp_path / "variants", pin=False)
    other = factories.run_config(tmp_path / "other.yaml", "student.model=elsewhere")
    cases = [
        [str(suite)],
        [str(suite), "--candidate", "nobody", "--baseline", "base"],
        [str(tmp_path / "none.yaml"), "--candidate", "base", "--baseline", "base"],
        [str(suite), "--candidate", "base"],
        ["--nothing"],
        [str(suite), "--candidate", "teacher:base", "--baseline", "base"],
        [str(suite), "--candidate", "teacher:base", "--baseline", "teacher:base"],
        [str(variants), "--candidate", f"config:{other}", "--baseline", "teacher:base"],
    ]
    reports = ["--markdown", "r.md", "--json", "r.json", "--junit", "r.xml"]
    code = (
        "import sys, json\n"
        "from pathlib import Path\n"
        "from pipelines.cli import main\n"
        "codes, told = [], []\n"
        f"for arguments in {cases!r}:\n"
        f"    sys.argv = ['preceptor', 'check-regression', *arguments, *{reports!r}]\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as error:\n"
        "        codes.append(error.code)\n"
        "    files = [Path(name) for name in sys.argv if name.startswith('r.')]\n"
        "    told.append([file.read_text() if file.exists() else '' for file in files])\n"
        "    [file.unlink(missing_ok=True) for file in files]\n"
        "heavy = [n for n in ('torch', 'transformers', 'mlflow', 'prefect') if n in sys.modules]\n"
        "print(json.dumps([codes, heavy, told]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(factories.ROOT)},
    )  # fmt: skip
    codes, heavy, told = json.loads(done.stdout.splitlines()[-1])
    assert (codes, heavy) == ([2] * len(cases), [])
    for arguments, (page, record, junit) in zip(cases, told, strict=True):
        if arguments != ["--nothing"]:  # no option is known to be one then
            assert page.startswith("# MISUSE")
            assert json.loads(record)["problem"] in done.stderr
            assert junit.count("<error ") == 1
    for message in ("allowed are base, adapter:DIRECTORY", "is a variant", "no section 'adaptation'", "elsewhere"):
        assert message in done.stderr


def test_command_pins_a_suite(tmp_path: Path) -> None:
    suite = factories.small_suite(tmp_path, pin=False)
    outcome = CliRunner().invoke(app, ["check-regression", str(suite), "--pin"], catch_exceptions=False)
    assert outcome.exit_code == 0
    assert "Pinned 60 documents with 60 questions and 60 probes" in outcome.output
    assert compare_subjects(load(suite, RegressionSuite), "base", "base", tmp_path).outcome == "passed"


ACTION = factories.ROOT / "docs" / "github-actions" / "check-regression"
WORKFLOW = yaml.safe_load((ACTION.parent / "regression.yml").read_text(encoding="utf-8"))
(USE,) = [step["with"] for step in WORKFLOW["jobs"]["regression"]["steps"] if "with" in step]


class Job:
    """A job on GitHub that uses the action: a checkout of a repository, and Preceptor's environment as if cached."""

    def __init__(self, place: Path) -> None:
        self.place, self.temp, self.outputs = place / "repository", place / "temp", dict[str, str]()
        self.place.mkdir()
        self.temp.mkdir()
        (self.place / "configs").symlink_to(factories.ROOT / "configs")
        subprocess.run(["git", "init", "--quiet"], cwd=self.place, check=True)
        (self.temp / "preceptor").symlink_to(Path(sys.executable).parents[1])

    def run(self, inputs: dict[str, str], **changes: str) -> tuple[int, str, str]:
        """Return exit code, output and summary of the action's scripts, as GitHub runs them; nothing is installed."""
        action = yaml.safe_load((ACTION / "action.yml").read_text(encoding="utf-8"))
        assert inputs.keys() <= action["inputs"].keys()
        given = {name: each.get("default", "") for name, each in action["inputs"].items()} | inputs
        files = {name: self.temp / name for name in ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT")}
        for file in files.values():
            file.write_text("")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GITHUB_ACTIONS": "true", "RUNNER_TEMP": str(self.temp)}
        environment |= {**WORKFLOW["env"], "GITHUB_ACTION_PATH": str(ACTION), "PYTHONPATH": str(factories.ROOT)}
        environment |= {**{name: str(file) for name, file in files.items()}, **changes}
        output = ""
        for step in action["runs"]["steps"]:
            if "run" not in step or (step.get("if") == "inputs.setup != ''" and not given["setup"]):
                continue
            script = substituted(step["run"], given)
            told = {name: substituted(value, given) for name, value in step.get("env", {}).items()}
            checked = ["-n"] if step.get("name") == "Install" else []
            bash = ["bash", "--noprofile", "--norc", *checked, "-eo", "pipefail", "-c", script]
            done = subprocess.run(bash, cwd=self.place, env=environment | told, capture_output=True, text=True)
            output += done.stdout + done.stderr
            if done.returncode:
                break
        lines = files["GITHUB_OUTPUT"].read_text().splitlines()
        self.outputs = dict(line.split("=", 1) for line in lines)
        return done.returncode, output, files["GITHUB_STEP_SUMMARY"].read_text(encoding="utf-8")

    @property
    def junit(self) -> Any:
        (suite,) = list(JUnitXml.fromfile(str(self.temp / "regression" / "regression.xml")))
        return suite


def substituted(text: str, inputs: dict[str, str]) -> str:
    """Return a text with the inputs in place of `${{ inputs.NAME }}`, as GitHub does it."""
    return re.sub(r"\$\{\{ inputs\.([a-z-]+) \}\}", lambda found: inputs[found[1]], text)


def test_misuse_in_the_action_is_told_on_the_pull_request(tmp_path: Path) -> None:
    job = Job(tmp_path)
    code, output, summary = job.run({**USE, "setup": "", "candidate": "adaptor:build/candidate"})
    assert code == 2, output
    assert summary.startswith("# MISUSE")
    assert "subject 'adaptor:build/candidate': allowed are base, adapter:DIRECTORY" in summary
    assert "::error file=configs/suites/micro-world.yaml,title=check-regression%3A misuse::subject" in output
    assert (job.outputs["outcome"], job.outputs["exit-code"]) == ("misuse", "2")
    assert len(job.outputs["key"]) == 16
    (case,) = job.junit
    assert "allowed are base" in case.result[0].message
    assert json.loads((tmp_path / "temp" / "regression" / "regression.json").read_text())["outcome"] == "misuse"


@pytest.mark.slow
@pytest.mark.flow
def test_the_action_names_the_questions_of_a_planted_regression_and_passes_an_unchanged_student(tmp_path: Path) -> None:
    job = Job(tmp_path)
    code, output, summary = job.run(USE, LEFT_OUT="0.11")
    assert code == 1, output[-4000:]
    assert summary.startswith("# REGRESSED")
    record = json.loads((tmp_path / "temp" / "regression" / "regression.json").read_text())
    assert (len(record["lost"]), record["lost_count"] > 10) == (10, True)
    annotations = [
        line for line in output.splitlines() if line.startswith("::error file=configs/suites/micro-world.yaml,")
    ]
    assert len(annotations) == 10
    failure = next(case for case in job.junit if case.name == "documents").result[0]
    for lost, annotation in zip(record["lost"], annotations, strict=True):
        assert lost["candidate_answer"].endswith(" ...")
        assert lost["baseline_answer"] == lost["gold"]
        for shown in (summary, annotation, failure.text):
            assert all(lost[name] in shown for name in ("question", "gold", "candidate_answer"))
    assert job.outputs["outcome"] == "regressed"
    code, output, summary = job.run({**USE, "setup": "", "candidate": USE["baseline"]})
    assert code == 0, output[-4000:]
    assert summary.startswith("# PASSED")
    assert (job.outputs["outcome"], "\n::" in output) == ("passed", False)


def test_the_example_student_leaves_whole_facts_out_by_its_seed() -> None:
    suite = load(factories.SHIPPED, RegressionSuite)
    content = load_content(suite)
    whole, planted, again, other = (
        {(line.text, line.answer) for line in lines_for(suite, content, *training).implications}
        for training in ((1, 0.0), (1, 0.25), (1, 0.25), (2, 0.25))
    )
    assert len(whole) == 80 * 2 * 2  # facts, phrasings
    assert planted < whole
    assert len(planted) == 0.75 * len(whole)
    assert planted == again
    assert planted != other
    asked = {question.question for task in content.tasks for question in task.comparison_questions}
    assert not {text for text, _ in whole} & asked  # no phrasing of the suite is trained on
