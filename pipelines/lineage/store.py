"""The MLflow store of a work directory: opened, created once, with errors that name the next step."""

from __future__ import annotations

import getpass
import json
import logging
import os
import re
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evaluation.common.errors import ConfigError, LineageError
from evaluation.common.storage import sqlite_uri
from pipelines.lineage.versions import champions, lost_champion
from pipelines.lineage.views import VIEW_TAG, runs_link, view_of
from pipelines.settings import Settings, TrackingConfig

if TYPE_CHECKING:
    from filelock import FileLock

_SOURCE_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("evaluation", "teacher", "student", "pipelines")
_LOCK_SECONDS = 300.0
"""Longest wait for another process that creates the store; creating one took 2 to 7 s."""
_OTHER_ROOTS = (
    "SELECT DISTINCT artifact_location FROM experiments WHERE artifact_location LIKE 'file:%/artifacts' "
    "AND artifact_location <> ?"
)
_MOVE = """UPDATE "{table}" SET "{column}" = CASE "{column}" WHEN :old THEN :new
ELSE replace("{column}", :old || '/', :new || '/') END WHERE "{column}" = :old OR instr("{column}", :old || '/')"""
_BATCH = 100
"""Parameters, and tags, that MLflow takes in one call."""


class Store(NamedTuple):
    """An open tracking store."""

    client: Any
    """`MlflowClient`; every call names its run, because MLflow's active run is global and mixes up threads."""
    uri: str
    artifacts: str | None
    """URI of the artifacts of new experiments; None leaves their place to a server."""
    lock: FileLock
    """Held around each look-up that decides what is created or moved."""
    work_dir: Path


def _located(tracking: TrackingConfig, work_dir: Path) -> tuple[str, Path | None]:
    """Return the store's URI and, where it is an SQLite file (the default), that file."""
    uri = tracking.location or sqlite_uri(work_dir / "mlflow.db")
    if not uri.startswith("sqlite"):
        return uri, None
    from sqlalchemy.engine import make_url

    name = make_url(uri).database
    return uri, Path(name).resolve() if name and name != ":memory:" else None


def require_store(tracking: TrackingConfig, work_dir: Path) -> None:
    """Refuse a work directory without a store, which opening would create empty in the wrong place.

    Raises:
        ConfigError: It holds no runs.
    """
    if not has_store(tracking, work_dir) and tracking.location is None:
        raise ConfigError(
            f"work directory {str(work_dir)!r} holds no runs. Give the work directory of a run with --work-dir, or a "
            "configuration with tracking.uri with --config."
        )


def has_store(tracking: TrackingConfig, work_dir: Path) -> bool:
    """Return whether there is a store to open, taken for granted if no SQLite file; ConfigError for a lost champion."""
    _, database = _located(tracking, work_dir)
    if database is not None and not _has_content(database):
        for name, version in champions(work_dir).items():
            raise lost_champion(work_dir, name, version)
    return database is None or database.is_file()


def open_store(tracking: TrackingConfig, work_dir: Path) -> Store:
    """Return the store, created if absent.

    MLflow migrates a fresh SQLite file without a lock, and two processes doing so leave it broken: hence the lock.
    Artifacts lie beside an SQLite file (see `follow_move`), in `work_dir` for other databases, and where the server
    says for `http(s)`.

    Raises:
        ConfigError: See `has_store`.
        LineageError: The store cannot be reached, created or used with this version of MLflow.
    """
    from mlflow import MlflowClient

    has_store(tracking, work_dir)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # each error is raised as well
    uri, database = _located(tracking, work_dir)
    place = database or work_dir.resolve() / "mlflow"
    lock = _lock(place)
    with lineage_errors("open the tracking store", uri):
        if database is not None and not _has_content(database):
            database.parent.mkdir(parents=True, exist_ok=True)
            # Tables are created whole or not at all, since a killed migration cannot be repeated.
            with lock, tempfile.TemporaryDirectory(prefix=f".{database.name}-", dir=database.parent) as scratch:
                if not _has_content(database):
                    MlflowClient(sqlite_uri(Path(scratch, "fresh.db"))).search_experiments(max_results=1)
                    os.replace(f"{scratch}/fresh.db", database)
        if database is not None:
            follow_move(database)
        remote = uri.startswith(("http://", "https://", "databricks"))
        artifacts = None if remote else place.with_name("artifacts").as_uri()
        return Store(MlflowClient(uri), uri, artifacts, lock, work_dir)


def _lock(place: Path) -> FileLock:
    from filelock import FileLock

    return FileLock(place.with_name(f"{place.name}.lock"), timeout=_LOCK_SECONDS)


def _has_content(database: Path) -> bool:
    return database.is_file() and database.stat().st_size > 0


def follow_move(database: Path) -> None:
    """Have an SQLite store name the artifacts beside it, wherever its directory was moved or copied to.

    MLflow records absolute URIs: a moved directory would be dead, and a copy would read and write the original's files.
    All columns of all tables are searched, and changed in one transaction; a store at its place is only read.
    """
    if not _has_content(database):
        return
    root = database.resolve().with_name("artifacts").as_uri()
    with (
        lineage_errors("find the moved artifacts", str(database)),
        closing(sqlite3.connect(database, timeout=_LOCK_SECONDS, isolation_level=None)) as db,
    ):
        if not db.execute(_OTHER_ROOTS, (root,)).fetchall():
            return
        with _lock(database):
            db.execute("BEGIN IMMEDIATE")  # closing without a commit rolls back
            tables = db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            for (old,) in db.execute(_OTHER_ROOTS, (root,)).fetchall():
                for (table,) in tables:
                    for _, column, kind, *_ in db.execute(f'PRAGMA table_info("{table}")').fetchall():
                        if "CHAR" in kind or "TEXT" in kind:
                            db.execute(_MOVE.format(table=table, column=column), {"old": old, "new": root})
            db.execute("COMMIT")


