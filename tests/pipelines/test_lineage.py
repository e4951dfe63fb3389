"""Lineage on a real SQLite store, without a server. The store is migrated once and copied for each test."""

from __future__ import annotations

import json
import multiprocessing
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluation.errors import LineageError
from evaluation.tasks import Document
from pipelines.config import TrackingConfig
from pipelines.lineage import Lineage, _file_name
from pipelines.lineage_store import flatten_params, git_tags, lineage_errors, open_store, run_tags
from pipelines.lineage_tables import TOP_CANDIDATES, _part, best_candidates, round_metrics
from pipelines.process import prepare_process
from pipelines.registry import Promotion, Registry
from student.adapters import Adapter, load_adapter, save_adapter
from tests.pipelines.factories import (
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

TRACKING = TrackingConfig()
PARAMS = {"loop.rounds": 2, "teacher.model": "micro-teacher"}
Open = Callable[..., Lineage]


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prepare_process()
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def work_dir(tmp_path: Path, empty_store: Path) -> Path:
    work = tmp_path / "work dir"  # a space, because artifact places are URIs
    work.mkdir()
    shutil.copy(empty_store, work / "mlflow.db")
    return work


@pytest.fixture
def open_run(work_dir: Path) -> Open:
    def opened(key: str = "train-teacher/v1/abc", **changes: Any) -> Lineage:
        tags = run_tags(kind="train-teacher", seed=3, config_digest="c0ffee", code_digest="c0de", note="# Night")
        fields: dict[str, Any] = {"run_name": "night", "config_yaml": "seed: 3\n", "params": PARAMS, "tags": tags}
        return Lineage.open(TRACKING, work_dir, run_key=key, **(fields | changes))

    return opened


def adapter_of(value: float) -> Adapter:
    return Adapter({"layer": (torch.full((2, 4), value), torch.full((3, 2), value))}, 2, 4.0, "b" * 64)


@pytest.fixture
def policy_dir(tmp_path: Path) -> Path:
    return save_adapter(adapter_of(0.5), tmp_path / "policy")


def children(lineage: Lineage) -> dict[str, Any]:
    where = f"tags.`mlflow.parentRunId` = '{lineage.run_id}'"
    runs = lineage.store.client.search_runs([lineage.store.experiment_id], where)
    assert len({run.data.tags["preceptor.unit"] for run in runs}) == len(runs), "a unit has two runs"
    return {run.data.tags["preceptor.unit"]: run for run in runs}


def parent(lineage: Lineage) -> Any:
    return lineage.store.client.get_run(lineage.run_id)


def points(lineage: Lineage, run_id: str, metric: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in lineage.store.client.get_metric_history(run_id, metric)]


def artifact(lineage: Lineage, run: Any, path: str) -> Path:
    from mlflow.artifacts import list_artifacts  # noqa: F401  (the client below needs mlflow.artifacts imported)

    return Path(lineage.store.client.download_artifacts(run.info.run_id, path))


def versions(lineage: Lineage, role: str = "teacher") -> list[Any]:
    return list(lineage.store.client.search_model_versions(f"name = 'preceptor-{role}'"))


# --- the parent run ---


def test_open_new_run_has_config_params_tags_and_commit(open_run: Open, work_dir: Path) -> None:
    lineage = open_run(params=PARAMS | {f"many.{i}": i for i in range(150)})  # MLflow takes 100 in one call
    run = parent(lineage)
    assert not lineage.resumed
    assert run.info.run_name == "night"
    assert run.data.params["loop.rounds"] == "2"
    assert len(run.data.params) == 152
    tags = run.data.tags
    assert (tags["preceptor.seed"], tags["preceptor.config_sha"], tags["preceptor.code_sha"]) == ("3", "c0ffee", "c0de")
    assert (tags["preceptor.kind"], tags["mlflow.note.content"]) == ("train-teacher", "# Night")
    assert re.fullmatch(r"[0-9a-f]{40}|unknown", tags["preceptor.git_sha"])
    assert artifact(lineage, run, "config.yaml").read_text() == "seed: 3\n"
    assert run.info.artifact_uri.startswith((work_dir / "artifacts").as_uri())


def test_open_same_key_goes_on_in_the_same_run(open_run: Open) -> None:
    first = open_run()
    first.finish("FAILED")
    second = open_run()
    assert second.resumed
    assert second.run_id == first.run_id
    assert parent(second).info.status == "RUNNING"
    other = open_run("train-teacher/v1/other")
    assert not other.resumed
    assert other.run_id != first.run_id


def test_open_same_key_other_params_is_refused_with_both_values(open_run: Open) -> None:
    open_run()
    with pytest.raises(LineageError, match=r"loop\.rounds \(recorded '2', got '3'\)"):
        open_run(params=PARAMS | {"loop.rounds": 3})


def test_open_key_that_would_break_a_search_is_refused(open_run: Open) -> None:
    with pytest.raises(LineageError, match="run key"):
        open_run("it's")


def test_open_deleted_experiment_says_how_to_restore_it(open_run: Open) -> None:
    store = open_run().store
    store.client.delete_experiment(store.experiment_id)
    with pytest.raises(LineageError, match=f"restore --experiment-id {store.experiment_id}"):
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


def test_log_documents_changed_text_is_another_data_set(open_run: Open) -> None:
    lineage, task = open_run(), make_task()
    changed = task.model_copy(update={"document": Document(id=task.id, text="Another text.")})
    lineage.log_documents("train", [task])
    lineage.log_documents("test", [changed])
    digests = {i.dataset.digest for i in parent(lineage).inputs.dataset_inputs}
    assert len(digests) == 2


# --- rounds ---


def test_log_round_twice_is_one_child_one_version_and_the_same_points(open_run: Open, policy_dir: Path) -> None:
    first = open_run()
    version = first.log_round(make_round(4), policy_dir)
    second = open_run()
    assert second.log_round(make_round(4), policy_dir) is None
    (child,) = children(second).values()
    assert child.info.status == "FINISHED"
    assert child.info.end_time - child.info.start_time == 3500  # the record's seconds
    assert child.data.metrics["candidate/count"] == 3.0
    assert child.data.metrics["notes/share of facts ___"] == 40.0
    for run_id in (child.info.run_id, second.run_id):
        assert points(second, run_id, "candidate/reward_mean") == [(4, 0.375)]
        assert points(second, run_id, "teacher/kl") == [(4, 0.125)]
    (found,) = versions(second)
    assert version is not None
    assert (version.version, version.uri) == (1, "models:/preceptor-teacher/1")
    assert found.run_id == child.info.run_id
    assert found.tags["preceptor.round"] == "4"
    assert found.tags["preceptor.run_id"] == second.run_id
    assert child.data.tags["preceptor.teacher_version"] == "1"


def test_log_round_after_a_failure_half_way_repeats_no_point_and_no_row(open_run: Open, policy_dir: Path) -> None:
    lineage = open_run()
    lineage.log_documents("train", [make_task()])
    with pytest.raises(LineageError, match=r"adapter_config\.json"):
        lineage.log_round(make_round(), policy_dir / "absent")
    lineage.log_round(make_round(), policy_dir)
    child = children(lineage)["round-000"]
    assert points(lineage, child.info.run_id, "candidate/reward_mean") == [(0, 0.375)]
    assert pq.read_table(artifact(lineage, child, "candidates/round=000.parquet")).num_rows == 3
    shown = lineage.store.client.load_table(lineage.store.experiment_id, "candidates/top.json", [child.info.run_id])
    assert list(shown["reward"]) == [0.5, 0.25]


def test_log_round_candidates_table_keeps_failures_with_reason_and_null_reward(
    open_run: Open, policy_dir: Path
) -> None:
    odd = make_candidate(index=1, weight=-0.5).model_copy(update={"edit": make_edit(index=1, text="cut \ud83d here")})
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
    assert (failed["accuracy"], failed["failures"], failed["details"]) == (
        [None],
        ["update_failed"],
        ["loss is not finite"],
    )
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
    first = lineage.log_round(make_round(0, learning=same), policy_dir)
    second = lineage.log_round(make_round(1, learning=same), policy_dir)
    assert first == second
    assert len(versions(lineage)) == 1


def test_round_metrics_figures() -> None:
    # Of 0.0, 0.25, 0.5, 1.0 with base 0.25: two are above; numpy's linear p10 is 0.075 and p90 is 0.85.
    rewards = (0.0, 0.25, 0.5, 1.0)
    record = make_round(
        candidates=(*(make_candidate(index=i, reward=r) for i, r in enumerate(rewards)), make_unparsable())
    )
    metrics = round_metrics(record)
    assert metrics["candidate/positive_fraction"] == 0.5
    assert metrics["candidate/reward_p10"] == pytest.approx(0.075)
    assert metrics["candidate/reward_p50"] == pytest.approx(0.375)
    assert metrics["candidate/reward_p90"] == pytest.approx(0.85)
    assert metrics["candidate/reward_max"] == 1.0
    assert (metrics["candidate/ok_count"], metrics["candidate/failed_count"]) == (4.0, 1.0)
    assert metrics["time/update_s"] == 2.0


@given(rewards=st.lists(st.floats(0.0, 1.0), max_size=130))
def test_best_candidates_are_the_highest_rewards_in_order(rewards: list[float]) -> None:
    table = best_candidates([*(make_candidate(index=i, reward=r) for i, r in enumerate(rewards)), make_unparsable()])
    assert [row[table["columns"].index("reward")] for row in table["data"]] == sorted(rewards, reverse=True)[
        :TOP_CANDIDATES
    ]


@given(name=st.text(max_size=130))
def test_part_of_any_text_is_a_metric_name_that_mlflow_takes(name: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    _validate_metric_name(f"notes/{_part(name)}")


@given(ids=st.sets(st.text(min_size=1, max_size=100), min_size=2, max_size=20))
def test_file_name_is_one_plain_part_and_keeps_ids_apart(ids: set[str]) -> None:
    names = {_file_name(document_id) for document_id in ids}
    assert len(names) == len(ids)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in names)


# --- variants and comparison ---


def test_log_variant_twice_is_one_child_with_figures_and_adapters(open_run: Open, tmp_path: Path) -> None:
    adapter = adapter_of(0.25)
    kept = {"squad/7 #1": save_adapter(adapter, tmp_path / "kept")}
    lineage, interval = open_run(), make_comparison().variants["trained_teacher"]
    for _ in range(2):
        lineage.log_variant(make_variant(), interval, kept)
    lineage.log_variant(make_variant("base", candidates=(), edit_tokens=None, training_tokens=None), None, {})
    runs = children(lineage)
    assert set(runs) == {"variant-trained_teacher", "variant-base"}
    run = runs["variant-trained_teacher"]
    assert run.data.tags["preceptor.variant"] == "trained_teacher"
    assert {name: run.data.metrics[f"eval/accuracy{name}"] for name in ("", "_ci_low", "_ci_high")} == {
        "": 0.5,
        "_ci_low": 0.375,
        "_ci_high": 0.625,
    }
    assert run.data.metrics["phrasing/who _short_"] == 0.5
    assert (run.data.metrics["eval/edit_tokens"], run.data.metrics["eval/training_tokens"]) == (3.0, 120.0)
    assert (run.data.metrics["failure/update_failed"], run.data.metrics["eval/failed_count"]) == (2.0, 2.0)
    assert load_adapter(artifact(lineage, run, f"adapters/{_file_name('squad/7 #1')}")).digest == adapter.digest
    assert artifact(lineage, run, "candidates/variant=trained_teacher.parquet").is_file()
    assert "eval/accuracy" not in runs["variant-base"].data.metrics


def test_log_comparison_twice_has_result_tables_plots_and_single_points(open_run: Open, tmp_path: Path) -> None:
    lineage, comparison = open_run(), make_comparison()
    figure = tmp_path / "accuracy.png"
    figure.write_bytes(b"\x89PNG")
    for _ in range(2):
        lineage.log_comparison(comparison, make_result(lineage.run_id), [figure])
    run = parent(lineage)
    assert json.loads(artifact(lineage, run, "result.json").read_text())["mlflow_run_id"] == lineage.run_id
    assert artifact(lineage, run, "plots/accuracy.png").read_bytes() == b"\x89PNG"
    table = lineage.store.client.load_table(lineage.store.experiment_id, "comparison/variants.json", [lineage.run_id])
    assert dict(zip(table["variant"], table["accuracy"], strict=True)) == {"base": 0.25, "trained_teacher": 0.5}
    assert points(lineage, lineage.run_id, "eval/trained_teacher/accuracy") == [(0, 0.5)]
    assert points(lineage, lineage.run_id, "gain/trained_minus_base") == [(0, 0.25)]
    assert run.data.metrics["gain/trained_minus_base_ci_low"] == 0.125
    assert run.data.metrics["gain/trained_minus_base_minimum_detectable"] == 0.1875


# --- registry ---


@pytest.fixture
def global_store(work_dir: Path) -> Iterator[None]:
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{work_dir / 'mlflow.db'}")
    yield
    mlflow.set_tracking_uri(before)


@pytest.mark.usefixtures("global_store")
def test_registered_teacher_opens_with_peft_and_has_the_same_logits(open_run: Open, tmp_path: Path) -> None:
    from mlflow.artifacts import download_artifacts
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}

    def base() -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return LlamaForCausalLM(LlamaConfig(vocab_size=300, initializer_range=0.2, **sizes)).eval()

    tokens = torch.arange(10, 26)[None]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        teacher = get_peft_model(base(), lora).eval()
        expected, untrained = teacher(tokens).logits, base()(tokens).logits
    teacher.save_pretrained(tmp_path / "teacher")
    lineage = open_run()
    lineage.log_round(make_round(), tmp_path / "teacher")
    places = [
        download_artifacts("models:/preceptor-teacher@candidate"),
        str(lineage.registry.download("teacher", "candidate", tmp_path / "copies")),
    ]
    with torch.no_grad():
        for place in places:
            assert torch.equal(PeftModel.from_pretrained(base(), place).eval()(tokens).logits, expected)
    assert not torch.allclose(expected, untrained)


