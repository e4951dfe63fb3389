"""The whole flow through the real command: its result for scripts, and what it leaves in MLflow."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.settings import load
from pipelines.train_teacher.config import TrainTeacherConfig
from tests.flows import settings
from tests.flows.conftest import FinishedRun

pytestmark = pytest.mark.flow

PLAIN = {"base", "raw_passage", "fixed_kind", "untrained_teacher", "trained_teacher"}
CONTROLS = {"null_edit", "other_document", "fixed_kind_equal_tokens", "oracle"}
VARIANTS = PLAIN | CONTROLS
GAINS = {
    *(f"trained_minus_{name}" for name in ("untrained", "fixed_kind", "fixed_kind_equal_tokens", "other_document")),
    *(f"{name}_minus_base" for name in ("trained", "untrained", "null_edit", "other_document")),
    *("trained_minus_raw_passage", "untrained_minus_raw_passage", "oracle_minus_trained"),
}


@pytest.fixture(scope="module")
def result(finished_run: FinishedRun) -> dict[str, Any]:
    whole: dict[str, Any] = json.loads(finished_run.result.read_text(encoding="utf-8"))
    return whole


@pytest.fixture(scope="module")
def client(finished_run: FinishedRun) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{finished_run.work_dir / 'mlflow.db'}")


@pytest.fixture(scope="module")
def units(client: Any, result: dict[str, Any]) -> dict[str, Any]:
    parent = client.get_run(result["mlflow_run_id"])
    wanted = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    children = client.search_runs([parent.info.experiment_id], wanted)
    return {child.data.tags["preceptor.unit"]: child for child in children}


def files(client: Any, run_id: str, place: str) -> set[str]:
    return {entry.path for entry in client.list_artifacts(run_id, place)}


def test_result_has_the_shape_that_scripts_rely_on(result: dict[str, Any]) -> None:
    fields = (
        "variants gains confidence documents rounds seconds seed notes mlflow_run_id config_digest code_digest "
        "document_accuracy edit_tokens padding_share spent judge inner_runs forgetting document_forgetting tests "
        "minimum_detectable specs groups transfer edit_notes phrasings warm_start unknown "
        "document_unknown token_probability graders"
    )
    assert set(result) == set(fields.split())
    assert set(result["variants"]) == VARIANTS
    assert set(result["gains"]) == GAINS
    for interval in [*result["variants"].values(), *result["gains"].values()]:
        assert set(interval) == {"mean", "low", "high"}
    for accuracy in result["variants"].values():
        assert 0.0 <= accuracy["low"] <= accuracy["mean"] <= accuracy["high"] <= 1.0
    assert [entry["round"] for entry in result["rounds"]] == [0, 1]
    assert all(0.0 <= entry[name] <= 1.0 for entry in result["rounds"] for name in ("mean_reward", "base_reward"))
    assert set(result["seconds"]) == {"sample", "update", "learn", "compare"}
    assert all(seconds > 0.0 for seconds in result["seconds"].values())
    assert result["unknown"]["variants"]["base"]["mean"] == 0.0
    assert set(result["token_probability"]) == set(result["document_unknown"]) == VARIANTS
    assert result["graders"] is None
    assert 1 <= result["documents"] <= 4
    assert all(isinstance(note, str) for note in result["notes"])
    assert set(result["document_accuracy"]) == VARIANTS
    assert set(result["edit_tokens"]) == VARIANTS - {"base", "raw_passage", "null_edit", "oracle"}
    assert set(result["tests"]) == GAINS
    assert set(result["forgetting"]) == VARIANTS - {"base"}
    assert result["inner_runs"] <= 2 * 2 * 3
    assert 0.0 <= result["padding_share"] < 1.0


def test_files_of_the_parent_run_are_those_of_the_run(
    client: Any, result: dict[str, Any], tmp_path: Path, finished_run: FinishedRun
) -> None:
    logged = Path(client.download_artifacts(result["mlflow_run_id"], "result.json", str(tmp_path)))
    assert json.loads(logged.read_text(encoding="utf-8")) == result
    resolved = Path(client.download_artifacts(result["mlflow_run_id"], "config.yaml", str(tmp_path)))
    assert load(resolved, TrainTeacherConfig).digest == result["config_digest"]
    assert settings.run_id_in(finished_run.output) == [result["mlflow_run_id"]]
    place = "/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=preceptor"
    assert f"http://127.0.0.1:5000{place}" in finished_run.output
    assert client.get_run(result["mlflow_run_id"]).info.run_name == "demo s0"


def test_every_round_and_variant_has_a_finished_child_run(
    client: Any, units: dict[str, Any], result: dict[str, Any]
) -> None:
    rounds = {"round-000", "round-001"}
    assert set(units) == rounds | {f"variant-{name}" for name in VARIANTS}
    assert {child.info.status for child in units.values()} == {"FINISHED"}
    for name in units.keys() - {"variant-base"}:
        tables = files(client, units[name].info.run_id, "candidates")
        assert any(path.endswith(".parquet") for path in tables), name
        assert units[name].info.end_time > units[name].info.start_time, name
    kept = files(client, units["variant-trained_teacher"].info.run_id, "adapters")
    assert len(kept) <= 1  # one was asked for; there is none when the first document's self-edit cannot be parsed


def test_every_variant_has_its_parameters_and_a_table_of_all_answers(client: Any, units: dict[str, Any]) -> None:
    for name in VARIANTS:
        run = units[f"variant-{name}"]
        assert (run.data.params["variant"], run.data.params["seed"]) == (name, "0")
        assert [given.dataset.name for given in run.inputs.dataset_inputs] == ["test-documents"]
        table = client.download_artifacts(run.info.run_id, "evaluation.json")
        answers = json.loads(Path(table).read_text(encoding="utf-8"))
        assert answers["columns"] == ["question", "answer", "gold", "right", "edit", "document", "seed"]
        assert answers["data"]
        for _, answer, gold, right, *_ in answers["data"]:
            assert answer == gold if right else answer.endswith(" ...")
    trained = units["variant-trained_teacher"].data.params
    assert (trained["teacher_version"], trained["prompt"]) == ("2", "micro-implications")
    assert units["variant-fixed_kind_equal_tokens"].data.params["prompt"] == "micro-self-qa"


def test_run_keeps_to_its_work_directory(finished_run: FinishedRun) -> None:
    assert not (finished_run.home / ".prefect").exists()
    kept = settings.counts(finished_run.work_dir)
    assert kept["learn"] == 2
    assert kept["sample"] == 2 + 2 + 2 + 1  # rounds, the fixed prompt on both sides, both teachers, at equal tokens


def test_squad_paragraphs_go_through_the_same_command(shared_data: Callable[..., Path], tmp_path: Path) -> None:
    path = shared_data("squad", "squad_val.json.gz")
    overrides = (
        f"data.path={path}",
        "threads=1",
        "data.max_documents=6",
        "data.development_documents=1",
        "data.test_documents=3",
        "loop={rounds: 1, documents: 2}",
        "teacher.samples=2",
        "teacher.sampling.max_new_tokens=48",
        "student.update.epochs=1",
        "comparison.variants=[base, raw_passage, untrained_teacher, trained_teacher]",
        "comparison.resamples=200",
    )
    result, _ = settings.train(tmp_path, "squad-smoke", overrides)
    # What the micro models write about real text may hold no self-edit: then a variant is named, and has no number.
    not_compared = next((note for note in result["notes"] if note.startswith("Not compared")), "")
    unscored = {name for name in PLAIN if name.replace("_", " ") in not_compared}
    assert set(result["variants"]) == PLAIN - {"fixed_kind"} - unscored
    assert "base" in result["variants"]
    assert 1 <= result["documents"] <= 3
    assert all(0.0 <= accuracy["mean"] <= 1.0 for accuracy in result["variants"].values())
    assert any("too small" in note for note in result["notes"]), result["notes"]


def test_copied_and_cleaned_run_is_found_finished_by_the_same_command(
    finished_run: FinishedRun, tmp_path: Path
) -> None:
    work_dir, result, home = tmp_path / "a %20 copy", tmp_path / "result.json", tmp_path / "home"
    shutil.copytree(finished_run.work_dir, work_dir)
    states, stored = {path.name for path in (work_dir / "teachers").iterdir()}, settings.records(work_dir)
    code, output = settings.run_command(settings.preceptor("gc", "--work-dir", work_dir), home)
    assert code == 0, output
    assert not list((work_dir / "teachers").iterdir())
    code, output = settings.run_command(
        settings.command(settings.CONFIGS / "demo.yaml", work_dir, settings.TINY, result), home
    )
    assert code == 0, output[-3000:]
    assert settings.run_id_in(output) == settings.run_id_in(finished_run.output)
    assert settings.figures(result) == settings.figures(finished_run.result)
    assert settings.records(work_dir) == stored, "nothing is computed again"
    assert {path.name for path in (work_dir / "teachers").iterdir()} == states
