"""The model registry: teachers and students as versions that hold a plain PEFT directory, and the aliases on them.

An adapter is stored as MLflow's LoggedModel without a flavor: what is downloaded goes straight into
`PeftModel.from_pretrained` or vLLM. (`mlflow.transformers` stores an adapter of a local base wrongly, without a word:
github.com/mlflow/mlflow/issues/23761.)

Aliases: `candidate` is the newest, `champion` is in use, `previous` is what a rollback leads to. Only aliases and tags
change: no version, no run and no file is ever deleted.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from evaluation.errors import LineageError
from pipelines.config import TrackingConfig
from pipelines.lineage_store import Store, lineage_errors, open_store
from pipelines.promotions import (
    NO_PARENT,
    PARENT_TAG,
    PROMOTED_TAG,
    REASON_TAG,
    REPORT_FILE,
    ROLLED_BACK_TAG,
    Rollback,
    VersionRecord,
    checked_reason,
    described,
    nothing_before,
    now,
    parent_of,
    refuse_other_champion,
    version_record,
)

Role = Literal["teacher", "student"]

CHAMPION, PREVIOUS, CANDIDATE = "champion", "previous", "candidate"
"""Aliases: in use, in use before, newest."""

ADAPTER_TAG, RUN_TAG, PROMPTS_TAG = "preceptor.adapter_sha", "preceptor.run_id", "preceptor.probe_prompts"
"""Tags of a version: digest of the adapter, run that made it, and a JSON list of prompts that probe it."""
MEMORY_TAG = "preceptor.memory_digest"
"""Tag of a student's version: `ExternalMemory.digest` of the memory among its files."""
_MODEL = "preceptor.model_id"
_CONFIG_FILE = "adapter_config.json"


class RegisteredVersion(NamedTuple):
    """A version of a registered model."""

    name: str
    """Of the registered model, such as `preceptor-teacher`."""
    version: int
    model_id: str
    """Of the LoggedModel that holds the files."""

    @property
    def uri(self) -> str:
        """What `mlflow.artifacts.download_artifacts` takes."""
        return f"models:/{self.name}/{self.version}"


class Promotion(NamedTuple):
    """Where the aliases stand after a promotion."""

    champion: int
    previous: int | None
    """None when there was no champion before."""


