"""One finished run of the real command, which several tests look at."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from pipelines.process import prepare_process
from tests.flows.settings import CONFIGS, TINY, command, run_command


@pytest.fixture(scope="session", autouse=True)
def _quiet_libraries() -> None:
    prepare_process()


class FinishedRun(NamedTuple):
    work_dir: Path
    result: Path
    home: Path
    output: str


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    place = tmp_path_factory.mktemp("finished run")
    work_dir, result, home = place / "work", place / "out" / "result.json", place / "home"
    code, output = run_command(command(CONFIGS / "demo.yaml", work_dir, TINY, result), home)
    assert code == 0, output[-4000:]
    return FinishedRun(work_dir, result, home, output)
