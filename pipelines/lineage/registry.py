"""The model registry: teachers and students as versions that hold a plain PEFT directory, and the aliases on them.

An adapter is stored as MLflow's LoggedModel without a flavor: its files go straight into `PeftModel.from_pretrained` or
vLLM. (`mlflow.transformers` silently stores an adapter of a local base wrongly: github.com/mlflow/mlflow/issues/23761.)

Aliases: `candidate` is the newest, `champion` is in use, `previous` is where a rollback leads. Only aliases and tags
change: no version, run or file is ever deleted.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from evaluation.common.data import digest_files
from evaluation.common.errors import ConfigError, LineageError
from pipelines.lineage import promotions
from pipelines.lineage.promotions import PARENT_TAG, PROMOTED_TAG, Rollback, VersionRecord
from pipelines.lineage.store import Store, lineage_errors, open_existing, open_store
from pipelines.settings import TrackingConfig

Role = Literal["teacher", "student"]

CHAMPION, PREVIOUS, CANDIDATE = "champion", "previous", "candidate"
"""Aliases: in use, in use before, newest."""

ADAPTER_TAG, RUN_TAG = "preceptor.adapter_sha", "preceptor.run_id"
"""Tags of a version: digest of the adapter, and the run it comes from."""
MEMORY_TAG = "preceptor.memory_digest"
"""Tag of a student's version: `ExternalMemory.digest` of the memory among its files."""
_MODEL = "preceptor.model_id"
_CONFIG_FILE, _POLICY_FILE = "adapter_config.json", "policy.json"


class RegisteredVersion(NamedTuple):
    """A version of a registered model, and the LoggedModel that holds its files."""

    version: int
    model_id: str


class Promotion(NamedTuple):
    """Where the aliases stand after a promotion."""

    champion: int
    previous: int | None
    """None when there was no champion before."""


