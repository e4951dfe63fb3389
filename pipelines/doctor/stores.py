"""The stores of MLflow and Prefect, without changing them: databases are read, servers are asked for their health."""

from __future__ import annotations

import os
import shlex
import sqlite3
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from pipelines.config import TrackingConfig
from pipelines.doctor.checks import Check, Status, in_short, late
from pipelines.doctor.children import Outcome, Probe
from pipelines.doctor.probes import STORE_VARIABLE
from pipelines.doctor.remedies import Remedies
from pipelines.lineage_store import shown, sqlite_file, tracking_uri

AREA = "stores"
_PATIENCE_SECONDS = 3.0
_SQLITE_SECONDS = 10.0
"""Longest time for looking through a database file."""


class StoreProblem(Exception):
    """A database file that is there but cannot be used; the text says why."""

    def __init__(self, text: str, *, damaged: bool) -> None:
        """Keep whether the file itself is bad, or only cannot be read now."""
        super().__init__(text)
        self.damaged = damaged


def mlflow_file(tracking: TrackingConfig, work_dir: Path) -> Path | None:
    """Return the SQLite file that lineage goes to; None for other stores."""
    return sqlite_file(tracking_uri(tracking, work_dir))


def mlflow_probe(tracking: TrackingConfig, work_dir: Path) -> Probe | None:
    """Return the probe that compares the store's schema with MLflow; None for servers and for files yet to be made."""
    uri = tracking_uri(tracking, work_dir)
    file = mlflow_file(tracking, work_dir)
    if file is not None:
        try:
            if not file.exists() or not check_sqlite(file):
                return None
        except StoreProblem:
            return None
        return Probe("mlflow", (str(file),))
    if uri.startswith(("postgresql", "mysql", "mssql")):
        return Probe("mlflow", environment={STORE_VARIABLE: uri})
    return None


def mlflow_check(
    tracking: TrackingConfig, work_dir: Path, outcome: Outcome | None, remedies: Remedies
) -> Iterator[Check]:
    """Yield whether runs can be logged to the tracking store.

    Args:
        tracking: Where lineage goes.
        work_dir: Where it goes unless the configuration names a store.
        outcome: Of `mlflow_probe`.
        remedies: Writes the commands.
    """
    uri, name = tracking_uri(tracking, work_dir), "MLflow"
    if uri.startswith(("http://", "https://")):
        yield _server_check(uri, name, "/health")
        return
    file = mlflow_file(tracking, work_dir)
    if file is not None and not file.exists():
        yield Check(area=AREA, name=name, status="ok", found=f"{file} is made by the first run")
        return
    if outcome is None:
        yield (
            _file_check(file, name)
            if file
            else Check(
                area=AREA, name=name, status="warning", found=f"{shown(uri)}: stores of this kind are not looked into"
            )
        )
    else:
        yield _schema_check(uri, name, outcome, remedies)


def _schema_check(uri: str, name: str, outcome: Outcome, remedies: Remedies) -> Check:
    """Return how a database's schema fits the installed MLflow."""
    if outcome.late is not None:
        return Check(area=AREA, name=name, status="warning", found=f"{shown(uri)}: {late(outcome.late)}")
    if outcome.data is None:
        text = f"{shown(uri)} cannot be opened: {shown(outcome.error)}"
        return Check(area=AREA, name=name, status="broken", found=text)
    detail = outcome.data["detail"]
    if outcome.data["state"] == "older":
        fix = f"{remedies.python} -m mlflow db upgrade {shlex.quote(shown(uri))}"
        return Check(area=AREA, name=name, status="broken", found=f"{shown(uri)}: {detail}", fix=fix)
    if outcome.data["state"] == "newer":
        text = f"{shown(uri)}: schema {detail} is of a newer MLflow than the installed one"
        fix = f"{remedies.pip} install --upgrade mlflow"
        return Check(area=AREA, name=name, status="broken", found=text, fix=fix)
    empty = outcome.data["state"] == "empty"
    text = "empty; the first run makes its tables" if empty else f"opens, schema {detail} fits"
    return Check(area=AREA, name=name, status="ok", found=f"{shown(uri)} {text}")


