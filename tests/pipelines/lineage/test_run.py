"""Runs, units and tables in a real SQLite store, resumed and repeated."""

from __future__ import annotations

import json
import multiprocessing
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from evaluation.common.errors import LineageError
from evaluation.statistics import Interval
from pipelines.execution import code_digest
from pipelines.lineage.run import Lineage, _file_name
from pipelines.lineage.store import pages
from pipelines.lineage.views import VIEW_TAG, run_link
from pipelines.process import prepare_process
from pipelines.records import Answered
from pipelines.settings import TrackingConfig
from student.adapters import load_adapter, save_adapter
from tests.pipelines.conftest import RunSettings, open_lineage, registered_versions
from tests.pipelines.factories import (
    make_adapter,
    make_candidate,
    make_comparison,
    make_edit,
    make_failed_update,
    make_learning,
    make_result,
    make_round,
    make_task,
    make_unparsable,
    make_variant,
)

Open = Callable[..., Lineage]


def children(lineage: Lineage) -> dict[str, Any]:
    where = f"tags.`mlflow.parentRunId` = '{lineage.run_id}'"
    runs = lineage.store.client.search_runs([lineage.experiment_id], where)
    assert len({run.data.tags["preceptor.unit"] for run in runs}) == len(runs), "a unit has two runs"
    return {run.data.tags["preceptor.unit"]: run for run in runs}


def parent(lineage: Lineage) -> Any:
    return lineage.store.client.get_run(lineage.run_id)


def points(lineage: Lineage, run_id: str, metric: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in lineage.store.client.get_metric_history(run_id, metric)]


def artifact(lineage: Lineage, run: Any, path: str) -> Path:
    return Path(lineage.store.client.download_artifacts(run.info.run_id, path))


# --- the parent run ---


def test_open_new_run_has_config_params_tags_and_commit(open_run: Open, work_dir: Path) -> None:
    loop = {"rounds": 2} | {f"more_{i}": i for i in range(150)}  # MLflow takes 100 in one call
    lineage = open_run(loop=loop)
    run = parent(lineage)
    assert not lineage.resumed
    assert run.info.run_name == "night"
    assert run.data.params["loop.rounds"] == "2"
    assert run.data.params["loop.more_149"] == "149"
    assert not [name for name in run.data.params if name.startswith("tracking")]
    tags = run.data.tags
    assert (tags["preceptor.seed"], tags["preceptor.code_sha"]) == ("3", code_digest())
    assert tags["preceptor.config_sha"] == RunSettings.model_validate({"loop": loop}).digest
    assert (tags["preceptor.kind"], tags["preceptor.prefect_flow_run_id"]) == ("train-teacher", "a-flow-run")
    assert re.fullmatch(r"[0-9a-f]{40}|unknown", tags["preceptor.git_sha"])
    assert "seed: 3\n" in artifact(lineage, run, "config.yaml").read_text()
    assert (tags["mlflow.source.name"], tags["mlflow.source.type"]) == ("preceptor train-teacher", "LOCAL")
    assert tags["mlflow.user"]
    assert tags.get("mlflow.source.git.commit", "unknown") == tags["preceptor.git_sha"]
    assert run.info.artifact_uri.startswith((work_dir / "artifacts").as_uri())