class Registry:
    """Versions and aliases of the teacher and the student. Every method raises `LineageError` when the store fails."""

    def __init__(self, store: Store, prefix: str, saved: Sequence[str] = ()) -> None:
        """Use an open store; models are called `<prefix>-<role>`, and errors list what is `saved` already."""
        self._store = store
        self._prefix = prefix
        self._saved = saved

    @classmethod
    def open(cls, tracking: TrackingConfig, work_dir: Path) -> Registry:
        """Return the registry of a work directory, created if absent."""
        return cls(open_store(tracking, work_dir), tracking.registry_prefix)

    @classmethod
    def existing(cls, tracking: TrackingConfig, work_dir: Path) -> Registry | None:
        """Return the registry for reading, or None when there is none yet; creates nothing."""
        store = open_existing(tracking, work_dir)
        return None if store is None else cls(store, tracking.registry_prefix)

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
        """Return the version that holds an adapter, created unless this run registered it before; now the `candidate`.

        Args:
            role: Whose adapter it is.
            directory: In PEFT's format; stored whole.
            digest: SHA-256 of the adapter: one run registers it once, however often it is resumed.
            run_id: Run that trained the adapter.
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
        name, client = self.name(role), self._store.client
        with lineage_errors(f"register adapter {digest[:12]!r} as {name!r}", self._store.uri, self._saved):
            found = client.search_model_versions(f"name = '{name}' and {_filter(marks)}", max_results=1)
            if found:
                version = RegisteredVersion(int(found[0].version), found[0].tags.get(_MODEL, ""))
            else:
                model = self._logged_model(role, directory, marks, run_id, metrics or {})
                version = self._create(name, model, {**tags, **marks}, run_id)
            client.set_registered_model_alias(name, CANDIDATE, str(version.version))
        return version

    def promote(
        self, role: Role, version: int, *, record: Mapping[str, str] | None = None, report: Path | str | None = None
    ) -> Promotion:
        """Make a version the champion, and the champion so far the previous one.

        Tags and report are written first and the alias moves last: a promotion that is killed leaves the old champion,
        and the same call completes it. Promoting the champion again changes nothing. The first promotion of a version
        records the champion that it replaces as its parent, for good.

        Args:
            role: Whose version it is.
            version: Number of the version.
            record: Tags to write, such as `DECISION_TAG` and `DATA_TAG`. With `PARENT_TAG`, the number of the champion
                that the version was compared with (`none` for none), the promotion is refused if another is in use now.
            report: The gate's, in Markdown, as text or as a file; becomes the version's description (cut at MLflow's
                limit) and the file `REPORT_FILE` among its files.

        Raises:
            LineageError: No such version, another champion than in the record, or an unreadable report.
        """
        name, client = self.name(role), self._store.client
        with lineage_errors(f"promote version {version} of {name!r}", self._store.uri), self._store.lock:
            # Looked up first: an alias on nothing would only fail when it is used.
            tags = client.get_model_version(name, str(version)).tags
            aliases = self.aliases(role)
            champion = aliases.get(CHAMPION)
            if champion == version:
                if PROMOTED_TAG not in tags:
                    client.set_model_version_tag(name, str(version), PROMOTED_TAG, promotions.now())
                return Promotion(version, aliases.get(PREVIOUS))
            written = dict(record or {})
            in_use = promotions.NO_PARENT if champion is None else str(champion)
            promotions.refuse_other_champion(name, version, written.pop(PARENT_TAG, in_use), in_use)
            if PROMOTED_TAG not in tags:
                written[PARENT_TAG] = in_use
            for tag, value in written.items():
                client.set_model_version_tag(name, str(version), tag, value)
            if report is not None:
                self._write_report(name, version, report, tags.get(_MODEL))
            if champion is not None:
                client.set_registered_model_alias(name, PREVIOUS, str(champion))
            client.set_registered_model_alias(name, CHAMPION, str(version))
            client.set_model_version_tag(name, str(version), PROMOTED_TAG, promotions.now())
        return Promotion(version, champion)

    def rollback(self, role: Role, reason: str) -> Rollback:
        """Make the champion's parent the champion, and record on the version that is left when and why.

        A second rollback goes one version further back, see `promotions.parent_of`; `previous` then stands where the
        next one would lead, or nowhere. The same call completes a rollback that was killed. To go forward, promote.

        Args:
            role: Whose champion it is.
            reason: Not blank.

        Raises:
            ConfigError: The reason is blank.
            LineageError: There is no champion, or nothing to go back to.
        """
        if not reason.strip():
            raise ConfigError("rollback: got no reason. Say why in a sentence: it is kept with the version.")
        name, client = self.name(role), self._store.client
        with lineage_errors(f"roll back {name!r}", self._store.uri), self._store.lock:
            aliases = self.aliases(role)
            champion = aliases.get(CHAMPION)
            history = {record.version: record for record in self.history(role)}
            target = None if champion is None else promotions.parent_of(history, champion, aliases.get(PREVIOUS))
            if champion is None or target is None:
                raise promotions.nothing_before(name, role, champion)
            marks = {promotions.ROLLED_BACK_TAG: promotions.now(), promotions.REASON_TAG: reason.strip()}
            for tag, value in marks.items():
                client.set_model_version_tag(name, str(champion), tag, value)
            before = promotions.parent_of(history, target, None)
            if before is not None:
                client.set_registered_model_alias(name, PREVIOUS, str(before))
            elif PREVIOUS in aliases:
                client.delete_registered_model_alias(name, PREVIOUS)
            client.set_registered_model_alias(name, CHAMPION, str(target))
        return Rollback(champion, target)

    def history(self, role: Role) -> list[VersionRecord]:
        """Return all versions, newest first; none for a model that was never registered."""
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
            promotions.version_record(int(v.version), standing.get(int(v.version), ()), v.creation_timestamp, v.tags)
            for v in found
        ]
        return sorted(records, key=lambda record: -record.version)

    def tags(self, role: Role, version: int) -> dict[str, str]:
        """Return all tags of a version."""
        name = self.name(role)
        with lineage_errors(f"read version {version} of {name!r}", self._store.uri):
            return dict(self._store.client.get_model_version(name, str(version)).tags)

    def recorded_model(self, role: Role, version: int) -> str | None:
        """Return the base model that the version's run recorded; None when there is no record of it."""
        run_id = self.tags(role, version).get(RUN_TAG)
        if run_id is None:
            return None
        with lineage_errors(f"read the run {run_id!r}", self._store.uri):
            params: Mapping[str, str] = self._store.client.get_run(run_id).data.params
        return params.get(f"{role}.model")

    def aliases(self, role: Role) -> dict[str, int]:
        """Return the version that each alias stands on; empty for a model that was never registered."""
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

    def number(self, role: Role, version: int | str) -> int:
        """Return the number of a version given by number or alias.

        Raises:
            ConfigError: There is no such version.
        """
        name = self.name(role)
        if isinstance(version, str):
            found, missing = self.aliases(role).get(version), f"no version of {name!r} has the alias {version!r}"
        else:
            known = {record.version for record in self.history(role)}
            found, missing = version if version in known else None, f"{name!r} has no version {version}"
        if found is None:
            raise ConfigError(
                f"registry: {missing}. List the versions with `preceptor versions --role {role}`; give one the alias "
                f"`champion` with `preceptor promote {role} NUMBER`."
            )
        return found

    def fetch(self, role: Role, version: int | str, place: Path) -> Path:
        """Return `place` with the files of a version, downloaded unless it exists: whole or absent, even when killed.

        Args:
            role: Whose version it is.
            version: Its number, or an alias such as `champion`.
            place: Directory of this one version.

        Raises:
            ConfigError: There is no such alias.
            LineageError: There is no such version, or its files cannot be read or are not those that were registered.
        """
        from mlflow.artifacts import download_artifacts

        if place.is_dir():
            return place
        number = version if isinstance(version, int) else self.number(role, version)
        name, uri = self.name(role), self._store.uri
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=place.parent) as scratch:
            with lineage_errors(f"download version {number} of {name!r}", uri):
                source = self._store.client.get_model_version_download_uri(name, str(number))
                into = Path(scratch, "files")
                into.mkdir()
                files = Path(download_artifacts(artifact_uri=source, dst_path=str(into), tracking_uri=uri))
            _check_files(files, self.tags(role, number), f"version {number} of {name!r}")
            os.replace(files, place)
        return place

    def _write_report(self, name: str, version: int, report: Path | str, model_id: str | None) -> None:
        """Attach the gate's report to a version; the same again changes nothing."""
        text = report.read_text(encoding="utf-8") if isinstance(report, Path) else report
        if model_id:
            with tempfile.TemporaryDirectory() as scratch:
                file = Path(scratch) / promotions.REPORT_FILE
                file.write_text(text, encoding="utf-8")
                self._store.client.log_model_artifact(model_id, str(file))
        self._store.client.update_model_version(name, str(version), description=promotions.described(text))

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
        at = model.creation_timestamp  # the same when this is repeated, so that no point is logged twice
        if metrics:
            client.log_batch(run_id, metrics=[Metric(k, v, at, 0, model_id=model.model_id) for k, v in metrics.items()])
        outputs = client.get_run(run_id).outputs
        if model.model_id not in {output.model_id for output in (outputs.model_outputs if outputs else [])}:
            client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
        return client.finalize_logged_model(model.model_id, "READY")

    def _create(self, name: str, model: Any, tags: Mapping[str, str], run_id: str) -> RegisteredVersion:
        """Create a version of a LoggedModel, and the registered model with the first."""
        from mlflow.exceptions import MlflowException

        client = self._store.client
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        # The files' own place as source: a `models:/` source is looked up in MLflow's global store instead of this one.
        version = client.create_model_version(
            name,
            model.artifact_location,
            run_id=run_id,
            tags={**tags, _MODEL: model.model_id},
            model_id=model.model_id,
        )
        return RegisteredVersion(int(version.version), model.model_id)


