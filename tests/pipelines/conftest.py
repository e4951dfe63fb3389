"""A real SQLite store for lineage, without a server, migrated once and copied for each test; and a Prefect server."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.lineage.run import Lineage
from pipelines.lineage.store import run_tags
from pipelines.process import prepare_process
from pipelines.settings import TrackingConfig
from student.adapters import save_adapter
from tests.pipelines.factories import make_adapter

PARAMS: dict[str, str | int | float] = {"loop.rounds": 2, "teacher.model": "micro-teacher"}


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
    def opened(key: str = "train-teacher/v1/abc", **changes: Any) -> Lineage:
        tags = run_tags(kind="train-teacher", seed=3, config_digest="c0ffee", code_digest="c0de", note="# Night")
        fields: dict[str, Any] = {"run_name": "night", "config_yaml": "seed: 3\n", "params": PARAMS, "tags": tags}
        return Lineage.open(TrackingConfig(), work_dir, run_key=key, **(fields | changes))

    return opened


@pytest.fixture
def policy_dir(tmp_path: Path) -> Path:
    return save_adapter(make_adapter(0.5), tmp_path / "policy")


@pytest.fixture
def global_store(work_dir: Path) -> Iterator[None]:
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{work_dir / 'mlflow.db'}")
    yield
    mlflow.set_tracking_uri(before)


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    storage = tmp_path_factory.mktemp("storage")
    with prefect_test_harness(server_startup_timeout=180), temporary_settings({PREFECT_LOCAL_STORAGE_PATH: storage}):
        yield