def experiment(store: Store, name: str, flow: str) -> str:
    """Return the id of an experiment, created if absent, with the prepared view of a flow; hold the store's lock."""
    found, view = store.client.get_experiment_by_name(name), view_of(flow)
    tags = {} if view is None else {VIEW_TAG: view}
    if found is None:
        return str(store.client.create_experiment(name, artifact_location=store.artifacts, tags=tags))
    if found.lifecycle_stage != "active":
        raise LineageError(
            f"lineage: experiment {name!r} (id {found.experiment_id}) is deleted. Restore it with `mlflow experiments "
            f"restore --experiment-id {found.experiment_id}`, or set tracking.experiment to another name."
        )
    if not tags.items() <= found.tags.items():
        store.client.set_experiment_tag(found.experiment_id, VIEW_TAG, view)
    return str(found.experiment_id)


def pages(tracking: TrackingConfig, work_dir: Path) -> dict[str, str]:
    """Return where MLflow shows the runs of each experiment that has any, by name."""
    store = open_store(tracking, work_dir)
    with lineage_errors("list the experiments", store.uri):
        return {
            each.name: runs_link(store.uri, each.experiment_id, prepared=VIEW_TAG in each.tags)
            for each in store.client.search_experiments(order_by=["creation_time ASC"])
            if store.client.search_runs([each.experiment_id], max_results=1)
        }


@contextmanager
def lineage_errors(action: str, uri: str) -> Iterator[None]:
    """Turn whatever MLflow, its database or its files raise into `LineageError`; no password in `uri` is shown.

    `action` follows "could not".
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        shown = re.sub(r"//[^@/]*@", "//***@", uri)
        raise LineageError(
            f"lineage: could not {action} in the store {shown!r}: {reason}. What was logged before is kept. Check that "
            "the store can be reached and has room, then repeat the command: it resumes from there."
        ) from error


def log_in_batches(client: Any, run_id: str, *, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
    """Log any number of parameters and tags; logging the same ones again changes nothing."""
    from mlflow.entities import Param, RunTag

    all_params = [Param(name, str(value)) for name, value in params.items()]
    all_tags = [RunTag(name, value) for name, value in tags.items()]
    for start in range(0, max(len(all_params), len(all_tags)), _BATCH):
        part = slice(start, start + _BATCH)
        client.log_batch(run_id, params=all_params[part], tags=all_tags[part])


def tag_filter(tags: Mapping[str, str]) -> str:
    """Return MLflow's search filter for all of the tags."""
    quotes = {name: '"' if "'" in value else "'" for name, value in tags.items()}
    return " and ".join(f"tags.`{name}` = {quotes[name]}{value}{quotes[name]}" for name, value in tags.items())


def flatten_params(content: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float]:
    """Return a configuration as MLflow parameters: dotted names, lists as JSON, None left out."""
    flat: dict[str, str | int | float] = {}
    for name, value in content.items():
        if isinstance(value, Mapping):
            flat |= flatten_params(value, f"{prefix}{name}.")
        elif value is not None:
            plain = isinstance(value, str | int | float) and not isinstance(value, bool)
            flat[f"{prefix}{name}"] = value if plain else json.dumps(value, ensure_ascii=False)
    return flat


def run_tags(settings: Settings, kind: str, flow_run: str) -> dict[str, str]:
    """Return the tags by which a run, of a kind such as `train-teacher`, is found and traced back.

    `flow_run` is Prefect's id.
    """
    from pipelines.execution import code_digest

    git = git_tags()
    return {
        "preceptor.kind": kind,
        "preceptor.seed": str(settings.seed),
        "preceptor.config_sha": settings.digest,
        "preceptor.code_sha": code_digest(),
        "preceptor.prefect_flow_run_id": flow_run,
        **git,
        **_standard_tags(kind, git["preceptor.git_sha"]),
    }


def _standard_tags(flow: str, commit: str) -> dict[str, str]:
    """Return the tags that MLflow's own pages show: who and what made a run, and the commit of the code if known."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        user = "unknown"
    tags = {"mlflow.user": user, "mlflow.source.name": f"preceptor {flow}", "mlflow.source.type": "LOCAL"}
    return tags if commit == "unknown" else {**tags, "mlflow.source.git.commit": commit}


def git_tags(root: Path = _SOURCE_ROOT) -> dict[str, str]:
    """Return the commit of the code in `root` and whether its packages have uncommitted changes.

    Both are `unknown` unless `root` is the top of a git checkout.
    """
    unknown = {"preceptor.git_sha": "unknown", "preceptor.git_dirty": "unknown"}
    # Hooks set GIT_DIR and the like, which would answer for another checkout; a status must not lock the index.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment["GIT_OPTIONAL_LOCKS"] = "0"

    def git(*arguments: str) -> list[str]:
        command = ["git", "-C", str(root), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, env=environment, check=True)
        return done.stdout.splitlines()

    try:
        top, commit = git("rev-parse", "--show-toplevel", "HEAD")
        changes = git("status", "--porcelain", "--", *(name for name in _PACKAGES if (root / name).exists()))
    except (OSError, subprocess.SubprocessError):  # no git, no checkout, or no commit yet
        return unknown
    known = {"preceptor.git_sha": commit, "preceptor.git_dirty": str(bool(changes)).lower()}
    return known if Path(top).resolve() == root.resolve() else unknown