def prefect_checks(outcome: Outcome | None, work_dir: Path) -> Iterator[Check]:
    """Yield the server that flows report to: the configured one, or the embedded one with its database.

    Args:
        outcome: Of the probe `prefect`; None where it was not run.
        work_dir: Where the embedded server's database is, unless PREFECT_HOME says otherwise.
    """
    url = None if outcome is None or outcome.data is None else outcome.data["url"]
    if outcome is not None and outcome.data is not None and url:
        error = outcome.data["health_error"]
        if error:
            text = f"{shown(url)} does not answer: {error}; start it, or go back to the embedded server"
            yield Check(area=AREA, name="Prefect", status="broken", found=text, fix="unset PREFECT_API_URL")
        else:
            yield Check(area=AREA, name="Prefect", status="ok", found=f"{shown(url)} answers")
        return
    file = prefect_home(work_dir) / "prefect.db"
    if file.exists():
        yield _file_check(file, "Prefect")
    else:
        text = f"embedded server; {file} is made by the first run"
        yield Check(area=AREA, name="Prefect", status="ok", found=text)


def prefect_home(work_dir: Path) -> Path:
    """Return where `prepare_process` has Prefect keep its database."""
    return Path(os.environ.get("PREFECT_HOME") or work_dir.resolve() / "prefect")


def _server_check(uri: str, name: str, path: str) -> Check:
    """Return whether a server says that it is well."""
    # Health is told to everybody, so the password stays here; urllib would take it for a part of the host's name.
    address = shown(uri, "").rstrip("/") + path
    try:
        with urllib.request.urlopen(address, timeout=_PATIENCE_SECONDS):
            return Check(area=AREA, name=name, status="ok", found=f"{shown(uri)} answers")
    except urllib.error.HTTPError as error:
        text = f"{address} answers {error.code} {error.reason}"
        # A server that wants a password is there; whether it takes ours only a run can tell.
        status: Status = "warning" if error.code in (401, 403) else "broken"
        return Check(area=AREA, name=name, status=status, found=text)
    except OSError as error:
        text = f"{shown(uri)} does not answer: {in_short(error)}; start it, or set tracking.uri to another store"
        return Check(area=AREA, name=name, status="broken", found=text)


def _file_check(file: Path, name: str) -> Check:
    """Return whether an SQLite file is whole."""
    try:
        filled = check_sqlite(file)
    except StoreProblem as problem:
        if not problem.damaged:
            return Check(area=AREA, name=name, status="warning", found=str(problem))
        text = f"{problem}; take it away, and the next run makes a new one without what is in this"
        fix = f"mv {shlex.quote(str(file))} {shlex.quote(str(file) + '.broken')}"
        return Check(area=AREA, name=name, status="broken", found=text, fix=fix)
    return Check(area=AREA, name=name, status="ok", found=f"{file} {'is whole' if filled else 'is empty'}")


def check_sqlite(file: Path) -> bool:
    """Return whether an SQLite file holds any tables.

    Raises:
        StoreProblem: It is no database, is damaged, or cannot be read.
    """
    deadline = time.monotonic() + _SQLITE_SECONDS
    try:
        connection = sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, timeout=_PATIENCE_SECONDS)
        try:
            filled = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] > 0
            # A large file is looked through for a while only: what was seen until then was whole.
            connection.set_progress_handler(lambda: int(time.monotonic() > deadline), 10_000)
            damage = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        finally:
            connection.close()
    except sqlite3.OperationalError as error:
        if "interrupted" in str(error):
            return True
        raise StoreProblem(f"{file} cannot be read now: {error}", damaged=False) from error
    except sqlite3.DatabaseError as error:
        raise StoreProblem(f"{file} is damaged: {error}", damaged=True) from error
    if damage != "ok":
        raise StoreProblem(f"{file} is damaged: {damage}", damaged=True)
    return bool(filled)