class Registry:
    """Versions and aliases of the teacher and the student."""

    def __init__(self, store: Store, prefix: str, saved: Sequence[str] = ()) -> None:
        """Use an open store.

        Args:
            store: From `open_store`.
            prefix: Models are called `<prefix>-teacher` and `<prefix>-student`.
            saved: What errors say is in the store already; read when one occurs.
        """
        self._store = store
        self._prefix = prefix
        self._saved = saved
        self._made: set[Role] = set()

    @classmethod
    def open(cls, tracking: TrackingConfig, work_dir: Path) -> Registry:
        """Return the registry without a run, to promote, roll back or download.

        Raises:
            LineageError: The store cannot be used.
        """
        return cls(open_store(tracking, work_dir), tracking.registry_prefix)

    def name(self, role: Role) -> str:
        """Return the name of the registered model."""
        return f"{self._prefix}-{role}"

    def register(
        self,
        role: Role,
        directory: Path,
        *,
        digest: str,
        run_id: str,
        parent_run_id: str | None = None,
        tags: Mapping[str, str],
        metrics: Mapping[str, float] | None = None,
    ) -> RegisteredVersion:
        """Return the version that holds an adapter, made if this run has not registered it yet.

        The alias `candidate` is moved to it.

        Args:
            role: Whose adapter it is.
            directory: In PEFT's format; stored whole.
            digest: SHA-256 of the adapter: one run registers it once, however often it is resumed.
            run_id: Run that made the adapter.
            parent_run_id: Run within which an adapter counts as the same one; None is `run_id`.
            tags: Of the version.
            metrics: Shown with the model, and in the run `run_id`.

        Raises:
            LineageError: The directory holds no adapter, or the registry refused it.
        """
        if not (directory / _CONFIG_FILE).is_file():
            raise LineageError(
                f"registry: {str(directory)!r} has no {_CONFIG_FILE}, so it is no adapter of the {role}. Give a "
                "directory that PEFT, save_adapter or TeacherPolicy.save wrote."
            )
        marks = {ADAPTER_TAG: digest, RUN_TAG: parent_run_id or run_id}
        name = self.name(role)
        with lineage_errors(f"register adapter {digest[:12]!r} as {name!r}", self._store.uri, self._saved):
            version = self._find(name, marks)
            if version is None:
                model = self._logged_model(role, directory, marks, run_id, metrics or {})
                version = self._create(role, model, {**tags, **marks}, run_id)
            self._store.client.set_registered_model_alias(name, CANDIDATE, str(version.version))
        return version

    def promote(
        self, role: Role, version: int, *, record: Mapping[str, str] | None = None, report: Path | str | None = None
    ) -> Promotion:
        """Make a version the champion, and the champion so far the previous one.

        What is to be known of the promotion is written to the version first and the alias is moved last: a promotion
        that is killed leaves the old champion, and the same call again completes it. Promoting the champion again
        changes nothing. The first promotion of a version writes the champion that it replaces as its parent, for good.

        Args:
            role: Whose version it is.
            version: Number of the version.
            record: Tags to write, such as `DECISION_TAG` and `DATA_TAG`. With `PARENT_TAG`, the number of the champion
                that the version was compared with (`none` for none), the promotion is refused if another is in use now.
            report: The gate's, in Markdown, as text or as a file; becomes the version's description, cut where it
                is longer than MLflow takes, and whole the file `REPORT_FILE` among its files.

        Raises:
            LineageError: There is no such version, the champion is not the one in the record, the report cannot be
                read, or the registry refused.
        """
        name, client = self.name(role), self._store.client
        with lineage_errors(f"promote version {version} of {name!r}", self._store.uri), self._store.lock:
            # Looked up first: an alias on nothing would only fail when it is used.
            tags = client.get_model_version(name, str(version)).tags
            aliases = self.aliases(role)
            champion = aliases.get(CHAMPION)
            if champion == version:
                if PROMOTED_TAG not in tags:
                    client.set_model_version_tag(name, str(version), PROMOTED_TAG, now())
                return Promotion(version, aliases.get(PREVIOUS))
            told = dict(record or {})
            in_use = NO_PARENT if champion is None else str(champion)
            refuse_other_champion(name, version, told.pop(PARENT_TAG, in_use), in_use)
            if PROMOTED_TAG not in tags:
                told[PARENT_TAG] = in_use
            self._write_promotion(name, version, told, report, tags.get(_MODEL))
            if champion is not None:
                client.set_registered_model_alias(name, PREVIOUS, str(champion))
            client.set_registered_model_alias(name, CHAMPION, str(version))
            client.set_model_version_tag(name, str(version), PROMOTED_TAG, now())
        return Promotion(version, champion)

    def rollback(self, role: Role, reason: str) -> Rollback:
        """Put the champion's parent in its place, and write to the version that is left when and why.

        A second rollback goes one version further back, never forth again: parents are followed, and versions that were
        rolled back are passed over. `previous` then stands where the next rollback would lead, or nowhere. A rollback
        that is killed is completed by the same call again. To go forward again, promote a version.

        Args:
            role: Whose champion it is.
            reason: In words, not blank.

        Raises:
            ConfigError: There is no reason.
            LineageError: There is no champion, nothing to go back to, or the registry refused.
        """
        because = checked_reason(reason)
        name, client = self.name(role), self._store.client
        with lineage_errors(f"roll back {name!r}", self._store.uri), self._store.lock:
            aliases = self.aliases(role)
            champion = aliases.get(CHAMPION)
            history = {record.version: record for record in self.history(role)}
            target = None if champion is None else parent_of(history, champion, aliases.get(PREVIOUS))
            if champion is None or target is None:
                raise nothing_before(name, role, champion)
            for tag, value in ((ROLLED_BACK_TAG, now()), (REASON_TAG, because)):
                client.set_model_version_tag(name, str(champion), tag, value)
            before = parent_of(history, target, None)
            if before is not None:
                client.set_registered_model_alias(name, PREVIOUS, str(before))
            elif PREVIOUS in aliases:
                client.delete_registered_model_alias(name, PREVIOUS)
            client.set_registered_model_alias(name, CHAMPION, str(target))
        return Rollback(champion, target)

    def history(self, role: Role) -> list[VersionRecord]:
        """Return all versions, newest first; none for a model that was never registered.

        Raises:
            LineageError: The registry cannot be read.
        """
        name = self.name(role)
        standing: dict[int, list[str]] = {}
        for alias, version in self.aliases(role).items():
            standing.setdefault(version, []).append(alias)
        found: list[Any] = []
        token: str | None = ""
        with lineage_errors(f"list the versions of {name!r}", self._store.uri):
            while token is not None:
                page = self._store.client.search_model_versions(f"name = '{name}'", page_token=token or None)
                found += page
                token = page.token or None
        records = [
            version_record(int(v.version), standing.get(int(v.version), ()), v.creation_timestamp, v.tags)
            for v in found
        ]
        return sorted(records, key=lambda record: -record.version)

    def tags(self, role: Role, version: int) -> dict[str, str]:
        """Return all tags of a version.

        Raises:
            LineageError: There is no such version.
        """
        name = self.name(role)
        with lineage_errors(f"read version {version} of {name!r}", self._store.uri):
            return dict(self._store.client.get_model_version(name, str(version)).tags)

    def aliases(self, role: Role) -> dict[str, int]:
        """Return the version that each alias stands on; empty for a model that was never registered.

        Raises:
            LineageError: The registry cannot be read.
        """
        from mlflow.exceptions import MlflowException

        name = self.name(role)
        with lineage_errors(f"read the aliases of {name!r}", self._store.uri):
            try:
                found = self._store.client.get_registered_model(name).aliases
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return {}
        return {alias: int(version) for alias, version in found.items()}

    def download(self, role: Role, version: int | str, destination: Path) -> Path:
        """Return a directory under `destination` with the files of a version.

        Args:
            role: Whose version it is.
            version: Its number, or an alias such as `champion`.
            destination: Directory to copy into; made if it does not exist.

        Raises:
            LineageError: There is no such version or alias, or its files cannot be read.
        """
        from mlflow.artifacts import download_artifacts

        name, client = self.name(role), self._store.client
        with lineage_errors(f"download {version!r} of {name!r}", self._store.uri):
            number = (
                str(version) if isinstance(version, int) else client.get_model_version_by_alias(name, version).version
            )
            source = client.get_model_version_download_uri(name, str(number))
            destination.mkdir(parents=True, exist_ok=True)
            place = tempfile.mkdtemp(prefix=f"{name}-{number}-", dir=destination)
            return Path(download_artifacts(artifact_uri=source, dst_path=place, tracking_uri=self._store.uri))

    def _write_promotion(
        self, name: str, version: int, told: Mapping[str, str], report: Path | str | None, model_id: str | None
    ) -> None:
        """Write tags and the gate's report to a version; the same again changes nothing."""
        client = self._store.client
        for tag, value in told.items():
            client.set_model_version_tag(name, str(version), tag, value)
        if report is None:
            return
        text = report.read_text(encoding="utf-8") if isinstance(report, Path) else report
        if model_id:
            with tempfile.TemporaryDirectory() as scratch:
                file = Path(scratch) / REPORT_FILE
                file.write_text(text, encoding="utf-8")
                client.log_model_artifact(model_id, str(file))
        client.update_model_version(name, str(version), description=described(text))

    def _find(self, name: str, marks: Mapping[str, str]) -> RegisteredVersion | None:
        """Return the version with these tags, if there is one."""
        found = self._store.client.search_model_versions(f"name = '{name}' and {_filter(marks)}", max_results=1)
        return RegisteredVersion(name, int(found[0].version), found[0].tags.get(_MODEL, "")) if found else None

    def _logged_model(
        self, role: Role, directory: Path, marks: Mapping[str, str], run_id: str, metrics: Mapping[str, float]
    ) -> Any:
        """Return a finished LoggedModel with the files; one that a killed run left unfinished is finished."""
        from mlflow.entities import LoggedModelOutput, Metric

        client, experiments = self._store.client, [self._store.experiment_id]
        found = client.search_logged_models(experiments, filter_string=_filter(marks), max_results=1)
        model = (
            found[0]
            if found
            else client.create_logged_model(
                experiments[0],
                name=role,
                source_run_id=run_id,
                tags=dict(marks),
                params={"adapter_sha256": marks[ADAPTER_TAG]},
            )
        )
        client.log_model_artifacts(model.model_id, str(directory))
        at = model.creation_timestamp  # the same when this is done again, so that no figure comes twice
        if metrics:
            client.log_batch(run_id, metrics=[Metric(k, v, at, 0, model_id=model.model_id) for k, v in metrics.items()])
        outputs = client.get_run(run_id).outputs
        if model.model_id not in {output.model_id for output in (outputs.model_outputs if outputs else [])}:
            client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
        return client.finalize_logged_model(model.model_id, "READY")

    def _create(self, role: Role, model: Any, tags: Mapping[str, str], run_id: str) -> RegisteredVersion:
        """Make a version of a LoggedModel."""
        name = self.name(role)
        if role not in self._made:
            self._ensure_model(name)
            self._made.add(role)
        # The files' own place as source: a `models:/` source is looked up in MLflow's global store instead of this one.
        version = self._store.client.create_model_version(
            name,
            model.artifact_location,
            run_id=run_id,
            tags={**tags, _MODEL: model.model_id},
            model_id=model.model_id,
        )
        return RegisteredVersion(name, int(version.version), model.model_id)

    def _ensure_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._store.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise


def _filter(tags: Mapping[str, str]) -> str:
    """Return a search filter for all of the tags."""
    return " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
