"""The model registry: teachers and students as versions that hold a plain PEFT directory, and the aliases on them.

An adapter is stored as MLflow's LoggedModel without a flavor: its files go straight into `PeftModel.from_pretrained` or
vLLM. (`mlflow.transformers` silently stores an adapter of a local base wrongly: github.com/mlflow/mlflow/issues/23761.)

Aliases: `candidate` is the newest, `champion` is in use, `previous` is where a rollback leads. Only aliases and tags
change: no version or run is ever deleted, and no file but those of versions that are erased.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from evaluation.common.data import digest_files
from evaluation.common.errors import ConfigError, LineageError
from pipelines.lineage import versions
from pipelines.lineage.preceptor_model import as_pyfunc, how_to_open
from pipelines.lineage.store import Store, lineage_errors, open_store, tag_filter
from pipelines.settings import TrackingConfig

Role = Literal["teacher", "student"]

_MODEL = "preceptor.model_id"
_FILES = ("*.json", "*.jsonl", "*.safetensors", "*.pt")
"""Of a version, all that decides what it is and answers."""


class Registry:
    """Versions and aliases of the teacher and the student. Every method raises `LineageError` when the store fails."""

    def __init__(self, store: Store, prefix: str) -> None:
        """Use an open store; models are called `<prefix>-<role>`."""
        self._store, self._prefix = store, prefix

    @classmethod
    def open(cls, tracking: TrackingConfig, work_dir: Path, *, complete: bool = True) -> Registry:
        """Return the registry of a work directory, created if absent; what a kill left half done is completed."""
        registry = cls(open_store(tracking, work_dir), tracking.registry_prefix)
        if complete:
            registry.finish_move()
        return registry

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
        title: str = "",
        description: str = "",
    ) -> int:
        """Return the version that holds an adapter, created unless this run registered it before; now the `candidate`.

        Args:
            role: Whose adapter it is.
            directory: In PEFT's format; stored whole.
            digest: SHA-256 of the adapter: one run registers it once, however often it is resumed.
            run_id: Run that trained the adapter.
            parent_run_id: Run within which an adapter counts as the same one; None is `run_id`.
            tags: Of the version.
            metrics: Shown with the model, and in the run `run_id`, beside the scores among the tags.
            title: Of the model in the run; empty is the role.
            description: Of the version, in Markdown; how to open it is added.

        Raises:
            LineageError: The directory holds no adapter, or the registry refused it.
        """
        if not (directory / "adapter_config.json").is_file():
            raise LineageError(f"registry: {str(directory)!r} has no adapter_config.json, so it is no adapter.")
        tags = {**tags, versions.FILES_TAG: digest_files(directory, _FILES)}
        marks = {versions.ADAPTER_TAG: digest, versions.RUN_TAG: parent_run_id or run_id}
        name, client = self.name(role), self._store.client
        metrics = {**versions.scores_of(tags), **(metrics or {})}
        with lineage_errors(f"register adapter {digest[:12]!r} as {name!r}", self._store.uri):
            found = client.search_model_versions(f"name = '{name}' and {tag_filter(marks)}", max_results=1)
            new = (directory, {**tags, **marks}, run_id, metrics, title or role, description)
            version = found[0] if found else self._create(name, marks, *new)
            client.set_registered_model_alias(name, versions.CANDIDATE, version.version)
        return int(version.version)

    def promote(
        self,
        role: Role,
        version: int,
        *,
        record: Mapping[str, str] | None = None,
        report: str | None = None,
        despite: str | None = None,
    ) -> int | None:
        """Make a version the champion, and return the previous one: the champion so far, None when there was none.

        Tags and report are written first and the alias moves last. A promotion that is killed is completed by the same
        call, and by whoever opens the registry next. Promoting the champion again changes nothing. The first promotion
        of a version records the champion that it replaces as its parent, for good.

        Args:
            role: Whose version it is.
            version: Its number.
            record: Tags to write, such as `DECISION_TAG` and `DATA_TAG`. With `PARENT_TAG`, the number of the champion
                that the version was compared with (`none` for none), the promotion is refused if another is in use now.
            report: The gate's, in Markdown; becomes the version's description (cut at MLflow's limit) and the file
                `REPORT_FILE` among its files.
            despite: Why a version is promoted that the gate held or rejected; kept with it.

        Raises:
            LineageError: No such version, another champion than in the record, or the gate refused it.
        """
        name = self.name(role)
        with lineage_errors(f"promote version {version} of {name!r}", self._store.uri), self._store.lock:
            self.finish_move()
            # Looked up first: an alias on nothing would only fail when it is used.
            tags = self._store.client.get_model_version(name, str(version)).tags
            aliases = self.aliases(role)
            champion = aliases.get(versions.CHAMPION)
            if champion == version:
                return aliases.get(versions.PREVIOUS)
            written = versions.promotion_tags(name, version, champion, tags, record or {}, despite)
            files = None if report is None else (tags[_MODEL], report)
            move = versions.Move(
                name=name, left=champion, to=version, previous=champion, tags=written, promoted=_now(), report=files
            )
            versions.write_move(move, self._store.work_dir)
            self.finish_move()
        return champion

    def rollback(
        self,
        role: Role,
        reason: str,
        reverted: Callable[[versions.Rollback], Mapping[str, Sequence[str]]] | None = None,
        tell: Callable[[versions.Move], object] | None = None,
    ) -> versions.Rollback:
        """Make the champion's parent the champion, and record on the version that is left when and why.

        A second rollback goes one version further back, see `parent_of`; `previous` then stands where the next one
        would lead, or nowhere. `reverted` gives the documents to quarantine, ids by the night that learned them, and
        `tell` is called with the rollback when it is made. The same call completes a rollback that was killed before
        `tell` returned, and so does whoever opens the registry next. To go forward, promote.

        Raises:
            ConfigError: The reason is blank.
            LineageError: There is no champion, or nothing to go back to.
        """
        if not reason.strip():
            raise ConfigError("rollback: got no reason. Say why in a sentence: it is kept with the version.")
        name, work_dir = self.name(role), self._store.work_dir
        with lineage_errors(f"roll back {name!r}", self._store.uri), self._store.lock:
            move = self._interrupted()
            if move is None or move.name != name or move.promoted:
                self.finish_move()
                move = self._rollback(role, reason.strip(), reverted)
                versions.write_move(move, work_dir)
            versions.apply_move(self._store.client, move, work_dir)
            if tell is not None:
                tell(move)
            versions.write_move(None, work_dir)
        assert move.left is not None
        return versions.Rollback(move.left, move.to)

    def _rollback(
        self, role: Role, reason: str, reverted: Callable[[versions.Rollback], Mapping[str, Sequence[str]]] | None
    ) -> versions.Move:
        """Return the move of a new rollback; LineageError if it leads nowhere."""
        name, history = self.name(role), {record.version: record for record in self.history(role)}
        champion, target = self._in_use(role, history)
        if champion is None or target is None:
            lacks = "no champion" if champion is None else f"no champion before version {champion}"
            raise LineageError(
                f"registry: {name!r} has {lacks}, so there is nothing to roll back to. List the versions with "
                f"`preceptor versions --role {role}`, then put one in use with `preceptor promote {role} NUMBER`."
            )
        nights = {} if reverted is None else reverted(versions.Rollback(champion, target))
        return versions.Move(
            name=name,
            left=champion,
            to=target,
            previous=versions.parent_of(history, target, None),
            tags={versions.ROLLED_BACK_TAG: _now(), versions.REASON_TAG: reason},
            quarantined={night: tuple(ids) for night, ids in nights.items()},
            reason=reason,
        )

    def erase(self, role: Role, erased: Collection[int], reason: str, clean: int | None) -> None:
        """Take versions out of use for good: they are never fetched, promoted or rolled back to again.

        Where one of them is the champion, `clean` takes its place, None is no version. Their records stay, and their
        files until `delete_files`. Repeating the call completes one that was killed.
        """
        name, client = self.name(role), self._store.client
        with lineage_errors(f"erase versions of {name!r}", self._store.uri), self._store.lock:
            self.finish_move()
            for version in map(str, erased):
                if versions.ERASED_TAG not in client.get_model_version(name, version).tags:
                    client.set_model_version_tag(name, version, versions.ERASED_BECAUSE_TAG, reason)
                    client.set_model_version_tag(name, version, versions.ERASED_TAG, _now())
            aliases, history = self.aliases(role), {record.version: record for record in self.history(role)}
            champion = clean if aliases.get(versions.CHAMPION) in erased else aliases.get(versions.CHAMPION)
            back = None if champion is None else versions.parent_of(history, champion, None)
            places = {versions.CHAMPION: champion, versions.PREVIOUS: back}
            for alias, number in aliases.items():
                if number in erased or (alias == versions.PREVIOUS and number == champion):
                    if (to := places.get(alias)) is None:
                        client.delete_registered_model_alias(name, alias)
                    else:
                        client.set_registered_model_alias(name, alias, str(to))

    def delete_files(self, role: Role, erased: Collection[int]) -> None:
        """Delete the files of erased versions from the store; repeating it is harmless."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        name, uri = self.name(role), self._store.uri
        with lineage_errors(f"delete the files of erased versions of {name!r}", uri):
            for number in erased:
                assert versions.ERASED_TAG in self.tags(role, number)
                place = self._store.client.get_model_version(name, str(number)).source
                files: Any = get_artifact_repository(place, tracking_uri=uri)
                files.delete_artifacts()

    def finish_move(self) -> None:
        """Complete the promotion or rollback that a killed command left half done."""
        work_dir = self._store.work_dir
        if versions.read_move(work_dir) is None:
            return
        with lineage_errors("complete the last promotion or rollback", self._store.uri), self._store.lock:
            if (move := self._interrupted()) is not None:  # no other process has completed it
                versions.apply_move(self._store.client, move, work_dir)
            versions.write_move(None, work_dir)

    def _interrupted(self) -> versions.Move | None:
        """Return the move in progress, unless the champion was moved since, by another work directory."""
        move = versions.read_move(self._store.work_dir)
        is_open = move is not None and self._aliases(move.name).get(versions.CHAMPION) in (move.left, move.to)
        return move if is_open else None

    def champion(self, role: Role) -> int | None:
        """Return the version in use; None when there never was one, ConfigError when there was."""
        name, work_dir = self.name(role), self._store.work_dir
        number = self.aliases(role).get(versions.CHAMPION)
        if number is not None:
            versions.note_champion(name, number, work_dir)
        elif (known := versions.champions(work_dir).get(name)) is not None and known not in self._erased(role):
            raise versions.lost_champion(work_dir, name, known)
        return number

    def _erased(self, role: Role) -> set[int]:
        return {record.version for record in self.history(role) if record.erased}

    def in_use(self, role: Role) -> tuple[int | None, int | None]:
        """Return the champion, and the version that a rollback of it leads to; None where there is none."""
        return self._in_use(role, {record.version: record for record in self.history(role)})

    def _in_use(self, role: Role, history: Mapping[int, versions.VersionRecord]) -> tuple[int | None, int | None]:
        aliases = self.aliases(role)
        champion = aliases.get(versions.CHAMPION)
        if champion is None:
            return None, None
        return champion, versions.parent_of(history, champion, aliases.get(versions.PREVIOUS))

    def history(self, role: Role) -> list[versions.VersionRecord]:
        """Return all versions, newest first; none for a model that was never registered."""
        name, aliases, records = self.name(role), self.aliases(role), []
        with lineage_errors(f"list the versions of {name!r}", self._store.uri):
            for found in self._store.client.search_model_versions(f"name = '{name}'"):  # 10,000 at most
                number = int(found.version)
                own = [alias for alias, version in aliases.items() if version == number]
                records.append(versions.version_record(number, own, found.creation_timestamp, found.tags))
        return sorted(records, key=lambda record: -record.version)

    def registered(self, role: Role) -> list[versions.Registered]:
        """Return the adapters of all versions whose run is known."""
        name, client, finished, found = self.name(role), self._store.client, dict[str, bool](), []
        with lineage_errors(f"list the versions of {name!r}", self._store.uri):
            for each in client.search_model_versions(f"name = '{name}'"):
                run_id, digest = each.tags.get(versions.RUN_TAG), each.tags.get(versions.ADAPTER_TAG)
                if run_id is not None and digest is not None:
                    if run_id not in finished:
                        finished[run_id] = client.get_run(run_id).info.status == "FINISHED"
                    found.append(versions.Registered(int(each.version), digest[:20], run_id, finished[run_id]))
        return found

    def state_name(self, version: int) -> str:
        """Return what a work directory calls its copy of a teacher's version."""
        return f"version-{version}-of-{self.name('teacher')}"

    def tags(self, role: Role, version: int) -> dict[str, str]:
        """Return all tags of a version."""
        name = self.name(role)
        with lineage_errors(f"read version {version} of {name!r}", self._store.uri):
            return dict(self._store.client.get_model_version(name, str(version)).tags)

    def model_id(self, role: Role, version: int) -> str | None:
        """Return MLflow's id of a version's model; None for one that was registered without."""
        return self.tags(role, version).get(_MODEL)

    def recorded_model(self, role: Role, version: int) -> str | None:
        """Return the base model that the version's run recorded; None when there is no record of it."""
        run_id = self.tags(role, version).get(versions.RUN_TAG)
        if run_id is None:
            return None
        with lineage_errors(f"read the run {run_id!r}", self._store.uri):
            params: Mapping[str, str] = self._store.client.get_run(run_id).data.params
        return params.get(f"{role}.model")

    def aliases(self, role: Role) -> dict[str, int]:
        """Return the version that each alias stands on; empty for a model that was never registered."""
        return self._aliases(self.name(role))

    def _aliases(self, name: str) -> dict[str, int]:
        from mlflow.exceptions import MlflowException

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
        known: dict[Any, int] = {record.version: record.version for record in self.history(role)} | self.aliases(role)
        if version not in known:
            what = f"version {version}" if isinstance(version, int) else f"version with the alias {version!r}"
            newest = f"; its newest is version {max(known.values())}" if known else ""
            raise ConfigError(
                f"registry: {self.name(role)!r} has no {what}{newest}. List the versions with `preceptor versions "
                f"--role {role}`; give one the alias `champion` with `preceptor promote {role} NUMBER`."
            )
        return known[version]

    def fetch(self, role: Role, version: int | str, place: Path, *, erased: bool = False) -> Path:
        """Return `place` with the files of a version, downloaded unless it exists: whole or absent, even when killed.

        A copy that was changed or damaged since is downloaded again, with a line on standard error. An erased version
        is given only for the proof of its erasure (`erased`).

        Raises:
            ConfigError: There is no such alias.
            LineageError: There is no such version, or its files cannot be read or are not those that were registered.
        """
        from mlflow.artifacts import download_artifacts

        number = version if isinstance(version, int) else self.number(role, version)
        name, uri, tags = self.name(role), self._store.uri, self.tags(role, number)
        if not erased:
            versions.refuse_erased(name, number, tags)
        if place.is_dir():
            try:
                _check_files(place, tags, str(place))
                return place
            except LineageError:
                sys.stderr.write(
                    f"{place}, a copy of version {number} of {name!r}, was changed or damaged: copied again\n"
                )
                shutil.rmtree(place)
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=place.parent) as scratch:
            with lineage_errors(f"download version {number} of {name!r}", uri):
                source = self._store.client.get_model_version_download_uri(name, str(number))
                into = Path(scratch, "files")
                into.mkdir()
                files = Path(download_artifacts(artifact_uri=source, dst_path=str(into), tracking_uri=uri))
            _check_files(files, tags, f"version {number} of {name!r}")
            os.replace(files, place)
        return place

    def _create(
        self,
        name: str,
        marks: Mapping[str, str],
        directory: Path,
        tags: Mapping[str, str],
        run_id: str,
        metrics: Mapping[str, float],
        title: str,
        description: str,
    ) -> Any:
        """Return a new version with the files; a LoggedModel that a killed run left unfinished is finished."""
        from mlflow.entities import LoggedModelOutput, Metric
        from mlflow.exceptions import MlflowException

        client, run = self._store.client, self._store.client.get_run(run_id)
        experiment, outputs = run.info.experiment_id, run.outputs.model_outputs if run.outputs else []
        found = client.search_logged_models([experiment], filter_string=tag_filter(marks), max_results=1)
        adapter: dict[str, Any] = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
        base, rank = adapter.get("base_model_name_or_path") or "", str(adapter.get("r"))
        params = {"adapter_sha256": marks[versions.ADAPTER_TAG], "base_model": base, "rank": rank}
        new: dict[str, Any] = {"tags": dict(marks), "params": params}
        model = found[0] if found else client.create_logged_model(experiment, title, run_id, **new)
        client.log_model_artifacts(model.model_id, str(directory))
        with tempfile.TemporaryDirectory() as scratch:
            client.log_model_artifacts(model.model_id, str(as_pyfunc(Path(scratch), base, run_id, model.model_id)))
        at = model.creation_timestamp  # the same when this is repeated, so that no point is logged twice
        if metrics:
            client.log_batch(run_id, metrics=[Metric(k, v, at, 0, model_id=model.model_id) for k, v in metrics.items()])
        if model.model_id not in {output.model_id for output in outputs}:
            client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
        client.finalize_logged_model(model.model_id, "READY")
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        # The files' own place as source: a `models:/` source is looked up in MLflow's global store instead of this one.
        more: dict[str, Any] = {"tags": {**tags, _MODEL: model.model_id}, "model_id": model.model_id}
        text = versions.described(f"{description}\n\n{how_to_open(name, base)}".strip())
        return client.create_model_version(name, model.artifact_location, run_id, description=text, **more)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _check_files(directory: Path, tags: Mapping[str, str], what: str) -> None:
    """Refuse files whose adapter or memory differs from the registered one, whatever digests lie beside them.

    Raises:
        LineageError: They were changed or damaged.
    """
    from student.memory import MEMORY_FILE, ExternalMemory

    try:
        found = {versions.ADAPTER_TAG: _adapter_digest(directory)}
        if (directory / MEMORY_FILE).is_file():
            found[versions.MEMORY_TAG] = ExternalMemory.load(directory / MEMORY_FILE).digest
        found[versions.FILES_TAG] = digest_files(directory, _FILES)
    except Exception as error:  # parsers of damaged files raise whatever they like
        problem = f"the files of {what} are damaged: {type(error).__name__}: {error}"
        raise LineageError(f"registry: {problem}. Restore them, or use another version.") from error
    for tag, digest in found.items():
        if digest != tags.get(tag, digest):
            part = {versions.ADAPTER_TAG: "adapter", versions.MEMORY_TAG: "memory"}.get(tag, "rest")
            raise LineageError(
                f"registry: the {part} of {what} has the digest {digest[:12]!r}, and {tags[tag][:12]!r} was "
                "registered. The files were changed or damaged; restore them, or use another version."
            )


def _adapter_digest(directory: Path) -> str:
    """Return the digest that a teacher was saved with, its files checked, or that of a student's adapter."""
    from student.adapters import load_adapter

    policy = directory / "policy.json"
    if not policy.is_file():
        return load_adapter(directory).digest
    record: dict[str, Any] = json.loads(policy.read_text(encoding="utf-8"))
    if digest_files(directory, ("adapter_model.safetensors", "optimizer.pt")) != record["files"]:
        raise ValueError(f"the digest of the files is not the recorded {record['files'][:12]!r}")
    return str(record["digest"])