def test_register_student_ties_metrics_to_the_model_once(open_run: Open, policy_dir: Path) -> None:
    lineage = open_run()
    for _ in range(2):
        version = lineage.register(
            "student", policy_dir, digest="e" * 64, tags={"preceptor.gate": "passed"}, metrics={"eval/accuracy": 0.5}
        )
    (found,) = versions(lineage, "student")
    assert found.tags["preceptor.gate"] == "passed"
    model = lineage.store.client.get_logged_model(version.model_id)
    assert [(m.key, m.value) for m in model.metrics] == [("eval/accuracy", 0.5)]
    assert str(model.status) == "READY"
    assert lineage.registry.aliases("student") == {"candidate": 1}


def test_promote_moves_previous_then_champion_and_rolls_back(open_run: Open, policy_dir: Path, work_dir: Path) -> None:
    lineage = open_run()
    for number in range(3):
        lineage.log_round(make_round(number), policy_dir)
    registry = Registry.open(TRACKING, work_dir)
    assert registry.aliases("student") == {}
    assert registry.promote("teacher", 1) == Promotion(champion=1, previous=None)
    assert registry.promote("teacher", 2) == Promotion(champion=2, previous=1)
    assert registry.promote("teacher", 2) == Promotion(champion=2, previous=1)
    assert registry.promote("teacher", 1) == Promotion(champion=1, previous=2)
    assert registry.aliases("teacher") == {"candidate": 3, "champion": 1, "previous": 2}
    with pytest.raises(LineageError, match="promote version 9 of 'preceptor-teacher'"):
        registry.promote("teacher", 9)
    assert registry.aliases("teacher")["champion"] == 1


