"""The lineage of a run in MLflow: one parent run, one child for each round and variant, documents, tables and models.

Logging is idempotent, so a killed run resumes in the same MLflow run: units are found by tag, finished ones skipped,
metrics carry reproducible times, files replace themselves.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, cast

from evaluation.common.data import digest_json
from evaluation.common.errors import LineageError
from evaluation.statistics import Interval
from evaluation.tasks import KnowledgeTask
from pipelines.lineage import tables
from pipelines.lineage.registry import Registry, Role
from pipelines.lineage.store import (
    experiment,
    flatten_params,
    lineage_errors,
    log_in_batches,
    open_store,
    run_tags,
    tag_filter,
)
from pipelines.lineage.versions import STATE_TAG, score_tags
from pipelines.lineage.views import artifact_links, run_link, runs_link, short_name
from pipelines.records import (
    Answered,
    Candidate,
    Learning,
    Record,
    Round,
    VariantComparison,
    VariantScores,
    WarmStart,
)
from pipelines.settings import Settings, TrackingConfig, to_yaml

if TYPE_CHECKING:
    from pipelines.adapt_student.page import NightResult
    from pipelines.write_corpus.output import CorpusResult

_RUN_KEY, _UNIT, _PARENT = "preceptor.run_key", "preceptor.unit", "mlflow.parentRunId"
_DIGEST_LENGTH, _LONGEST_TAG = 36, 5000
"""Longest data set digest, and tag, that MLflow takes."""
EVALUATION = "evaluation.json"
"""Table of questions and answers, under the same name in every run that has one."""
_TOP = "candidates/top.json"
_LABELS = {EVALUATION: "Questions and answers", _TOP: "Self-edits, best first"}
SHOWN_TABLES = "mlflow.loggedArtifacts"
"""Tag: the tables that MLflow's pages show and compare, see `shown_tables`."""
NOTE = "mlflow.note.content"
"""Tag: Markdown that MLflow shows on the run's page."""


