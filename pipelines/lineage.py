"""The lineage of a run in MLflow: one parent run, one child for each round and variant, documents, tables and models.

Everything can be logged again without harm, so a run that was killed goes on in the same MLflow run: units are found by
tag, finished ones are skipped, figures carry times that come out the same, files replace themselves.
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

from evaluation.digests import digest_json
from evaluation.errors import LineageError
from evaluation.tasks import KnowledgeTask
from pipelines import lineage_tables as tables
from pipelines.config import TrackingConfig
from pipelines.lineage_store import Store, git_tags, lineage_errors, log_in_batches, open_store
from pipelines.records import CandidateRecord, Interval, ReliabilityRecord, RoundRecord
from pipelines.registry import RegisteredVersion, Registry, Role
from pipelines.results import ComparisonRecord, RunResult, VariantRecord

if TYPE_CHECKING:
    from pipelines.nights.results import NightResult

_RUN_KEY, _UNIT, _PARENT = "preceptor.run_key", "preceptor.unit", "mlflow.parentRunId"
_COMPARED = "preceptor.compared_at"
_KEY_PATTERN = r"[A-Za-z0-9_.:/-]{1,250}"
_DIGEST_LENGTH = 36
"""Longest data set digest that MLflow takes."""
_METRICS_PER_CALL = 1000
_LONGEST_PARAM = 6000


class _Child(NamedTuple):
    """The run of a unit."""

    run_id: str
    end: int
    """When the unit ended, in ms since 1970; the same each time it is logged."""
    finished: bool


class Lineage:
    """The MLflow side of one run. Use it from one process; it reads nothing that other runs are writing."""

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
        """Return the lineage of the run with this key: the run that was started before, or a new one.

        Args:
            tracking: Where it goes.
            work_dir: Of the run.
            run_name: Shown by MLflow.
            run_key: Content key of the run, of letters, digits and `_.:/-`: the same key is the same run.
            config_yaml: The resolved configuration; becomes `config.yaml`.
            params: See `flatten_params`; a resumed run must give the same values.
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

    def log_documents(self, name: Literal["train", "development", "test"], tasks: Sequence[KnowledgeTask]) -> None:
        """Log documents as a data set with a digest, and list them in `documents/<name>.parquet`.

        Call it before rounds and variants are logged: their candidates name documents by digest. No documents: nothing.

        Args:
            name: What they are for.
            tasks: The documents with their questions.

        Raises:
            LineageError: The store refused them.
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

    def log_pilot(self, records: Mapping[str, ReliabilityRecord]) -> None:
        """Log the reliability of rewards before learning to the parent run, by metric."""
        with self._saving("pilot"):
            metrics = {
                f"pilot/{metric}_{name}": float(value)
                for metric, record in records.items()
                for name, value in record.model_dump().items()
            }
            self._log_metrics(self.run_id, metrics, self._started(), 0)

    def log_round(self, record: RoundRecord, policy_dir: Path) -> RegisteredVersion | None:
        """Log a round as a child run, and its teacher as a registered version with the alias `candidate`.

        Args:
            record: Of the round.
            policy_dir: The teacher after the round, in PEFT's format.

        Returns:
            The teacher's version; None when the round was logged completely before.

        Raises:
            LineageError: The store refused it; what was logged of the round is completed next time.
        """
        unit = f"round-{record.round:03d}"
        with self._saving(unit):
            child = self._child(
                unit, "round", unit, sum(record.seconds.values()), {"preceptor.round": str(record.round)}
            )
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
                tags={"preceptor.round": str(record.round), "preceptor.policy": record.learning.policy},
            )
            self.store.client.set_tag(child.run_id, "preceptor.teacher_version", str(version.version))
            self._log_metrics(self.run_id, metrics, child.end, record.round)
            self._close(child)
        return version

    def log_variant(self, record: VariantRecord, interval: Interval | None, adapters: Mapping[str, Path]) -> None:
        """Log a variant as a child run.

        Args:
            record: Of the variant.
            interval: Its accuracy over the documents that all variants share; None when they share none.
            adapters: Student adapters to keep, in PEFT's format, by document id; they go to `adapters/<document id>`.

        Raises:
            LineageError: The store refused it; what was logged of the variant is completed next time.
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

    def log_comparison(self, comparison: ComparisonRecord, result: RunResult, figures: Sequence[Path]) -> None:
        """Log the comparison to the parent run: `result.json`, tables, headline figures, and plots under `plots/`.

        Args:
            comparison: The variants side by side.
            result: What scripts get.
            figures: Image files.

        Raises:
            LineageError: The store refused it.
        """
        client = self.store.client
        with self._saving("comparison"):
            client.log_dict(self.run_id, result.model_dump(mode="json"), "result.json")
            self._log_tables(self.run_id, tables.comparison_tables(comparison))
            for figure in figures:
                client.log_artifact(self.run_id, str(figure), "plots")
            self._log_metrics(self.run_id, tables.comparison_metrics(comparison), self._first_compared(), 0)

    def log_night(self, result: NightResult, report: str, page: Path) -> None:
        """Log a night to the parent run: figures, self-edits, `result.json`, the gate's report and the morning page.

        Args:
            result: Of the night.
            report: Of the gate, in Markdown; shown on the run's page.
            page: The morning page, an HTML file.

        Raises:
            LineageError: The store refused it.
        """
        client = self.store.client
        with self._saving("night"):
            client.log_dict(self.run_id, result.model_dump(mode="json"), "result.json")
            client.log_text(self.run_id, report, "gate-report.md")
            client.log_artifact(self.run_id, str(page))
            self._log_candidates(self.run_id, f"night={result.night}", result.candidates, {})
            self._log_metrics(self.run_id, tables.night_metrics(result), self._first_compared(), 0)
            client.set_tag(self.run_id, "preceptor.outcome", result.outcome)
        self.set_note(report)

    def register(
        self, role: Role, directory: Path, *, digest: str, tags: Mapping[str, str], metrics: Mapping[str, float]
    ) -> RegisteredVersion:
        """Register an adapter that the parent run made, such as a student; see `Registry.register`."""
        with self._saving(f"{role} {digest[:12]}"):
            return self.registry.register(
                role, directory, digest=digest, run_id=self.run_id, tags=tags, metrics=metrics
            )

    def set_note(self, markdown: str) -> None:
        """Show a text on the parent run's page, cut by MLflow at 8000 characters."""
        with self._saving("note"):
            self.store.client.set_tag(self.run_id, "mlflow.note.content", markdown)

    def finish(self, status: Literal["FINISHED", "FAILED"]) -> None:
        """End the parent run; units that were begun and not completed are marked as failed."""
        client = self.store.client
        with self._saving("end"):
            begun = f"tags.`{_PARENT}` = '{self.run_id}' and attributes.status = 'RUNNING'"
            for child in client.search_runs([self.store.experiment_id], begun):
                client.set_terminated(child.info.run_id, status="FAILED")
            client.set_terminated(self.run_id, status=status)

    @contextmanager
    def _saving(self, part: str) -> Iterator[None]:
        """Note `part` as saved at the end, and say what was saved before if something fails."""
        with lineage_errors(f"log {part!r} of run {self.run_id!r}", self.store.uri, self._saved):
            yield
        self._saved.append(part)

    def _child(self, unit: str, kind: str, name: str, seconds: float, tags: Mapping[str, str]) -> _Child:
        """Return the run of a unit that took `seconds` and has just ended, made if it does not exist."""
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
        """Return when the comparison was logged first, in ms since 1970; noted in the run."""
        client = self.store.client
        noted = client.get_run(self.run_id).data.tags.get(_COMPARED)
        if noted is None:
            noted = str(int(1000 * time.time()))
            client.set_tag(self.run_id, _COMPARED, noted)
        return int(noted)

    def _started(self) -> int:
        """Return when the parent run was begun, in ms since 1970."""
        return int(self.store.client.get_run(self.run_id).info.start_time)

    def _close(self, child: _Child) -> None:
        self.store.client.set_terminated(child.run_id, status="FINISHED", end_time=child.end)

    def _log_metrics(self, run_id: str, metrics: Mapping[str, float], at: int, step: int) -> None:
        """Log figures with a given time: the same ones again are the same points, not new ones."""
        from mlflow.entities import Metric

        points = [Metric(name, value, at, step) for name, value in metrics.items()]
        for start in range(0, len(points), _METRICS_PER_CALL):
            self.store.client.log_batch(run_id, metrics=points[start : start + _METRICS_PER_CALL])

    def _log_candidates(
        self, run_id: str, name: str, candidates: Sequence[CandidateRecord], more: Mapping[str, tables.Table]
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
        """Log all tables of a run. `MlflowClient.log_table` would append to a file that is there already."""
        for path, table in shown.items():
            self.store.client.log_dict(run_id, table, path)
        listed = [{"path": path, "type": "table"} for path in shown]
        self.store.client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps(listed))


def _refuse_other_params(run: Any, params: Mapping[str, str | int | float]) -> None:
    """Raise `LineageError` when a run has other values of some parameters: MLflow can never change one."""
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
    """Return a document's id as one part of a path; ids that had to be changed stay apart by a digest."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", document_id)[:80]
    return plain if plain == document_id else f"{plain}-{digest_json(document_id)[:8]}"