def test_links_open_on_a_prepared_view_that_has_accuracy_with_its_interval(open_run: Open, work_dir: Path) -> None:
    lineage = open_run()
    experiment = lineage.store.client.get_experiment(lineage.experiment_id)
    view = json.loads(experiment.tags[VIEW_TAG])
    assert {f"metrics.`eval/accuracy{end}`" for end in ("", "_ci_low", "_ci_high")} < {*view["selectedColumns"]}
    assert view["searchFilter"] == "tags.`preceptor.kind` = 'variant'"
    lineage.log_variant(make_variant(), None, {})
    assert len(lineage.store.client.search_runs([lineage.experiment_id], view["searchFilter"])) == 1
    place = f"http://127.0.0.1:5000/#/experiments/{lineage.experiment_id}/runs"
    assert lineage.link == f"{place}/{lineage.run_id}"
    assert lineage.runs_link == f"{place}?workflowType=machine_learning&viewStateShareKey=preceptor"
    assert pages(TrackingConfig(), work_dir) == {"preceptor/train-teacher": lineage.runs_link}
    assert run_link("https://me:secret@mlflow.example.com/", "3", "f00d").startswith("https://mlflow.example.com/#/exp")
    lineage.store.client.set_experiment_tag(lineage.experiment_id, VIEW_TAG, "of an earlier release")
    open_run()
    assert json.loads(lineage.store.client.get_experiment(lineage.experiment_id).tags[VIEW_TAG]) == view


def test_open_same_key_goes_on_in_the_same_run(open_run: Open) -> None:
    first = open_run()
    first.finish("FAILED")
    second = open_run()
    assert second.resumed
    assert second.run_id == first.run_id
    assert parent(second).info.status == "RUNNING"
    other = open_run("other")
    assert not other.resumed
    assert other.run_id != first.run_id


def test_open_same_key_other_params_is_refused_by_name(open_run: Open) -> None:
    open_run()
    with pytest.raises(LineageError, match=r"Changing param values is not allowed.*loop\.rounds"):
        open_run(loop={"rounds": 3})


def test_open_deleted_experiment_says_how_to_restore_it(open_run: Open) -> None:
    lineage = open_run()
    lineage.store.client.delete_experiment(lineage.experiment_id)
    with pytest.raises(LineageError, match=f"restore --experiment-id {lineage.experiment_id}"):
        open_run()


def test_finish_marks_begun_units_as_failed_and_resume_completes_them(open_run: Open, policy_dir: Path) -> None:
    lineage = open_run()
    with pytest.raises(LineageError):
        lineage.log_round(make_round(), policy_dir / "absent")
    assert children(lineage)["round-000"].info.status == "RUNNING"
    lineage.finish("FAILED")
    assert parent(lineage).info.status == "FAILED"
    assert children(lineage)["round-000"].info.status == "FAILED"
    resumed = open_run()
    resumed.log_round(make_round(), policy_dir)
    resumed.finish("FINISHED")
    assert children(resumed)["round-000"].info.status == "FINISHED"
    assert parent(resumed).info.status == "FINISHED"


# --- documents ---


def test_log_documents_twice_is_one_data_set_with_digests(open_run: Open) -> None:
    lineage, tasks = open_run(), [make_task("doc-0"), make_task("doc-1", questions=3)]
    lineage.log_documents("train", tasks)
    lineage.log_documents("train", tasks[::-1])  # the same set in another order
    lineage.log_documents("development", [])
    (found,) = parent(lineage).inputs.dataset_inputs
    assert found.dataset.name == "train-documents"
    assert len(found.dataset.digest) == 36
    assert json.loads(found.dataset.profile) == {"num_rows": 2, "num_questions": 5}
    assert [(tag.key, tag.value) for tag in found.tags] == [("mlflow.data.context", "train")]
    table = pq.read_table(artifact(lineage, parent(lineage), "documents/train.parquet")).to_pylist()
    assert {row["id"]: row["digest"] for row in table} == {task.id: task.document.digest for task in tasks}
    assert {row["id"]: row["questions"] for row in table} == {"doc-0": 2, "doc-1": 3}
    lineage.log_documents("test", [make_task("doc-0"), make_task("doc-1", questions=4)])
    assert len({i.dataset.digest for i in parent(lineage).inputs.dataset_inputs}) == 2


# --- rounds ---


