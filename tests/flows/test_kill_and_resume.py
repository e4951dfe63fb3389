"""A run that is killed three times ends with the figures of a run that nobody disturbed, in one MLflow run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.flows import settings
from tests.flows.conftest import FinishedRun

pytestmark = [pytest.mark.flow, pytest.mark.timeout(1200)]  # the runs are made by the first test that needs them


class KilledRun(NamedTuple):
    work_dir: Path
    result: Path
    output: str
    before_kills: list[dict[str, str]]
    """What was stored just after each kill."""


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KilledRun]:
    place = tmp_path_factory.mktemp("killed run")
    work_dir, result, home = place / "work", place / "result.json", place / "home"
    arguments = settings.command(settings.CONFIGS / "demo.yaml", work_dir, settings.TINY, result)
    children: list[settings.Child] = []
    seen: list[dict[str, str]] = []

    def start() -> settings.Child:
        children.append(settings.Child(arguments, home))
        return children[-1]

    def has(**wanted: int) -> Callable[[], bool]:
        return lambda: all(settings.counts(work_dir)[kind] >= number for kind, number in wanted.items())

    try:
        first = start()
        first.wait_until(has(sample=1))
        first.kill()
        assert settings.counts(work_dir) == {"sample": 1}, "the students of round 0 were to be in training"
        seen.append(settings.records(work_dir))

        second = start()
        second.wait_until(has(sample=2, update=2 * (2 * 3 + 2), learn=1))
        second.kill_alone()
        assert settings.counts(work_dir)["learn"] == 1, "the teacher was to be learning in round 1"
        seen.append(settings.records(work_dir))

        third = start()
        third.wait_until(has(learn=2, sample=4))
        third.kill()
        assert not result.exists()
        seen.append(settings.records(work_dir))

        last = start()
        assert last.wait() == 0, last.output[-4000:]
        yield KilledRun(work_dir, result, last.output, seen)
    finally:
        for child in children:
            child.kill()


def test_killed_run_ends_with_the_figures_of_an_undisturbed_one(
    killed_run: KilledRun, finished_run: FinishedRun
) -> None:
    assert settings.figures(killed_run.result) == settings.figures(finished_run.result)


def test_killed_run_does_everything_once_and_nothing_else(killed_run: KilledRun, finished_run: FinishedRun) -> None:
    at_the_end = settings.records(killed_run.work_dir)
    for before in killed_run.before_kills:
        assert {key: at_the_end[key] for key in before} == before
    assert at_the_end.keys() == settings.records(finished_run.work_dir).keys()


def test_teachers_of_a_killed_run_are_the_same_to_the_last_bit(
    killed_run: KilledRun, finished_run: FinishedRun
) -> None:
    """Teachers are named by the digest of their weights."""

    def names(work_dir: Path) -> set[str]:
        return {path.name for path in (work_dir / "teachers").iterdir()}

    assert names(killed_run.work_dir) == names(finished_run.work_dir)
    assert len(names(killed_run.work_dir)) == 2


def test_killed_run_goes_on_in_the_same_mlflow_run(killed_run: KilledRun, finished_run: FinishedRun) -> None:
    from mlflow import MlflowClient

    named = settings.run_id_in(killed_run.output)
    assert len(named) == 4
    assert len(set(named)) == 1
    assert f'"mlflow_run_id": "{named[0]}"' in killed_run.result.read_text(encoding="utf-8")
    stores = [f"sqlite:///{work_dir / 'mlflow.db'}" for work_dir in (killed_run.work_dir, finished_run.work_dir)]
    killed, undisturbed = (logged(MlflowClient(store)) for store in stores)
    assert killed == undisturbed


def logged(client: Any) -> dict[str, Any]:
    """Return name, status, metrics with the number of their points and artifacts of all runs, and all versions."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments)
    found = {
        run.info.run_name: [
            run.info.status,
            {
                name: [point.value for point in client.get_metric_history(run.info.run_id, name)]
                for name in run.data.metrics
                if not name.startswith(("time/", "memory/"))
            },
            sorted(entry.path for entry in client.list_artifacts(run.info.run_id)),
        ]
        for run in runs
    }
    assert len(found) == len(runs), "two runs have the same name"
    models = [model.name for model in client.search_registered_models()]
    versions = {name: len(client.search_model_versions(f"name = '{name}'")) for name in models}
    return {**found, "versions": versions}


def test_nothing_runs_on_after_a_run(killed_run: KilledRun, finished_run: FinishedRun) -> None:
    assert settings.left_behind(killed_run.work_dir) == []
    assert settings.left_behind(finished_run.work_dir) == []
    assert settings.flow_states(killed_run.work_dir) == ["CRASHED", "CRASHED", "CRASHED", "COMPLETED"]
