"""A real SQLite store for lineage, without a server, migrated once and copied for each test; and a Prefect server."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.lineage.run import Lineage
from pipelines.process import prepare_process
from pipelines.settings import Settings, StudentModel
from student.adapters import save_adapter
from tests.pipelines.factories import make_adapter


class RunSettings(Settings):
    """Of a run without a flow."""

    name: str = "night"
    seed: int = 3
    loop: dict[str, int] = {"rounds": 2}  # noqa: RUF012 (pydantic copies it)
    student: StudentModel | None = None


def open_lineage(work_dir: Path, key: str = "abc", **changes: Any) -> Lineage:
    settings = RunSettings.model_validate(changes)
    return Lineage(settings, work_dir, kind="train-teacher", run_name="night", key=key, flow_run="a-flow-run")


def registered_versions(lineage: Lineage, role: str = "teacher") -> list[Any]:
    return list(lineage.store.client.search_model_versions(f"name = 'preceptor-{role}'"))


@pytest.fixture(scope="session", autouse=True)
def _quiet_libraries() -> None:
    prepare_process()


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def work_dir(tmp_path: Path, empty_store: Path) -> Path:
    work = tmp_path / "work dir"  # a space, because artifact places are URIs
    work.mkdir()
    shutil.copy(empty_store, work / "mlflow.db")
    return work


@pytest.fixture
def open_run(work_dir: Path) -> Callable[..., Lineage]:
    return partial(open_lineage, work_dir)


@pytest.fixture
def preceptor(work_dir: Path) -> Callable[..., str]:
    """Run a command on the work directory and return what it prints."""

    def run(*arguments: str, columns: str = "140") -> str:
        done = CliRunner().invoke(app, [*arguments, "--work-dir", str(work_dir)], env={"COLUMNS": columns})
        assert done.exit_code == 0, done.output
        return done.output

    return run


@pytest.fixture
def policy_dir(tmp_path: Path) -> Path:
    return save_adapter(make_adapter(0.5), tmp_path / "policy")


@pytest.fixture
def global_store(work_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # mlflow sets it below; removed in the end
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{work_dir / 'mlflow.db'}")
    yield
    mlflow.set_tracking_uri(before)


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    storage = tmp_path_factory.mktemp("storage")
    with prefect_test_harness(server_startup_timeout=600), temporary_settings({PREFECT_LOCAL_STORAGE_PATH: storage}):
        yield


@pytest.fixture
def own_prefect(tmp_path: Path, prefect_server: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_HOME", "PREFECT_LOCAL_STORAGE_PATH", "PREFECT_MEMO_STORE_PATH"):
        monkeypatch.setenv(name, str(tmp_path / "prefect"))  # else the command would set them for all later tests