def test_log_round_twice_is_one_child_one_version_and_the_same_points(open_run: Open, policy_dir: Path) -> None:
    first = open_run()
    first.log_round(make_round(4), policy_dir)
    second = open_run()
    second.log_round(make_round(4), policy_dir)
    (child,) = children(second).values()
    assert child.info.status == "FINISHED"
    assert child.info.end_time - child.info.start_time == 3500  # the record's seconds
    assert child.data.metrics["candidate/count"] == 3.0
    assert child.data.metrics["notes/share of facts ___"] == 40.0
    for run_id in (child.info.run_id, second.run_id):
        assert points(second, run_id, "candidate/reward_mean") == [(4, 0.375)]
        assert points(second, run_id, "teacher/kl") == [(4, 0.125)]
    (found,) = registered_versions(second)
    assert found.version == 1
    assert found.run_id == child.info.run_id
    assert found.tags["preceptor.round"] == "4"
    assert second.registry.history("teacher")[0].scores == {"reward": 0.375}
    assert found.tags["preceptor.run_id"] == second.run_id
    assert child.data.tags["preceptor.teacher_version"] == "1"
    version = second.store.client.get_model_version("preceptor-teacher", "1")
    assert "Base model: `" in version.description
    (model_id,) = [output.model_id for output in child.outputs.model_outputs]
    model = second.store.client.get_logged_model(model_id)
    assert (model.name, {m.key: m.value for m in model.metrics}) == ("teacher-round-004", {"score/reward": 0.375})


@pytest.mark.usefixtures("global_store")
def test_log_round_after_a_failure_half_way_repeats_no_point_and_no_row(open_run: Open, policy_dir: Path) -> None:
    lineage = open_run()
    lineage.log_documents("train", [make_task()])
    with pytest.raises(LineageError, match=r"adapter_config\.json"):
        lineage.log_round(make_round(), policy_dir / "absent")
    lineage.log_round(make_round(), policy_dir)
    child = children(lineage)["round-000"]
    assert points(lineage, child.info.run_id, "candidate/reward_mean") == [(0, 0.375)]
    assert pq.read_table(artifact(lineage, child, "candidates/round=000.parquet")).num_rows == 3
    shown = lineage.store.client.load_table(lineage.experiment_id, "candidates/top.json", [child.info.run_id])
    assert list(shown["reward"]) == [0.5, 0.25]


def test_log_round_candidates_table_keeps_failures_with_reason_and_null_reward(
    open_run: Open, policy_dir: Path
) -> None:
    # A lone surrogate, as a model's JSON may hold; Parquet's UTF-8 cannot.
    odd = make_candidate(index=1, weight=-0.5).model_copy(
        update={"edit": make_edit(index=1, text="cut \ud83d here", edit=None)}
    )
    record = make_round(candidates=(make_candidate(index=0), odd, make_failed_update(), make_unparsable("doc-x")))
    lineage = open_run()
    lineage.log_documents("train", [make_task("doc-0")])
    lineage.log_round(record, policy_dir)
    path = artifact(lineage, children(lineage)["round-000"], "candidates/round=000.parquet")
    good, cut, failed, unparsable = pq.read_table(path).to_pylist()
    assert (good["reward"], good["reason"], good["base_reward"], good["weight"]) == (0.5, None, 0.25, None)
    assert (good["accuracy"], good["probability"], good["seeds"]) == ([0.5], [0.5], [11])
    assert good["adapter_digests"] == ["a" * 64]
    assert good["document_digest"] == make_task("doc-0").document.digest
    assert json.loads(good["edit"])["implications"] == [{"text": "It is a text.", "answer": None}]
    assert (cut["text"], cut["weight"]) == ("cut ? here", -0.5)
    assert (failed["reward"], failed["reason"]) == (None, "update_failed")
    assert (failed["accuracy"], failed["failures"]) == ([None], ["update_failed"])
    assert failed["details"] == ["loss is not finite"]
    assert (unparsable["reward"], unparsable["reason"], unparsable["edit"]) == (None, "parse_failed", None)
    assert (unparsable["rejection"], json.loads(unparsable["dropped"])) == ("empty", {"no letters": 1})
    assert unparsable["document_digest"] is None  # not among the documents that were logged


