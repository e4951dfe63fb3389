"""The MLflow store of a work directory: opened, created once, with errors that name the next step."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evaluation.common.errors import ConfigError, LineageError
from pipelines.settings import TrackingConfig

if TYPE_CHECKING:
    from filelock import FileLock

_SOURCE_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("evaluation", "teacher", "student", "pipelines")
_LOCK_SECONDS = 300.0
"""Longest wait for another process that creates the store; creating one took 2 to 7 s."""
_BATCH = 100
"""Parameters, and tags, that MLflow takes in one call."""


class Store(NamedTuple):
    """An open tracking store."""

    client: Any
    """`MlflowClient`; every call names its run, because MLflow's active run is global and mixes up threads."""
    uri: str
    experiment_id: str
    """Empty in a store that is only read."""
    lock: FileLock
    """Held around each look-up that decides what is created or moved."""


def tracking_uri(tracking: TrackingConfig, work_dir: Path) -> str:
    """Return the URI that `mlflow ui --backend-store-uri` takes: the configured one, or a file in `work_dir`."""
    return tracking.uri or f"sqlite:///{work_dir.resolve() / 'mlflow.db'}"


def require_store(tracking: TrackingConfig, work_dir: Path) -> None:
    """Refuse a work directory without a store, which opening would create empty in the wrong place.

    Raises:
        ConfigError: It holds no runs.
    """
    database = sqlite_file(tracking_uri(tracking, work_dir))
    if tracking.uri is None and not (database and database.is_file()):
        raise ConfigError(
            f"work directory {str(work_dir)!r} holds no runs. Give the work directory of a run with --work-dir, or a "
            "configuration with tracking.uri with --config."
        )


def open_store(tracking: TrackingConfig, work_dir: Path) -> Store:
    """Return the store and its experiment, created if absent.

    MLflow migrates a fresh SQLite file without a lock, and two processes doing so leave it broken: hence the lock.
    Artifacts lie beside an SQLite file, in `work_dir` for other databases, and where the server says for `http(s)`.

    Raises:
        LineageError: The store cannot be reached, created or used with this version of MLflow.
    """
    from filelock import FileLock
    from mlflow import MlflowClient

    uri = tracking_uri(tracking, work_dir)
    with lineage_errors("open the tracking store", uri):
        database = sqlite_file(uri)
        home = database.parent if database else work_dir.resolve()
        home.mkdir(parents=True, exist_ok=True)
        lock = FileLock(home / f"{database.name if database else 'mlflow'}.lock", timeout=_LOCK_SECONDS)
        with lock:
            if database is not None and not database.exists():
                _create(database)
            client = MlflowClient(uri)
            remote = uri.startswith(("http://", "https://", "databricks"))
            experiment_id = _experiment(client, tracking.experiment, None if remote else home / "artifacts")
    return Store(client, uri, experiment_id, lock)


def _create(database: Path) -> None:
    """Create MLflow's tables in a new SQLite file, whole or not at all: a killed migration cannot be repeated."""
    from mlflow import MlflowClient

    with tempfile.TemporaryDirectory(prefix=f".{database.name}-", dir=database.parent) as scratch:
        fresh = Path(scratch, database.name)
        MlflowClient(f"sqlite:///{fresh}").search_experiments(max_results=1)
        os.replace(fresh, database)


def open_existing(tracking: TrackingConfig, work_dir: Path) -> Store | None:
    """Return a store for reading, or None when there is none yet; creates nothing, neither store nor experiment.

    Raises:
        LineageError: The store cannot be reached or used with this version of MLflow.
    """
    uri = tracking_uri(tracking, work_dir)
    database = sqlite_file(uri)
    if database is not None and not database.is_file():
        return None
    from filelock import FileLock
    from mlflow import MlflowClient

    with lineage_errors("open the tracking store", uri):
        return Store(MlflowClient(uri), uri, "", FileLock(work_dir / "mlflow.lock"))