class Lineage:
    """The MLflow side of one run, for one process. Every method raises `LineageError` when the store fails."""

    def __init__(
        self, settings: Settings, work_dir: Path, *, kind: str, run_name: str, key: str, flow_run: str
    ) -> None:
        """Start the run of a flow in MLflow, or resume it.

        Args:
            settings: Logged as parameters and `config.yaml`; nothing of `tracking` is part of the run's key.
            work_dir: Of the run.
            kind: The flow's name.
            run_name: Shown by MLflow.
            key: Content key that tells this run from others of the flow.
            flow_run: Prefect's id.

        Raises:
            LineageError: The store cannot be used.
        """
        self.store = store = open_store(settings.tracking, work_dir)
        client, mark = store.client, {_RUN_KEY: f"{kind}/{key}"}
        with lineage_errors(f"start the run {run_name!r}", store.uri):
            with store.lock:
                self.experiment_id = experiment(store, settings.tracking.experiment, kind)
                oldest = {"order_by": ["attributes.start_time"], "max_results": 1}
                found = client.search_runs([self.experiment_id], tag_filter(mark), **oldest)
                run = found[0] if found else client.create_run(self.experiment_id, tags=mark, run_name=run_name)
            self.run_id: str = run.info.run_id
            """Of the parent run."""
            self.resumed = bool(found)
            """Whether the run was there before."""
            params = flatten_params(settings.model_dump(mode="json", exclude={"tracking"}))
            tags = run_tags(settings, kind, flow_run)
            client.update_run(self.run_id, status="RUNNING")
            log_in_batches(client, self.run_id, params=params, tags=tags)
            client.log_text(self.run_id, to_yaml(settings), "config.yaml")
        self._started: int = run.info.start_time
        self._seed, self._standard = settings.seed, {n: tags[n] for n in tags if n.startswith("mlflow.")}
        self._digests: dict[str, str] = {}
        self._datasets: dict[str, Any] = {}
        self.registry = Registry(store, settings.tracking.registry_prefix)
        self.registry.finish_move()

    @property
    def link(self) -> str:
        """Where MLflow shows the run."""
        return run_link(self.store.uri, self.experiment_id, self.run_id)

    @property
    def runs_link(self) -> str:
        """Where MLflow shows the experiment's runs with their figures."""
        return runs_link(self.store.uri, self.experiment_id)

    def log_documents(self, name: Literal["train", "development", "test"], tasks: Sequence[KnowledgeTask]) -> None:
        """Log documents as a data set with a digest and as `documents/<name>.parquet`; without documents, nothing.

        Call it before rounds and variants, whose candidates name documents by digest.
        """
        self._digests |= {task.id: task.document.digest for task in tasks}
        if not tasks:
            return
        from mlflow.entities import Dataset, DatasetInput, InputTag

        client, path = self.store.client, f"documents/{name}.parquet"
        with self._errors(path), tempfile.TemporaryDirectory() as scratch:
            tables.write_documents(tasks, Path(scratch) / path)
            client.log_artifact(self.run_id, str(Path(scratch) / path), "documents")
            uri = f"{client.get_run(self.run_id).info.artifact_uri}/{path}"
            scheme = uri.partition(":")[0]
            dataset = Dataset(
                name=f"{name}-documents",
                digest=digest_json(sorted(task.digest for task in tasks))[:_DIGEST_LENGTH],
                source_type="local" if scheme == "file" else scheme,
                source=json.dumps({"uri": uri}),
                profile=json.dumps({"num_rows": len(tasks), "num_questions": sum(len(t.questions) for t in tasks)}),
            )
            self._datasets[name] = DatasetInput(dataset, [InputTag("mlflow.data.context", name)])
            self._log_inputs(self.run_id, name)

    def fetch_states(self, place: Callable[[str], Path]) -> None:
        """Fetch the teachers of this run that are registered and were removed from their `place` by name."""
        for each in self.registry.registered("teacher") if self.resumed else ():
            if each.run_id == self.run_id:
                self.registry.fetch("teacher", each.version, place(each.name))

    def log_warm_start(self, record: WarmStart, targets: Mapping[str, str], policy_dir: Path) -> None:
        """Log a warm start as a child run with its `targets` by document id, and register its teacher."""
        with self._unit("warm-start", "warm-start", "warm-start", record.seconds, {}) as child:
            if child is None:
                return
            (run_id, end), metrics = child, tables.warm_start_metrics(record)
            self._log_metrics(run_id, metrics, end, 0)
            self.store.client.log_dict(run_id, {**targets}, "targets.json")
            self.store.client.log_dict(run_id, record.model_dump(mode="json"), "warm-start.json")
            self._register_teacher(run_id, "warm-start", record, policy_dir, {STATE_TAG: "warm-started"})
            self._log_metrics(self.run_id, metrics, end, 0)

    def log_round(self, record: Round, policy_dir: Path) -> None:
        """Log a round as a child run, and register its teacher, in PEFT's format, as the `candidate`."""
        unit, tags = f"round-{record.round:03d}", {"preceptor.round": str(record.round)}
        with self._unit(unit, "round", unit, sum(record.seconds.values()), tags) as child:
            if child is None:
                return
            (run_id, end), metrics = child, tables.round_metrics(record)
            self._log_metrics(run_id, metrics, end, record.round)
            self._log_candidates(run_id, f"round={record.round:03d}", record.candidates)
            self._log_inputs(run_id, "train")
            tags |= {STATE_TAG: "RL-trained", **score_tags({"reward": record.mean_reward})}
            self._register_teacher(run_id, unit, record.learning, policy_dir, tags)
            self._log_metrics(self.run_id, metrics, end, record.round)

    def _register_teacher(
        self, run_id: str, unit: str, learned: Learning, policy_dir: Path, tags: Mapping[str, str]
    ) -> None:
        """Register the teacher that the child run of a unit ended with."""
        version = self.registry.register(
            "teacher",
            policy_dir,
            digest=learned.policy_digest,
            run_id=run_id,
            parent_run_id=self.run_id,
            tags={**tags, "preceptor.policy": learned.policy},
            title=f"teacher-{unit}",
        )
        self.store.client.set_tag(run_id, "preceptor.teacher_version", str(version))

    def log_variant(
        self,
        record: VariantScores,
        interval: Interval | None,
        adapters: Mapping[str, Path],
        params: Mapping[str, str] = MappingProxyType({}),
        policy: str | None = None,
    ) -> None:
        """Log a variant as a child run, with student adapters to keep, in PEFT's format, by document id.

        Args:
            record: Its scores.
            interval: Its accuracy over the documents that all variants share; None when they share none.
            adapters: Directories by document id.
            params: The run's parameters, to which the number of the teacher's version is added.
            policy: `Learning.policy` of the teacher of this run that wrote its self-edits; None if none did.
        """
        name, tags = short_name(record.name), {"preceptor.variant": record.name}
        with self._unit(f"variant-{record.name}", "variant", name, record.seconds, tags) as child:
            if child is None:
                return
            run_id, end = child
            known = {(v.run_id, v.name): v.version for v in self.registry.registered("teacher") if policy}
            number = known.get((self.run_id, policy or ""))
            self._log_inputs(run_id, "test", teacher=number)
            version = {} if number is None else {"teacher_version": str(number)}
            log_in_batches(self.store.client, run_id, params={**params, **version}, tags={})
            self._log_metrics(run_id, tables.variant_metrics(record, interval), end, 0)
            self._log_candidates(run_id, f"variant={record.name}", record.candidates, record.answers, record.label)
            for document_id, directory in adapters.items():
                self.store.client.log_artifacts(run_id, str(directory), f"adapters/{_file_name(document_id)}")

    def log_comparison(
        self, comparison: VariantComparison, result: Record, figures: Sequence[Path], page: Path | None = None
    ) -> None:
        """Log the comparison to the parent run: `result.json`, `graders.json`, metrics, `plots/`, and a page."""
        client = self.store.client
        with self._errors("comparison"):
            client.log_dict(self.run_id, result.model_dump(mode="json"), "result.json")
            for figure in figures:
                client.log_artifact(self.run_id, str(figure), "plots")
            if page is not None:
                client.log_artifact(self.run_id, str(page))
            if comparison.graders is not None:
                client.log_dict(self.run_id, comparison.graders.model_dump(mode="json"), "graders.json")
            self._log_metrics(self.run_id, tables.comparison_metrics(comparison), self._started, 0)

    def log_night(self, result: NightResult, report: str, page: Path, answers: Sequence[Answered]) -> None:
        """Log a night to the parent run: metrics, self-edits, answers, `result.json`, the gate's report, the page."""
        client = self.store.client
        with self._errors("night"):
            client.log_dict(self.run_id, result.model_dump(mode="json"), "result.json")
            client.log_text(self.run_id, report, "gate-report.md")
            client.log_artifact(self.run_id, str(page))
            # The note is cut by MLflow at 8000 characters.
            self._log_candidates(self.run_id, f"night={result.night}", result.candidates, answers, report)
            self._log_metrics(self.run_id, tables.night_metrics(result), self._started, 0)
            self._log_inputs(self.run_id, teacher=result.teacher_version, student=result.parent)
            tags = {"outcome": result.outcome, "version": result.version, "parent_version": result.parent}
            tags |= {"teacher_version": result.teacher_version}
            known = {f"preceptor.{name}": str(value) for name, value in tags.items() if value is not None}
            log_in_batches(client, self.run_id, params={}, tags=known)

    def log_corpus(self, result: CorpusResult, card: Path) -> None:
        """Log a corpus to the parent run: metrics, `result.json` and the dataset card."""
        client = self.store.client
        with self._errors("corpus"):
            client.log_dict(self.run_id, result.model_dump(mode="json"), "result.json")
            client.log_artifact(self.run_id, str(card))
            self._log_metrics(self.run_id, tables.corpus_metrics(result), self._started, 0)

    def finish(self, status: Literal["FINISHED", "FAILED"]) -> None:
        """End the parent run; incomplete units are marked as failed."""
        client = self.store.client
        with self._errors("end"):
            begun = f"tags.`{_PARENT}` = '{self.run_id}' and attributes.status = 'RUNNING'"
            for child in client.search_runs([self.experiment_id], begun):
                client.set_terminated(child.info.run_id, status="FAILED")
            client.set_terminated(self.run_id, status=status)

    @contextmanager
    def failing(self) -> Iterator[None]:
        """End the parent run as failed where what is done in this context fails or is stopped."""
        try:
            yield
        except BaseException:
            with suppress(LineageError):  # the first failure is the one to report
                self.finish("FAILED")
            raise

    def _errors(self, part: str) -> AbstractContextManager[None]:
        return lineage_errors(f"log {part!r} of run {self.run_id!r}", self.store.uri)

    @contextmanager
    def _unit(
        self, unit: str, kind: str, name: str, seconds: float, tags: Mapping[str, str]
    ) -> Iterator[tuple[str, int] | None]:
        """Yield id and end (ms since 1970) of the run of a unit that took `seconds`; None if it is finished.

        The run is created if absent, with an end that is now, and the same each time the unit is logged.
        """
        client, took, mark = self.store.client, round(1000 * seconds), {_PARENT: self.run_id, _UNIT: unit}
        with self._errors(unit):
            found = client.search_runs([self.experiment_id], tag_filter(mark), max_results=1)
            if found and found[0].info.status == "FINISHED":
                yield None
                return
            begun, tags = int(1000 * time.time()) - took, {**self._standard, **mark, "preceptor.kind": kind, **tags}
            run = found[0] if found else client.create_run(self.experiment_id, begun, tags, run_name=name)
            end = run.info.start_time + took
            yield run.info.run_id, end
            client.set_terminated(run.info.run_id, status="FINISHED", end_time=end)

    def _log_inputs(self, run_id: str, documents: str = "", **models: int | None) -> None:
        """Log documents by name, and registered versions by role, as what a run was given."""
        from mlflow.entities import LoggedModelInput

        known = ((cast("Role", role), number) for role, number in models.items() if number is not None)
        ids = filter(None, (self.registry.model_id(role, number) for role, number in known))
        given = [self._datasets[documents]] if documents in self._datasets else []
        self.store.client.log_inputs(run_id, given, [LoggedModelInput(each) for each in ids])

    def _log_metrics(self, run_id: str, metrics: Mapping[str, float], at: int, step: int) -> None:
        """Log metrics with a given time: repeating them adds no points."""
        from mlflow.entities import Metric

        points = [Metric(name, value, at, step) for name, value in metrics.items()]
        self.store.client.log_batch(run_id, metrics=points)

    def _log_candidates(
        self, run_id: str, name: str, candidates: Sequence[Candidate], answers: Sequence[Answered] = (), note: str = ""
    ) -> None:
        """Log all candidates as `candidates/<name>.parquet`, with tables of the best and of answers, and a note."""
        client, shown = self.store.client, dict[str, Any]()
        if answers:
            shown[EVALUATION] = tables.evaluation_table(answers, self._seed)
        if candidates:
            with tempfile.TemporaryDirectory() as scratch:
                path = Path(scratch) / f"{name}.parquet"
                tables.write_candidates(candidates, self._digests, path)
                client.log_artifact(run_id, str(path), "candidates")
            shown[_TOP] = tables.best_candidates(candidates)
        for file, table in shown.items():  # `log_table` would append when repeated
            client.log_dict(run_id, table, file)
        client.set_tag(run_id, SHOWN_TABLES, shown_tables(*shown))
        links = artifact_links(self.experiment_id, run_id, {file: _LABELS[file] for file in shown})
        client.set_tag(run_id, NOTE, "\n\n".join(filter(None, (links, note))))