def test_download_unknown_alias_is_a_typed_error(open_run: Open, tmp_path: Path) -> None:
    with pytest.raises(LineageError, match="download 'champion' of 'preceptor-teacher'"):
        open_run().registry.download("teacher", "champion", tmp_path)


# --- errors, helpers, processes ---


def test_error_says_what_was_saved_and_hides_passwords() -> None:
    from mlflow.exceptions import MlflowException

    saved = [f"round-{i:03d}" for i in range(10)]
    with (
        pytest.raises(LineageError) as caught,
        lineage_errors("log 'round-010'", "postgresql://user:secret@host/lineage", saved),
    ):
        raise MlflowException("disk full\nand a long trace")
    message = str(caught.value)
    assert "disk full. Saved already: round-000, round-001 … round-008, round-009 (10 in all)" in message
    assert "secret" not in message
    assert "long trace" not in message


def test_error_of_a_round_names_the_rounds_before(open_run: Open, policy_dir: Path, work_dir: Path) -> None:
    lineage = open_run()
    lineage.log_round(make_round(0), policy_dir)
    shutil.rmtree(work_dir / "artifacts")
    (work_dir / "artifacts").write_text("in the way")
    with pytest.raises(LineageError, match=r"log 'round-001' of run .* Saved already: run '.*', round-000"):
        lineage.log_round(make_round(1), policy_dir)