def _filter(tags: Mapping[str, str]) -> str:
    """Return a search filter for all of the tags."""
    return " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())


def _check_files(directory: Path, tags: Mapping[str, str], what: str) -> None:
    """Refuse files whose adapter or memory differs from the registered one, whatever digests lie beside them.

    Raises:
        LineageError: They were changed or damaged.
    """
    from student.memory import MEMORY_FILE, ExternalMemory

    try:
        found = {ADAPTER_TAG: _adapter_digest(directory)}
        if (directory / MEMORY_FILE).is_file():
            found[MEMORY_TAG] = ExternalMemory.load(directory / MEMORY_FILE).digest
    except Exception as error:  # parsers of damaged files raise whatever they like
        raise LineageError(
            f"registry: the files of {what} are damaged: {type(error).__name__}: {error}. Restore them, or use another "
            "version."
        ) from error
    for tag, digest in found.items():
        if digest != tags.get(tag, digest):
            part = "adapter" if tag == ADAPTER_TAG else "memory"
            raise LineageError(
                f"registry: the {part} of {what} has the digest {digest[:12]!r}, and {tags[tag][:12]!r} was "
                "registered. The files were changed or damaged; restore them, or use another version."
            )


def _adapter_digest(directory: Path) -> str:
    """Return the digest that a teacher was saved with, its files checked, or that of a student's adapter."""
    from student.adapters import load_adapter

    if not (directory / _POLICY_FILE).is_file():
        return load_adapter(directory).digest
    record: dict[str, Any] = json.loads((directory / _POLICY_FILE).read_text(encoding="utf-8"))
    if digest_files(directory, ("adapter_model.safetensors", "optimizer.pt")) != record["files"]:
        raise ValueError(f"the digest of the files is not the recorded {record['files'][:12]!r}")
    return str(record["digest"])
