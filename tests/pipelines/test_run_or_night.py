"""A night's YAML file where commands used to take a run's alone, and files that are neither."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evaluation.errors import ConfigError
from pipelines.cli import app
from pipelines.config import RunConfig, TrackingConfig
from pipelines.lineage import Lineage
from pipelines.nights.config import NightConfig
from pipelines.registry import Registry
from pipelines.run_or_night import run_or_night, tracking_of

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
OURS = 'tracking: {experiment: "%s", registry_prefix: ours}\n'


@pytest.mark.parametrize(
    "path", sorted(set(CONFIGS.glob("*.yaml")) - set(CONFIGS.glob("*-plan.yaml"))), ids=lambda path: path.name
)
def test_every_shipped_configuration_is_read_as_what_it_is(path: Path) -> None:
    kind = NightConfig if path.name.startswith("night") else RunConfig
    assert type(run_or_night(path)) is kind


def test_lineage_goes_where_the_file_says_or_to_the_work_directory(tmp_path: Path) -> None:
    assert tracking_of(None) == TrackingConfig()
    assert tracking_of(CONFIGS / "nights-demo.yaml").experiment == "preceptor/adapt-student"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ((CONFIGS / "nights-demo.yaml").read_text() + "compositions: joint\n", ("Read as a night's", "compositions")),
        ((CONFIGS / "demo.yaml").read_text() + "lop: {}\n", ("Read as a run's", "has 1 mistake", "lop")),
        ("[1, 2]", ("got list",)),
        ("", ("got NoneType",)),
        ((CONFIGS / "evidence-plan.yaml").read_text(), ("Read as a", "seeds")),
    ],
    ids=("night", "run", "list", "empty", "other"),
)
def test_file_that_is_neither_is_one_error_that_names_both(content: str, told: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as refused:
        run_or_night(path)
    for part in ("odd.yaml' is neither", "train-teacher", "demo.yaml", "adapt-student", "nights-demo.yaml", *told):
        assert part in str(refused.value)


def test_file_that_cannot_be_read_is_no_question_of_kind(tmp_path: Path) -> None:
    (tmp_path / "torn.yaml").write_text("a: [")
    for name, reason in (("nothing.yaml", "cannot be read"), ("torn.yaml", "is not YAML")):
        with pytest.raises(ConfigError, match=reason) as refused:
            run_or_night(tmp_path / name)
        assert "neither" not in str(refused.value)


def test_commands_take_a_nights_file_for_its_store(
    open_run: Callable[..., Lineage], policy_dir: Path, work_dir: Path, tmp_path: Path
) -> None:
    config = tmp_path / "night.yaml"
    config.write_text((CONFIGS / "nights-demo.yaml").read_text() + OURS % "preceptor/train-teacher")
    tracking = run_or_night(config).tracking
    lineage = open_run()
    registry = Registry(lineage.store, tracking.registry_prefix)
    for digit in "ab":
        registry.register("teacher", policy_dir, digest=digit * 64, run_id=lineage.run_id, tags={})

    def call(*arguments: str) -> str:
        told = CliRunner().invoke(app, [*arguments, "--config", str(config), "--work-dir", str(work_dir)])
        assert told.exit_code == 0, told.output
        return told.output

    assert "Version 1 of the teacher is the champion" in call("promote", "teacher", "1")
    assert "the previous one is version 1" in call("promote", "teacher", "2")
    assert "Version 1 of the teacher is the champion again" in call("rollback", "--role", "teacher", "--because", "x")
    assert "champion" in call("versions", "--role", "teacher")
    assert registry.aliases("teacher")["champion"] == 1
    assert Registry(lineage.store, "preceptor").aliases("teacher") == {}


def test_serving_takes_a_nights_file_and_then_misses_the_store(tmp_path: Path) -> None:
    told = ["serve", "--config", str(CONFIGS / "nights-demo.yaml"), "--work-dir", str(tmp_path / "nothing")]
    refused = CliRunner().invoke(app, told)
    assert isinstance(refused.exception, ConfigError)
    assert "holds no runs" in str(refused.exception)
    assert "neither" not in str(refused.exception)
