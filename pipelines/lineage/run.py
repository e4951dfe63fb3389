"""The lineage of a run in MLflow: one parent run, one child for each round and variant, documents, tables and models.

Logging is idempotent, so a killed run resumes in the same MLflow run: units are found by tag, finished ones skipped,
metrics carry reproducible times, files replace themselves.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from evaluation.common.data import digest_json
from evaluation.common.errors import LineageError
from evaluation.statistics import Interval
from evaluation.tasks import KnowledgeTask
from pipelines.lineage import tables
from pipelines.lineage.registry import RegisteredVersion, Registry, Role
from pipelines.lineage.store import (
    Store,
    flatten_params,
    git_tags,
    lineage_errors,
    log_in_batches,
    open_store,
    run_tags,
)
from pipelines.records import Candidate, Round, RunResult, VariantComparison, VariantScores
from pipelines.settings import Settings, TrackingConfig, to_yaml

if TYPE_CHECKING:
    from pipelines.adapt_student.page import NightResult

_RUN_KEY, _UNIT, _PARENT = "preceptor.run_key", "preceptor.unit", "mlflow.parentRunId"
_COMPARED = "preceptor.compared_at"
_KEY_PATTERN = r"[A-Za-z0-9_.:/-]{1,250}"
_DIGEST_LENGTH = 36
"""Longest data set digest that MLflow takes."""
_METRICS_PER_CALL, _LONGEST_PARAM, _LONGEST_TAG = 1000, 6000, 5000
NOTE = "mlflow.note.content"
"""Tag: Markdown that MLflow shows on the run's page."""


class _Child(NamedTuple):
    """The run of a unit."""

    run_id: str
    end: int
    """In ms since 1970; the same each time the unit is logged."""
    finished: bool


