"""Students by their words, what is refused before anything starts, and one comparison from the command to MLflow."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from html import escape
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from evaluation.common.checkpoints import load_checkpoint
from evaluation.common.errors import ConfigError, ScoringError
from pipelines.check_regression.compare import compare_subjects
from pipelines.check_regression.students import score_students
from pipelines.check_regression.suite import RegressionSuite, load_content, parse_subject
from pipelines.cli import app
from pipelines.compare_students.comparison import StudentsComparison
from pipelines.compare_students.students import make_plan, parse_student, run_plan
from pipelines.lineage.run import Lineage
from pipelines.lineage.versions import NIGHT_TAG
from pipelines.models import close_models
from pipelines.reports.console import Reporter
from pipelines.settings import load
from student.adapters import Adapter, save_adapter
from tests.faults import MODEL, FaultyServer
from tests.pipelines.check_regression.factories import DATA, made_adapter, saved_adapter, small_suite
from tests.pipelines.lineage.test_registry import Open


def test_students_are_read_with_labels_seeds_and_patterns(tmp_path: Path) -> None:
    for name in ("seed-1", "seed-2", "a,b=c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").touch()
    assert parse_student("base") == ("base", (parse_subject("base"),))
    both = (parse_subject(f"adapter:{tmp_path}/seed-1"), parse_subject(f"adapter:{tmp_path}/seed-2"))
    assert parse_student(f"mine=adapter:{tmp_path}/seed-*") == ("mine", both)
    assert parse_student(f"mine=adapter:{tmp_path}/seed-1,adapter:{tmp_path}/seed-2") == ("mine", both)
    assert parse_student(f"adapter:{tmp_path}/seed-*") == (f"adapter:{tmp_path}/seed-*", both)
    odd = f"adapter:{tmp_path}/a,b=c"
    assert [each.text for each in parse_student(f"x={odd},base").seeds] == [odd, "base"]
    assert parse_student(odd).label == odd
    for text, said in (
        (f"adapter:{tmp_path}/no-*", "no directory matches"),
        ("x=teacher:base", "is a variant"),
        (" =base", "allowed are"),
    ):
        with pytest.raises(ConfigError, match=said):
            parse_student(text)


def test_misuse_is_found_before_prefect_or_a_model_is_imported(tmp_path: Path) -> None:
    suite, loose = str(small_suite(tmp_path)), tmp_path / "loose"
    loose.mkdir()
    unpinned = str(small_suite(loose, pin=False))
    base, other = ["--student", "base"], ["--student", "other=base"]
    cases = [
        [suite, *base],
        [suite, *base, *base],
        [suite, suite, *base, *other],
        [suite, *base, "--student", "nobody"],
        [suite, *base, "--student", "adapter:absent"],
        [suite, *base, *other, "--reference", "none"],
        [suite, *base, "--student", "version:student/1"],
        [suite, *base, "--student", "endpoint:http://127.0.0.1:1/v1#m?key_env=NOT_SET_ANYWHERE"],
        [suite, *base, "--student", f"model:{loose}"],
        [unpinned, *base, *other],
        [str(tmp_path / "none.yaml"), *base, *other],
    ]
    code = (
        "import sys, json\n"
        "from pipelines.cli import main\n"
        "codes = []\n"
        f"for arguments in {cases!r}:\n"
        f"    sys.argv = ['preceptor', 'compare', *arguments, '--work-dir', {str(tmp_path / 'work')!r}]\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as error:\n"
        "        codes.append(error.code)\n"
        "heavy = [n for n in ('torch', 'transformers', 'mlflow', 'prefect') if n in sys.modules]\n"
        "print(json.dumps([codes, heavy]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [[2] * len(cases), []], done.stderr


def test_a_student_that_does_not_fit_ends_the_comparison_before_anything_is_scored(tmp_path: Path) -> None:
    fit = made_adapter(0.0)
    foreign = save_adapter(Adapter(fit.factors, fit.rank, fit.alpha, "f" * 64), tmp_path / "foreign")
    plan = make_plan([small_suite(tmp_path)], ["base", f"adapter:{foreign}"], None, tmp_path)
    told = io.StringIO()
    reporter = Reporter(Console(file=told), 1)
    with pytest.raises(ScoringError, match=r"subject 'adapter:.*foreign' cannot be scored"):
        run_plan(plan, tmp_path, reporter)
    assert "scoring" not in told.getvalue()


def test_a_checkpoint_of_its_own_and_an_endpoint_answer_beside_the_base(tmp_path: Path) -> None:
    suite = load(small_suite(tmp_path, probes=6), RegressionSuite)
    content = load_content(suite)
    model, tokenizer = load_checkpoint("micro-student")
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "merged")
    words = ["base", f"model:{tmp_path / 'merged'}"]
    base, merged = score_students(suite, content, list(map(parse_subject, words)), tmp_path, texts=True)
    assert merged.scores == base.scores._replace(adapter_digest=merged.scores.adapter_digest)
    assert (merged.texts, base.scores.adapter_digest) == (base.texts, None)
    gold = [task.comparison_questions[0].answer for task in content.tasks]
    assert all(text == answer for text, answer, right in zip(base.texts, gold, base.right, strict=True) if right)
    assert all(text != answer for text, answer, right in zip(base.texts, gold, base.right, strict=True) if not right)
    golds = {q.question: q.answer for q in (*(t.comparison_questions[0] for t in content.tasks), *content.probes)}
    with FaultyServer() as server:
        server.replies = lambda prompt: next(
            f" {gold.upper()}\nQuestion: more" for q, gold in golds.items() if q in prompt
        )
        server.always = {content.tasks[0].comparison_questions[0].question: "no text"}
        word = f"endpoint:{server.base_url}#{MODEL}?budget_tokens=1000000"
        remote, known = score_students(suite, content, [parse_subject(word), parse_subject("base")], tmp_path)
        assert remote.right == (None, *[True] * (len(gold) - 1))
        assert remote.texts[1] == gold[1].upper()
        assert (remote.scores.probability, set(remote.probability)) == ({}, {None})
        assert None not in known.right  # by its text, too
        asked = len(server.seen)
        compare_subjects(suite.model_copy(update={"grading": None}), word, "base", tmp_path)
        assert len(server.seen) <= asked + 3  # what failed is asked again, replies are kept
    close_models()


@pytest.mark.flow
def test_command_compares_logs_and_writes_the_page(
    tmp_path: Path, work_dir: Path, open_run: Open, own_prefect: None
) -> None:
    suite = small_suite(tmp_path, groups={"some": ["test-0-0000", "test-0-0001"]})
    (tmp_path / "other").mkdir()
    other = small_suite(tmp_path / "other", name="other", data={**DATA, "test_documents": 20}, probes=0)
    for seed in (1, 2):
        save_adapter(made_adapter(0.02 * seed, seed), tmp_path / f"seed-{seed}", "micro-student")
    lineage: Lineage = open_run()
    marks: dict[str, Any] = {"digest": made_adapter(0.02, 1).digest, "tags": {NIGHT_TAG: "night-0007"}}
    version = lineage.registry.register("student", tmp_path / "seed-1", run_id=lineage.run_id, **marks)
    words = ["base", f"several=adapter:{tmp_path}/seed-*", f"adapter:{saved_adapter(tmp_path / 'ruined', 1.0)}"]
    words.append(f"version:student/{version}")
    options = [part for word in words for part in ("--student", word)]
    files = ["--html", str(tmp_path / "c.html"), "--json", str(tmp_path / "c.json"), "--work-dir", str(work_dir)]
    done = CliRunner().invoke(app, ["compare", str(suite), str(other), *options, *files], env={"COLUMNS": "120"})
    assert done.exit_code == 0, done.output
    found = StudentsComparison.model_validate_json((tmp_path / "c.json").read_text(encoding="utf-8"))
    part, second = found.suites
    assert [(each.suite, each.found.documents) for each in found.suites] == [("small", 60), ("other", 20)]
    base, several, ruined, registered = part.students
    assert (registered.version, registered.night) == (version, "night-0007")
    texts = [[answer.answer for answer in mine] for mine in (registered.answers, several.answers[:60])]
    assert texts[0] == texts[1]
    assert (len(base.answers), len(several.answers)) == (60, 120)
    checked = compare_subjects(load(suite, RegressionSuite), words[2], "base", tmp_path)
    assert [part.found.variants[s.name].mean for s in (ruined, base)] == [
        pytest.approx(subject.accuracy) for subject in checked.subjects.values()
    ]
    gain = part.found.gains[f"{words[2]}_minus_base"]
    assert gain.mean == pytest.approx(checked.checks[0].estimate)
    assert gain.low <= gain.mean <= gain.high <= 0.0
    assert ruined.notes["probes"] < base.notes["probes"] - 0.5
    assert set(part.groups) == {"some"}
    assert "several (2 seeds)" in done.output
    assert "check-regression" in done.output.splitlines()[-1]
    page = (tmp_path / "c.html").read_text(encoding="utf-8")
    assert escape(found.mlflow) in page
    for each in (part, second):
        _check_runs(work_dir, each.mlflow_run_id, each.suite, each.found.documents)


def _check_runs(work_dir: Path, run_id: str, name: str, questions: int) -> None:
    import mlflow
    from mlflow import MlflowClient

    client: Any = MlflowClient(f"sqlite:///{work_dir / 'mlflow.db'}")
    run = client.get_run(run_id)
    assert (run.data.tags["preceptor.kind"], run.info.status) == ("compare-students", "FINISHED")
    assert {"comparison.html", "result.json", "plots"} <= {each.path for each in client.list_artifacts(run_id)}
    assert run.data.params["name"] == name
    assert json.loads(run.inputs.dataset_inputs[0].dataset.profile)["num_rows"] == questions
    children = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")
    assert {child.data.params["student"] for child in children} > {"base", "several"}
    for child in children:
        low, mean, high = (child.data.metrics[f"eval/accuracy{end}"] for end in ("_ci_low", "", "_ci_high"))
        assert low <= mean <= high
        place = mlflow.artifacts.download_artifacts(f"{child.info.artifact_uri}/evaluation.json")
        table = json.loads(Path(place).read_text(encoding="utf-8"))
        assert sorted(table["columns"]) == ["answer", "document", "edit", "gold", "question", "right", "seed"]
        assert len(table["data"]) == questions * (2 if child.data.params["student"] == "several" else 1)
    assert "params.`student`" in client.get_experiment(run.info.experiment_id).tags["mlflow.sharedViewState.preceptor"]