def test_log_round_all_failed_has_the_same_columns(open_run: Open, policy_dir: Path) -> None:
    lineage = open_run()
    lineage.log_round(make_round(0), policy_dir)
    lineage.log_round(make_round(1, candidates=(make_unparsable(),)), policy_dir)
    runs = children(lineage)
    tables = [
        pq.read_schema(artifact(lineage, runs[f"round-{i:03d}"], f"candidates/round={i:03d}.parquet")) for i in (0, 1)
    ]
    assert tables[0].equals(tables[1])
    metrics = runs["round-001"].data.metrics
    assert metrics["failure/parse_failed"] == 1.0
    assert "candidate/reward_mean" not in metrics
    assert "candidate/positive_fraction" not in metrics


def test_log_round_without_learning_registers_no_second_version(open_run: Open, policy_dir: Path) -> None:
    lineage = open_run()
    same = make_learning("f" * 64)
    for number in (0, 1):
        lineage.log_round(make_round(number, learning=same), policy_dir)
    assert len(registered_versions(lineage)) == 1
    assert {child.data.tags["preceptor.teacher_version"] for child in children(lineage).values()} == {"1"}


# --- variants and comparison ---


def test_log_variant_twice_is_one_child_with_figures_and_adapters(open_run: Open, tmp_path: Path) -> None:
    adapter = make_adapter(0.25)
    kept = {"squad/7 #1": save_adapter(adapter, tmp_path / "kept")}
    lineage, interval = open_run(), make_comparison().variants["trained_teacher"]
    for _ in range(2):
        lineage.log_variant(make_variant(), interval, kept)
    lineage.log_variant(make_variant("base", candidates=(), edit_tokens=None, training_tokens=None), None, {})
    runs = children(lineage)
    assert set(runs) == {"variant-trained_teacher", "variant-base"}
    run = runs["variant-trained_teacher"]
    assert run.data.tags["preceptor.variant"] == "trained_teacher"
    assert [run.data.metrics[f"eval/accuracy{name}"] for name in ("", "_ci_low", "_ci_high")] == [0.5, 0.375, 0.625]
    assert run.data.metrics["phrasing/who _short_"] == 0.5
    assert (run.data.metrics["eval/edit_tokens"], run.data.metrics["eval/training_tokens"]) == (3.0, 120.0)
    assert (run.data.metrics["failure/update_failed"], run.data.metrics["eval/failed_count"]) == (2.0, 2.0)
    assert load_adapter(artifact(lineage, run, f"adapters/{_file_name('squad/7 #1')}")).digest == adapter.digest
    assert artifact(lineage, run, "candidates/variant=trained_teacher.parquet").is_file()
    assert "eval/accuracy" not in runs["variant-base"].data.metrics