class Lineage:
    """The MLflow side of one run, for one process. Every method raises `LineageError` when the store fails."""

    def __init__(self, store: Store, registry_prefix: str, run: Any, *, resumed: bool) -> None:
        """Use `open`."""
        self.store = store
        self.run_id: str = run.info.run_id
        """Of the parent run."""
        self.resumed = resumed
        """Whether the run was there before."""
        self._digests: dict[str, str] = {}
        self._saved: list[str] = [f"run {self.run_id!r}"]
        self.registry = Registry(store, registry_prefix, self._saved)

    @classmethod
    def open(
        cls,
        tracking: TrackingConfig,
        work_dir: Path,
        *,
        run_name: str,
        run_key: str,
        config_yaml: str,
        params: Mapping[str, str | int | float],
        tags: Mapping[str, str],
    ) -> Lineage:
        """Return the lineage of the run with this key, resumed or new.

        Args:
            tracking: Where it goes.
            work_dir: Of the run.
            run_name: Shown by MLflow.
            run_key: Content key of the run, of letters, digits and `_.:/-`.
            config_yaml: Becomes `config.yaml`.
            params: See `flatten_params`; must not change when a run is resumed.
            tags: See `run_tags`; the commit is added.

        Raises:
            LineageError: The store cannot be used, or the run has the same key but other parameters.
        """
        if not re.fullmatch(_KEY_PATTERN, run_key):
            raise LineageError(
                f"lineage: run key {run_key!r} is refused, allowed is {_KEY_PATTERN}. Use a content key."
            )
        store = open_store(tracking, work_dir)
        client, experiment = store.client, store.experiment_id
        with lineage_errors(f"start the run {run_name!r}", store.uri):
            with store.lock:
                found = client.search_runs(
                    [experiment], f"tags.`{_RUN_KEY}` = '{run_key}'", max_results=1, order_by=["attributes.start_time"]
                )
                run = found[0] if found else client.create_run(experiment, tags={_RUN_KEY: run_key}, run_name=run_name)
            if found:
                _refuse_other_params(run, params)
                client.update_run(run.info.run_id, status="RUNNING")
            log_in_batches(client, run.info.run_id, params=params, tags={**git_tags(), **tags})
            client.log_text(run.info.run_id, config_yaml, "config.yaml")
        return cls(store, tracking.registry_prefix, run, resumed=bool(found))

    @classmethod
    def of_flow(
        cls, settings: Settings, work_dir: Path, *, kind: str, run_name: str, key: str, flow_run: str
    ) -> Lineage:
        """Return the lineage of a flow's run, resumed or new.

        Args:
            settings: Logged as parameters and `config.yaml`; nothing of `tracking` is part of the run's key.
            work_dir: Of the run.
            kind: The flow's name.
            run_name: Shown by MLflow.
            key: Content key that tells this run from others of the flow.
            flow_run: Prefect's id.

        Raises:
            LineageError: See `open`.
        """
        from pipelines.execution import code_digest

        return cls.open(
            settings.tracking,
            work_dir,
            run_name=run_name,
            run_key=f"{kind}/{key}",
            config_yaml=to_yaml(settings),
            params=flatten_params(settings.model_dump(mode="json", exclude={"tracking"})),
            tags=run_tags(
                kind=kind,
                seed=settings.seed,
                config_digest=settings.digest,
                code_digest=code_digest(),
                flow_run_id=flow_run,
            ),
        )

    def log_documents(self, name: Literal["train", "development", "test"], tasks: Sequence[KnowledgeTask]) -> None:
        """Log documents as a data set with a digest and as `documents/<name>.parquet`; without documents, nothing.

        Call it before rounds and variants, whose candidates name documents by digest.
        """
        self._digests |= {task.id: task.document.digest for task in tasks}
        if not tasks:
            return
        from mlflow.entities import Dataset, DatasetInput, InputTag

        client, path = self.store.client, f"documents/{name}.parquet"
        with self._saving(path), tempfile.TemporaryDirectory() as scratch:
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
            client.log_inputs(self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", name)])])

    def log_round(self, record: Round, policy_dir: Path) -> RegisteredVersion | None:
        """Log a round as a child run, and register its teacher, in PEFT's format, as the `candidate`.

        Returns:
            The teacher's version; None when the round was complete before.
        """
        unit = f"round-{record.round:03d}"
        with self._saving(unit):
            tags = {"preceptor.round": str(record.round)}
            child = self._child(unit, "round", unit, sum(record.seconds.values()), tags)
            if child.finished:
                return None
            metrics = tables.round_metrics(record)
            self._log_metrics(child.run_id, metrics, child.end, record.round)
            self._log_candidates(child.run_id, f"round={record.round:03d}", record.candidates, {})
            version = self.registry.register(
                "teacher",
                policy_dir,
                digest=record.learning.policy_digest,
                run_id=child.run_id,
                parent_run_id=self.run_id,
                tags={**tags, "preceptor.policy": record.learning.policy},
            )
            self.store.client.set_tag(child.run_id, "preceptor.teacher_version", str(version.version))
            self._log_metrics(self.run_id, metrics, child.end, record.round)
            self._close(child)
        return version

    def log_variant(self, record: VariantScores, interval: Interval | None, adapters: Mapping[str, Path]) -> None:
        """Log a variant as a child run.

        Args:
            record: Of the variant.
            interval: Its accuracy over the documents that all variants share; None when they share none.
            adapters: Student adapters to keep, in PEFT's format, by document id; they go to `adapters/<document id>`.
        """
        unit = f"variant-{record.name}"
        with self._saving(unit):
            child = self._child(unit, "variant", record.label, 0.0, {"preceptor.variant": record.name})
            if child.finished:
                return
            self._log_metrics(child.run_id, tables.variant_metrics(record, interval), child.end, 0)
            more = {"eval/documents.json": tables.variant_table(record)}
            self._log_candidates(child.run_id, f"variant={record.name}", record.candidates, more)
            for document_id, directory in adapters.items():
                self.store.client.log_artifacts(child.run_id, str(directory), f"adapters/{_file_name(document_id)}")
            self._close(child)

    def log_comparison(self, comparison: VariantComparison, result: RunResult, figures: Sequence[Path]) -> None:
        """Log the comparison to the parent run: `result.json`, tables, metrics, and image files under `plots/`."""
        client = self.store.client
        with self._saving("comparison"):
            client.log_dict(self.run_id, result.model_dump(mode="json"), "result.json")
            self._log_tables(self.run_id, tables.comparison_tables(comparison))
            for figure in figures:
                client.log_artifact(self.run_id, str(figure), "plots")
            self._log_metrics(self.run_id, tables.comparison_metrics(comparison), self._first_compared(), 0)

    def log_night(self, result: NightResult, report: str, page: Path) -> None:
        """Log a night to the parent run: metrics, self-edits, `result.json`, the gate's Markdown report, the page."""
        client = self.store.client
        with self._saving("night"):
            client.log_dict(self.run_id, result.model_dump(mode="json"), "result.json")
            client.log_text(self.run_id, report, "gate-report.md")
            client.log_artifact(self.run_id, str(page))
            self._log_candidates(self.run_id, f"night={result.night}", result.candidates, {})
            self._log_metrics(self.run_id, tables.night_metrics(result), self._first_compared(), 0)
            client.set_tag(self.run_id, "preceptor.outcome", result.outcome)
            client.set_tag(self.run_id, NOTE, report)  # cut by MLflow at 8000 characters

    def register(
        self, role: Role, directory: Path, *, digest: str, tags: Mapping[str, str], metrics: Mapping[str, float]
    ) -> RegisteredVersion:
        """Register an adapter that the parent run made, such as a student; see `Registry.register`."""
        with self._saving(f"{role} {digest[:12]}"):
            return self.registry.register(
                role, directory, digest=digest, run_id=self.run_id, tags=tags, metrics=metrics
            )

    def finish(self, status: Literal["FINISHED", "FAILED"]) -> None:
        """End the parent run; incomplete units are marked as failed."""
        client = self.store.client
        with self._saving("end"):
            begun = f"tags.`{_PARENT}` = '{self.run_id}' and attributes.status = 'RUNNING'"
            for child in client.search_runs([self.store.experiment_id], begun):
                client.set_terminated(child.info.run_id, status="FAILED")
            client.set_terminated(self.run_id, status=status)

    @contextmanager
    def _saving(self, part: str) -> Iterator[None]:
        """Record `part` as saved at the end; a LineageError before lists what was saved."""
        with lineage_errors(f"log {part!r} of run {self.run_id!r}", self.store.uri, self._saved):
            yield
        self._saved.append(part)

    def _child(self, unit: str, kind: str, name: str, seconds: float, tags: Mapping[str, str]) -> _Child:
        """Return the run of a unit that took `seconds` and has just ended, created if absent."""
        client, experiments = self.store.client, [self.store.experiment_id]
        mark = {_PARENT: self.run_id, _UNIT: unit}
        wanted = " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in mark.items())
        found = client.search_runs(experiments, wanted, max_results=1)
        took = round(1000 * seconds)
        run = (
            found[0]
            if found
            else client.create_run(
                experiments[0],
                start_time=int(1000 * time.time()) - took,
                tags={**mark, "preceptor.kind": kind, **tags},
                run_name=name,
            )
        )
        return _Child(run.info.run_id, run.info.start_time + took, run.info.status == "FINISHED")

    def _first_compared(self) -> int:
        """Return when the result was first logged, in ms since 1970; kept as a tag of the run."""
        client = self.store.client
        noted = client.get_run(self.run_id).data.tags.get(_COMPARED)
        if noted is None:
            noted = str(int(1000 * time.time()))
            client.set_tag(self.run_id, _COMPARED, noted)
        return int(noted)

    def _close(self, child: _Child) -> None:
        self.store.client.set_terminated(child.run_id, status="FINISHED", end_time=child.end)

    def _log_metrics(self, run_id: str, metrics: Mapping[str, float], at: int, step: int) -> None:
        """Log metrics with a given time: repeating them adds no points."""
        from mlflow.entities import Metric

        points = [Metric(name, value, at, step) for name, value in metrics.items()]
        for start in range(0, len(points), _METRICS_PER_CALL):
            self.store.client.log_batch(run_id, metrics=points[start : start + _METRICS_PER_CALL])

    def _log_candidates(
        self, run_id: str, name: str, candidates: Sequence[Candidate], more: Mapping[str, tables.Table]
    ) -> None:
        """Log all candidates as `candidates/<name>.parquet`, and the best, with more tables, for the run's page."""
        if candidates:
            with tempfile.TemporaryDirectory() as scratch:
                path = Path(scratch) / f"{name}.parquet"
                tables.write_candidates(candidates, self._digests, path)
                self.store.client.log_artifact(run_id, str(path), "candidates")
            more = {"candidates/top.json": tables.best_candidates(candidates), **more}
        self._log_tables(run_id, more)

    def _log_tables(self, run_id: str, shown: Mapping[str, tables.Table]) -> None:
        """Log all tables of a run. `MlflowClient.log_table` would append to an existing file."""
        for path, table in shown.items():
            self.store.client.log_dict(run_id, table, path)
        listed = [{"path": path, "type": "table"} for path in shown]
        self.store.client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps(listed))