def sqlite_file(uri: str) -> Path | None:
    """Return the absolute path of an SQLite URI's file; None for other stores and for databases in memory."""
    if not uri.startswith("sqlite"):
        return None
    from sqlalchemy.engine import make_url

    name = make_url(uri).database
    return Path(name).resolve() if name and name != ":memory:" else None


def _experiment(client: Any, name: str, artifacts: Path | None) -> str:
    """Return the id of an experiment, created if absent; `artifacts` None leaves their place to a server."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifacts.as_uri() if artifacts else None))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # created on another machine since
    if found.lifecycle_stage != "active":
        raise LineageError(
            f"lineage: experiment {name!r} (id {found.experiment_id}) is deleted. Restore it with `mlflow experiments "
            f"restore --experiment-id {found.experiment_id}`, or set tracking.experiment to another name."
        )
    return str(found.experiment_id)


def shown(uri: str, instead: str = "***@") -> str:
    """Return a URI with `instead` for the user and password in it."""
    return re.sub(r"//[^@/]*@", f"//{instead}", uri)


@contextmanager
def lineage_errors(action: str, uri: str, saved: Sequence[str] = ()) -> Iterator[None]:
    """Turn whatever MLflow, its database or its files raise into `LineageError`; no password in `uri` is shown.

    `action` follows "could not"; `saved` lists the parts of the run that the store already holds.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise LineageError(
            f"lineage: could not {action} in the store {shown(uri)!r}: {reason}. Saved already: {_listed(saved)}. "
            "Check that the store can be reached and has room, then repeat the command: it resumes from there."
        ) from error


def _listed(saved: Sequence[str]) -> str:
    """Return a short list: all of it, or both ends and the number."""
    if len(saved) <= 6:
        return ", ".join(saved) or "nothing of this run"
    return f"{', '.join(saved[:2])} … {', '.join(saved[-2:])} ({len(saved)} in all)"


def log_in_batches(client: Any, run_id: str, *, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
    """Log any number of parameters and tags; logging the same ones again changes nothing."""
    from mlflow.entities import Param, RunTag

    all_params = [Param(name, str(value)) for name, value in params.items()]
    all_tags = [RunTag(name, value) for name, value in tags.items()]
    for start in range(0, max(len(all_params), len(all_tags)), _BATCH):
        part = slice(start, start + _BATCH)
        client.log_batch(run_id, params=all_params[part], tags=all_tags[part])


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


def run_tags(
    *, kind: str, seed: int, config_digest: str, code_digest: str, flow_run_id: str | None = None, note: str = ""
) -> dict[str, str]:
    """Return the tags by which a run, of a kind such as `train-teacher`, is found and traced back; digests are SHA-256.

    `flow_run_id` is Prefect's, None outside a flow; `note` is Markdown for the run's page.
    """
    tags = {
        "preceptor.kind": kind,
        "preceptor.seed": str(seed),
        "preceptor.config_sha": config_digest,
        "preceptor.code_sha": code_digest,
        "preceptor.prefect_flow_run_id": flow_run_id or "",
        "mlflow.note.content": note,
    }
    return {name: value for name, value in tags.items() if value}


def git_tags(root: Path = _SOURCE_ROOT) -> dict[str, str]:
    """Return the commit of the code in `root` and whether its packages have uncommitted changes.

    Both are `unknown` unless `root` is the top of a git checkout.
    """
    top, commit = _git(root, "rev-parse", "--show-toplevel"), _git(root, "rev-parse", "HEAD")
    if top is None or commit is None or Path(top).resolve() != root.resolve():
        return {"preceptor.git_sha": "unknown", "preceptor.git_dirty": "unknown"}
    changes = _git(root, "status", "--porcelain", "--", *(name for name in _PACKAGES if (root / name).exists()))
    dirty = "unknown" if changes is None else str(bool(changes)).lower()
    return {"preceptor.git_sha": commit, "preceptor.git_dirty": dirty}


def _git(root: Path, *arguments: str) -> str | None:
    """Return git's output; None without git, without a checkout or on failure."""
    # Hooks set GIT_DIR and the like, which would answer for another checkout; a status must not lock the index.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment["GIT_OPTIONAL_LOCKS"] = "0"
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, env=environment)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
