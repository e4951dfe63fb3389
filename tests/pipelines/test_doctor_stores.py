"""The work directory and the stores in it: real files, locks, processes and servers, some of them broken."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.config import TrackingConfig
from pipelines.doctor.checks import Check
from pipelines.doctor.children import Outcome
from pipelines.doctor.stores import (
    StoreProblem,
    check_sqlite,
    mlflow_check,
    mlflow_probe,
    prefect_checks,
)
from pipelines.doctor.work_directory import (
    file_system_check,
    file_system_of,
    place_checks,
    run_checks,
)
from pipelines.embedded import exclusive, left_servers
from pipelines.lineage_store import shown
from tests.pipelines.doctor_parts import PACKAGED, named, probed


@pytest.fixture(autouse=True)
def _no_settings_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_HOME", raising=False)


def mlflow_found(work_dir: Path, tracking: TrackingConfig | None = None) -> Check:
    tracking = tracking or TrackingConfig()
    probe = mlflow_probe(tracking, work_dir)
    outcome = None if probe is None else probed(work_dir, probe)
    [check] = mlflow_check(tracking, work_dir, outcome, PACKAGED)
    return check


def test_a_place_to_work_in_is_left_as_it_was(tmp_path: Path) -> None:
    checks = list(place_checks(tmp_path / "new" / "work"))
    assert [check.status for check in checks] == ["ok", "ok", "ok"]
    assert "the first run makes the directory" in named(checks, "writable").found
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="a directory that not even root can write to is Linux's /proc")
def test_a_directory_that_cannot_be_written_to() -> None:
    check = named(place_checks(Path("/proc/work")), "writable")
    assert (check.status, "--work-dir" in check.found) == ("broken", True)


def test_a_work_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "work").write_text("")
    [check] = place_checks(tmp_path / "work")
    assert (check.status, "is a file" in check.found) == ("broken", True)


def test_the_innermost_mount_decides_and_remote_ones_are_warned_of() -> None:
    mounts = [("/", "ext4"), ("/data", "nfs4"), ("/data/local", "xfs"), ("/data", "cifs")]
    kinds = {place: file_system_of(Path(place), mounts) for place in ("/home", "/data", "/data/x", "/data/local/y")}
    assert kinds == {"/home": "ext4", "/data": "cifs", "/data/x": "cifs", "/data/local/y": "xfs"}
    assert file_system_of(Path("/database"), mounts) == "ext4"
    assert {kind: file_system_check(kind).status for kind in kinds.values()} == {
        "ext4": "ok",
        "cifs": "warning",
        "xfs": "ok",
    }


def test_a_lock_that_is_held_and_one_that_is_free(tmp_path: Path) -> None:
    assert named(run_checks(tmp_path / "none"), "lock").found == "free; no run yet"
    with exclusive(tmp_path):
        assert "held by a run" in named(run_checks(tmp_path), "lock").found
    assert named(run_checks(tmp_path), "lock").found == "free"


def orphan(*arguments: str) -> psutil.Process:
    """Return a process whose parent has ended, as a killed run leaves its server."""
    line = '"$@" >/dev/null 2>&1 & echo $!'
    started = subprocess.run(["sh", "-c", line, "sh", *arguments], capture_output=True, text=True, check=True)
    return psutil.Process(int(started.stdout))


def test_servers_of_killed_runs_are_found_with_the_command_that_ends_them(tmp_path: Path) -> None:
    with exclusive(tmp_path):
        pass
    code = "import time; time.sleep(60)"
    server = orphan(sys.executable, "-c", code, "prefect.server.api.server")
    other = orphan(sys.executable, "-c", code)
    own = subprocess.Popen([sys.executable, "-c", code, "prefect.server.api.server"])  # which flows here share
    try:
        entries = [{"pid": p.pid, "created": psutil.Process(p.pid).create_time()} for p in (server, other, own)]
        entries.append({"pid": server.pid, "created": 1.0})  # the number of a process that ended long ago
        (tmp_path / "prefect-server.json").write_text(json.dumps(entries))
        check = named(run_checks(tmp_path), "left servers")
        assert (check.status, check.fix) == ("warning", f"kill {server.pid}")
        with exclusive(tmp_path):
            assert [c.name for c in run_checks(tmp_path)] == ["lock"]  # a run under way may have its server
    finally:
        for process in (server, other, own):
            process.kill()
            process.wait()
    assert left_servers(tmp_path) == []


def test_a_store_that_fits_and_one_that_is_yet_to_be_made(work_dir: Path, tmp_path: Path) -> None:
    before = (work_dir / "mlflow.db").read_bytes()
    check = mlflow_found(work_dir)
    assert check.status == "ok", check.found
    assert "fits" in check.found
    assert (work_dir / "mlflow.db").read_bytes() == before
    assert "is made by the first run" in mlflow_found(tmp_path / "none").found
    assert not (tmp_path / "none").exists()


def change_revision(work_dir: Path, revision: str) -> None:
    with sqlite3.connect(work_dir / "mlflow.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    connection.close()


def test_a_store_of_an_older_mlflow_is_not_migrated_but_told_of(work_dir: Path) -> None:
    change_revision(work_dir, "451aebb31d03")  # MLflow's first
    before = (work_dir / "mlflow.db").read_bytes()
    check = mlflow_found(work_dir)
    assert check.status == "broken"
    assert "found version 451aebb31d03" in check.found
    assert check.fix.startswith("python -m mlflow db upgrade 'sqlite:///")
    assert (work_dir / "mlflow.db").read_bytes() == before


def test_a_store_of_a_newer_mlflow_needs_a_newer_mlflow(work_dir: Path) -> None:
    change_revision(work_dir, "ffffffffffff")
    check = mlflow_found(work_dir)
    assert (check.status, check.fix) == ("broken", "python -m pip install --upgrade mlflow")


@pytest.mark.parametrize("damage", ["text", "cut", "page"])
def test_a_damaged_store_is_set_aside_not_removed(work_dir: Path, damage: str) -> None:
    file = work_dir / "mlflow.db"
    content = bytearray(file.read_bytes())
    if damage == "text":
        content = bytearray(b"this is no database, but it is long enough to look like one" * 40)
    elif damage == "cut":
        content = content[: len(content) // 2]
    else:
        content[8192:12288] = b"\xff" * 4096
    file.write_bytes(bytes(content))
    check = mlflow_found(work_dir)
    assert check.status == "broken", check.found
    assert "damaged" in check.found
    subprocess.run(check.fix, shell=True, check=True)
    assert "is made by the first run" in mlflow_found(work_dir).found


def test_a_store_that_is_in_use_is_not_called_damaged(work_dir: Path) -> None:
    with sqlite3.connect(work_dir / "mlflow.db") as connection:
        connection.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreProblem) as caught:
            check_sqlite(work_dir / "mlflow.db")
    connection.close()
    assert not caught.value.damaged
    assert "locked" in str(caught.value)


def test_an_empty_file_is_filled_by_the_first_run(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    check = mlflow_found(tmp_path)
    assert (check.status, (tmp_path / "mlflow.db").stat().st_size) == ("ok", 0)


def test_prefects_database_is_looked_at(tmp_path: Path, empty_store: Path) -> None:
    [check] = prefect_checks(None, tmp_path)
    assert check.status == "ok"
    (tmp_path / "prefect").mkdir()
    shutil.copy(empty_store, tmp_path / "prefect" / "prefect.db")
    [check] = prefect_checks(None, tmp_path)
    assert (check.status, "is whole" in check.found) == ("ok", True)
    (tmp_path / "prefect" / "prefect.db").write_bytes(b"no database" * 100)
    [check] = prefect_checks(None, tmp_path)
    assert check.status == "broken"


def test_prefects_configured_server(tmp_path: Path) -> None:
    def found(error: str) -> Check:
        data = {"server_error": "", "url": "http://u:secret@host:4200/api", "health_error": error}
        [check] = prefect_checks(Outcome(data=data), tmp_path)
        return check

    assert found("").status == "ok"
    away = found("ConnectError: refused")
    assert (away.status, away.fix) == ("broken", "unset PREFECT_API_URL")
    assert "secret" not in away.found


@pytest.fixture
def server() -> Iterator[Callable[[int], str]]:
    """Return a function that starts a server which answers /health with a status, and gives its address."""
    with serving() as start:
        yield start


@contextmanager
def serving() -> Iterator[Callable[[int], str]]:
    servers: list[HTTPServer] = []

    def start(status: int) -> str:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status if self.path == "/health" else 404)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        servers.append(HTTPServer(("127.0.0.1", 0), Answer))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"127.0.0.1:{servers[-1].server_port}"

    try:
        yield start
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


@pytest.mark.parametrize(("answer", "status"), [(200, "ok"), (401, "warning"), (500, "broken")])
def test_a_tracking_server_is_asked_for_its_health(
    server: Callable[[int], str], tmp_path: Path, answer: int, status: str
) -> None:
    check = mlflow_found(tmp_path, TrackingConfig(uri=f"http://user:secret@{server(answer)}/"))
    assert check.status == status, check.found
    assert "secret" not in check.found


def test_a_tracking_server_that_is_not_there(tmp_path: Path) -> None:
    with serving() as start:
        address = start(200)
    check = mlflow_found(tmp_path, TrackingConfig(uri=f"http://{address}"))
    assert (check.status, "does not answer" in check.found) == ("broken", True)


def test_a_database_that_cannot_be_reached_keeps_its_password(tmp_path: Path) -> None:
    tracking = TrackingConfig(uri="postgresql://user:secret@127.0.0.1:9/lineage")
    probe = mlflow_probe(tracking, tmp_path)
    assert probe is not None
    assert "secret" not in " ".join(probe.arguments)  # arguments are in the list of processes
    check = mlflow_found(tmp_path, tracking)
    assert check.status == "broken"
    assert "secret" not in check.found + check.fix
    other = mlflow_found(tmp_path, TrackingConfig(uri="databricks"))
    assert other.status == "warning"


@given(st.text(alphabet=st.characters(exclude_characters="@/", codec="ascii"), min_size=1, max_size=20))
def test_what_stands_before_the_host_is_never_shown(secret: str) -> None:
    assert shown(f"mysql://{secret}@host/lineage") == "mysql://***@host/lineage"