def test_open_store_in_a_place_that_is_a_file_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(LineageError, match="could not open the tracking store"):
        open_store(TRACKING, tmp_path / "taken")


def test_flatten_params_names_are_dotted_and_none_is_left_out() -> None:
    content = {"a": {"b": 1, "c": {"d": "x"}}, "flag": True, "none": None, "list": [1, "é"], "rate": 0.5}
    assert flatten_params(content) == {"a.b": 1, "a.c.d": "x", "flag": "true", "list": '[1, "é"]', "rate": 0.5}


def test_git_tags_tell_commit_and_changes(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert git_tags(tmp_path)["preceptor.git_sha"] == "unknown"
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "a.py").write_text("1\n")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--no-verify", "-m", "first")
    assert git_tags(tmp_path) == {"preceptor.git_sha": git("rev-parse", "HEAD"), "preceptor.git_dirty": "false"}
    (tmp_path / "notes.txt").write_text("not code")
    assert git_tags(tmp_path)["preceptor.git_dirty"] == "false"
    (tmp_path / "pipelines" / "a.py").write_text("2\n")
    assert git_tags(tmp_path)["preceptor.git_dirty"] == "true"
    assert git_tags(tmp_path / "pipelines")["preceptor.git_sha"] == "unknown"  # another project's checkout around it


def open_in_process(work_dir: str, barrier: Any) -> tuple[str, bool]:
    prepare_process()
    import mlflow  # noqa: F401  (so that both processes reach the store at the same moment)

    barrier.wait(timeout=60)
    lineage = Lineage.open(
        TRACKING, Path(work_dir), run_name="both", run_key="one-key", config_yaml="", params=PARAMS, tags={}
    )
    return lineage.run_id, lineage.resumed


def test_two_processes_on_a_fresh_store_make_one_store_and_one_run(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(2) as pool:
        barrier = manager.Barrier(2)
        answers = pool.starmap_async(open_in_process, [(str(tmp_path / "fresh"), barrier)] * 2).get(timeout=120)
    assert len({run_id for run_id, _ in answers}) == 1
    assert sorted(resumed for _, resumed in answers) == [False, True]