def _refuse_other_params(run: Any, params: Mapping[str, str | int | float]) -> None:
    """Raise `LineageError` when a run has other values of some parameters, which MLflow cannot change."""
    recorded = run.data.params
    other = [
        f"{name} (recorded {recorded[name]!r}, got {str(value)!r})"
        for name, value in params.items()
        if name in recorded and recorded[name] != str(value)[:_LONGEST_PARAM]
    ]
    if other:
        raise LineageError(
            f"lineage: run {run.info.run_id!r} has this run key but other parameters: {', '.join(other)}. Resume it "
            "with the configuration that it was started with, or start another run under another key."
        )


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
) -> str:
    """Log a complete run, such as a regression test, with text artifacts by file name, and return its id.

    Nested `params` are flattened, a long note among `tags` is cut, and names of `metrics` are made fit for MLflow.

    Raises:
        LineageError: The store refused it.
    """
    store = open_store(tracking, work_dir)
    cut = {**git_tags(), **tags, NOTE: tags.get(NOTE, "")[:_LONGEST_TAG]}
    with lineage_errors(f"log the run {name!r}", store.uri):
        client = store.client
        run_id: str = client.create_run(store.experiment_id, run_name=name).info.run_id
        log_in_batches(client, run_id, params=flatten_params(params), tags=cut)
        for metric, value in metrics.items():
            client.log_metric(run_id, "/".join(map(tables.metric_part, metric.split("/"))), value)
        for file, text in texts.items():
            client.log_text(run_id, text, file)
        client.set_terminated(run_id, "FINISHED")
    return run_id