def shown_tables(*files: str) -> str:
    """Return `SHOWN_TABLES` for artifacts."""
    return json.dumps([{"path": file, "type": "table"} for file in files])


def _file_name(document_id: str) -> str:
    """Return a document's id as one part of a path; a digest keeps ids apart that had to be changed."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", document_id)[:80]
    return plain if plain == document_id else f"{plain}-{digest_json(document_id)[:8]}"


def log_finished(
    tracking: TrackingConfig,
    work_dir: Path,
    name: str,
    *,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
    texts: Mapping[str, str],
) -> tuple[str, str]:
    """Log a complete run, such as a regression test, with text artifacts by file name; return its id and address.

    Nested `params` are flattened, long `tags` are cut, and names of `metrics` are made fit for MLflow.

    Raises:
        LineageError: The store refused it.
    """
    store = open_store(tracking, work_dir)
    cut = {name: text[:_LONGEST_TAG] for name, text in tags.items()}
    with lineage_errors(f"log the run {name!r}", store.uri):
        client = store.client
        with store.lock:
            experiment_id = experiment(store, tracking.experiment, tags.get("preceptor.kind", ""))
        run_id: str = client.create_run(experiment_id, run_name=name).info.run_id
        log_in_batches(client, run_id, params=flatten_params(params), tags=cut)
        for metric, value in metrics.items():
            client.log_metric(run_id, "/".join(map(tables.metric_part, metric.split("/"))), value)
        for file, text in texts.items():
            client.log_text(run_id, text, file)
        client.set_terminated(run_id, "FINISHED")
    return run_id, run_link(store.uri, experiment_id, run_id)
