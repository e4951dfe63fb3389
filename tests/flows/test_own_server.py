"""The deployments on a Prefect server of one's own, by the commands of `docs/deployment.md`."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from pipelines.process import free_port
from tests.flows.settings import PATIENCE_SECONDS, ROOT, environment

pytestmark = [pytest.mark.flow, pytest.mark.slow, pytest.mark.timeout(1200)]
PREFECT = str(Path(sys.executable).with_name("prefect"))


class OwnServer:
    """A server with a work pool and a worker; commands run in a copy of the project's configuration."""

    def __init__(self, place: Path) -> None:
        self.place, self._port = place, free_port()
        self._started = [self._start("server", "start", "--port", str(self._port))]
        self._wait_until_healthy()
        self.run("work-pool", "create", "preceptor", "--type", "process")
        shutil.copy(ROOT / "prefect.yaml", place)
        shutil.copytree(ROOT / "configs", place / "configs")
        for package in ("teacher", "student", "pipelines", "evaluation"):
            (place / package).symlink_to(ROOT / package)
        self.run("--no-prompt", "deploy", "--all")
        self._started.append(self._start("worker", "start", "--pool", "preceptor"))

    def run(self, *arguments: str) -> str:
        """Return what a command of Prefect prints."""
        done = subprocess.run(
            [PREFECT, *arguments], cwd=self.place, env=self.environment, capture_output=True, text=True, check=False,
            timeout=PATIENCE_SECONDS,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def stop(self) -> None:
        for process in reversed(self._started):
            process.terminate()
        for process in self._started:
            process.wait(timeout=60)

    @property
    def environment(self) -> dict[str, str]:
        url = f"http://127.0.0.1:{self._port}/api"
        told = {"PREFECT_API_URL": url, "PREFECT_HOME": str(self.place / "prefect"), "COLUMNS": "200"}
        return {**environment(self.place / "home"), **told}

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.place / f"{arguments[0]}.log").open("wb") as log:
            return subprocess.Popen([PREFECT, *arguments], cwd=self.place, env=self.environment, stdout=log, stderr=log)

    def _wait_until_healthy(self) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/api/health", timeout=5):
                    return
            except OSError:
                assert time.monotonic() < deadline, (self.place / "server.log").read_text()
                time.sleep(0.5)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnServer]:
    running = OwnServer(tmp_path_factory.mktemp("server"))
    yield running
    running.stop()


def test_a_worker_runs_the_deployed_night(server: OwnServer) -> None:
    """An empty inbox: the night opens its stores, finds nothing and is done."""
    running = server.run("deployment", "run", "adapt-student/nightly", "--watch")
    assert "Completed" in running
    assert (server.place / ".preceptor" / "mlflow.db").is_file()


def test_a_worker_says_why_it_cannot_compare_versions_that_are_not_there(server: OwnServer) -> None:
    asked = subprocess.run(
        [PREFECT, "deployment", "run", "check-regression/on-demand", "--watch"], cwd=server.place,
        env=server.environment, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert asked.returncode == 1
    assert "Failed" in asked.stdout
    assert "no version with the alias 'candidate'" in (server.place / "worker.log").read_text()


def test_automation_is_made_and_listed(server: OwnServer) -> None:
    text = (ROOT / "docs" / "automations" / "night.yaml").read_text(encoding="utf-8")
    make = ("automation", "create", "--from-file")
    (server.place / "as shipped.yaml").write_text(text, encoding="utf-8")
    refused = subprocess.run(
        [PREFECT, *make, "as shipped.yaml"], cwd=server.place, env=server.environment, capture_output=True, check=False
    )
    assert refused.returncode != 0
    assert "night held" not in server.run("automation", "ls")
    (server.place / "ours.yaml").write_text(text.replace("YOUR-BLOCK-ID", str(uuid4())), encoding="utf-8")
    server.run(*make, "ours.yaml")
    assert "night held or rejected" in server.run("automation", "ls")