@pytest.mark.usefixtures("global_store")
def test_variants_of_two_seeds_are_grouped_and_compared_by_mlflow_alone(open_run: Open, policy_dir: Path) -> None:
    import mlflow

    accuracy, learning = iter((0.25, 0.5, 0.75, 1.0)), make_learning("d" * 64)
    for seed in (0, 1):
        lineage = open_run(f"seed {seed}", seed=seed)
        lineage.log_documents("test", [make_task("doc-0")])
        lineage.log_round(make_round(learning=learning), policy_dir)
        for name, policy in (("trained_teacher", learning.policy), ("fixed_kind_equal_tokens", None)):
            mean = next(accuracy)
            answer = Answered(
                document="doc-0",
                edit=0,
                question="Who?",
                gold="Ann",
                answer="Ann" if seed else "Bo ...",
                right=bool(seed),
            )
            params = {"variant": name, "seed": str(seed)}
            record = make_variant(name, answers=(answer,), seconds=2.5)
            lineage.log_variant(record, Interval(mean=mean, low=0.0, high=1.0), {}, params, policy)
        lineage.finish("FINISHED")
    found = mlflow.search_runs([lineage.experiment_id], "tags.`preceptor.kind` = 'variant'")
    means = found.groupby("params.variant")["metrics.eval/accuracy"].mean()
    assert means.to_dict() == {"trained_teacher": 0.5, "fixed_kind_equal_tokens": 0.75}
    assert {*found["tags.mlflow.runName"]} == {"trained", "fixed_kind="}
    assert {*(found["end_time"] - found["start_time"]).dt.total_seconds()} == {2.5}
    trained = found[found["params.variant"] == "trained_teacher"]
    assert sorted(trained["params.teacher_version"]) == ["1", "2"]
    answers = lineage.store.client.load_table(lineage.experiment_id, "evaluation.json", [*trained["run_id"]])
    assert sorted(zip(answers["seed"], answers["answer"], answers["right"], strict=True)) == [
        (0, "Bo ...", False),
        (1, "Ann", True),
    ]
    run = lineage.store.client.get_run(
        children(lineage)["variant-trained_teacher"].info.run_id
    )  # a search has no inputs
    assert [given.dataset.name for given in run.inputs.dataset_inputs] == ["test-documents"]
    assert [given.model_id for given in run.inputs.model_inputs] == [lineage.registry.model_id("teacher", 2)]
    shown = json.loads(run.data.tags["mlflow.loggedArtifacts"])
    assert [each["path"] for each in shown] == ["evaluation.json", "candidates/top.json"]
    place = f"#/experiments/{lineage.experiment_id}/runs/{run.info.run_id}/artifacts"
    assert f"]({place}/evaluation.json)" in run.data.tags["mlflow.note.content"]
    assert f"]({place}/candidates/top.json)" in run.data.tags["mlflow.note.content"]


def test_log_comparison_twice_has_result_plots_and_single_points(open_run: Open, tmp_path: Path) -> None:
    lineage, comparison = open_run(), make_comparison()
    figure = tmp_path / "accuracy.png"
    figure.write_bytes(b"\x89PNG")
    lineage.log_comparison(comparison, make_result(lineage.run_id), [figure])
    slower = make_result(lineage.run_id).model_copy(update={"seconds": {"compare": 9.0}})
    open_run().log_comparison(comparison, slower, [figure])
    run = parent(lineage)
    assert json.loads(artifact(lineage, run, "result.json").read_text())["mlflow_run_id"] == lineage.run_id
    assert artifact(lineage, run, "plots/accuracy.png").read_bytes() == b"\x89PNG"
    assert points(lineage, lineage.run_id, "eval/trained_teacher/accuracy") == [(0, 0.5)]
    assert points(lineage, lineage.run_id, "gain/trained_minus_base") == [(0, 0.25)]
    assert run.data.metrics["gain/trained_minus_base_ci_low"] == 0.125
    assert run.data.metrics["gain/trained_minus_base_minimum_detectable"] == 0.1875


# --- errors, processes ---


def test_error_of_a_round_names_it_and_its_run(open_run: Open, policy_dir: Path, work_dir: Path) -> None:
    lineage = open_run()
    lineage.log_round(make_round(0), policy_dir)
    shutil.rmtree(work_dir / "artifacts")
    (work_dir / "artifacts").write_text("in the way")
    with pytest.raises(LineageError, match=f"log 'round-001' of run '{lineage.run_id}'.*it resumes from there"):
        lineage.log_round(make_round(1), policy_dir)


def open_in_process(work_dir: str, barrier: Any) -> tuple[str, bool]:
    prepare_process()
    import mlflow  # noqa: F401  (so that both processes reach the store at the same moment)

    barrier.wait(timeout=60)
    lineage = open_lineage(Path(work_dir))
    return lineage.run_id, lineage.resumed


def test_two_processes_on_a_fresh_store_make_one_store_and_one_run(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(2) as pool:
        barrier = manager.Barrier(2)
        answers = pool.starmap_async(open_in_process, [(str(tmp_path / "fresh"), barrier)] * 2).get(timeout=120)
    assert len({run_id for run_id, _ in answers}) == 1
    assert sorted(resumed for _, resumed in answers) == [False, True]
