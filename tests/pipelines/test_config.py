"""Configurations: those that ship, what is refused, and what the digest covers."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from evaluation.errors import ConfigError
from pipelines.config import RunConfig, load_config, read_config, to_yaml
from pipelines.nights.config import NightConfig

_PLACE = Path(__file__).resolve().parents[2] / "configs"
NIGHTS = sorted(_PLACE.glob("night*.yaml"))
CONFIGS = sorted(set(_PLACE.glob("*.yaml")) - set(_PLACE.glob("*-plan.yaml")) - set(NIGHTS))
DEMO = next(path for path in CONFIGS if path.name == "demo.yaml")


def refusal(*overrides: str, path: Path = DEMO) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_config_is_valid_and_named_after_its_file(path: Path) -> None:
    assert load_config(path).name == path.stem


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_config_says_what_it_does_and_how_to_run_it(path: Path) -> None:
    header = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert len(header) >= 2
    assert any(f"preceptor train-teacher configs/{path.name}" in line for line in header)


@pytest.mark.parametrize("path", NIGHTS, ids=lambda path: path.name)
def test_shipped_night_is_valid_says_how_to_run_it_and_reads_back(path: Path, tmp_path: Path) -> None:
    config = read_config(path, NightConfig)
    assert config.name == path.stem
    text = path.read_text(encoding="utf-8")
    assert f"configs/{path.name}" in text.partition("\nname:")[0]
    again = tmp_path / "night.yaml"
    again.write_text(to_yaml(config), encoding="utf-8")
    assert read_config(again, NightConfig) == config
    assert read_config(path, NightConfig, ["tracking.experiment=other"]).digest == config.digest
    assert read_config(path, NightConfig, ["replay.documents=1"]).digest != config.digest
    assert config.as_run().student == config.student


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_resolved_config_reads_back_as_itself(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    again = tmp_path / "config.yaml"
    again.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(again) == config
    assert load_config(again).digest == config.digest


def test_all_mistakes_are_listed_in_one_message() -> None:
    message = refusal(
        "loop.round=3",
        "loop.documents=many",
        "teacher.sampling.temperature=-1",
        "student.update.rank=0",
        "data.train_documents=100000",
        "dtype=float16",
    )
    assert "6 mistakes" in message
    assert str(DEMO) in message
    for place, got in {
        "loop.round": "3",
        "loop.documents": "'many'",
        "temperature": "-1",
        "student.update.rank": "0",
        "train_documents": "100000",
        "dtype": "'float16'",
    }.items():
        line = next(line for line in message.splitlines() if place in line)
        assert got in line
    assert "Nothing was started" in message


@pytest.mark.parametrize(
    ("override", "place"),
    [
        ("surprise=1", "surprise"),
        ("teacher.learning.algorithm=ppo", "teacher.learning"),
        ("teacher.sampling.type=magic", "teacher.sampling"),
        ("data.type=parquet", "data"),
        ("teacher.prompt=poem", "teacher.prompt"),
        ("name=with space", "name"),
        ("seed=-1", "seed"),
        ("loop.rounds=1.5", "loop.rounds"),
        ("comparison.confidence=1.0", "comparison.confidence"),
        ("comparison.joint_update.rank=0", "comparison.joint_update.rank"),
        ("student.unit_updates=0", "student.unit_updates"),
        ("student.unit_updates=4097", "student.unit_updates"),
        ("student.bank_memory_gb=0", "student.bank_memory_gb"),
    ],
)
def test_one_mistake_is_refused_by_its_place(override: str, place: str) -> None:
    message = refusal(override)
    assert "1 mistake:" in message
    assert place in message


def test_settings_that_do_not_fit_together_are_refused() -> None:
    assert "comparison.fixed_prompts" in refusal("comparison.fixed_prompts=[poem]")
    assert "teacher.samples" in refusal("teacher.samples=1")
    assert "data.development_documents" in refusal("data.development_documents=0")
    assert load_config(DEMO, ["teacher.samples=1", "loop.rounds=0"]).teacher.samples == 1
    assert load_config(DEMO, ["data.development_documents=0", "comparison.fixed_prompts=[]"])


def test_overrides_win_over_the_file_and_the_last_over_the_first() -> None:
    config = load_config(
        DEMO,
        ["loop.rounds=3", "loop.rounds=4", "comparison.joint_update=null", "teacher.sampling={temperature: 0.5}"],
    )
    assert config.loop.rounds == 4
    assert config.loop.documents == load_config(DEMO).loop.documents
    assert config.comparison.joint_update is None
    assert config.teacher.sampling.temperature == 0.5


def test_override_may_name_a_section_that_the_file_leaves_out() -> None:
    assert "tracking" not in yaml.safe_load(DEMO.read_text(encoding="utf-8"))
    assert load_config(DEMO, ["tracking.experiment=nightly"]).tracking.experiment == "nightly"


@pytest.mark.parametrize(
    "override", ["loop.rounds", "=3", "loop..rounds=3", ".loop=3", "seed.value=3", "loop.rounds=[1", "loop.rounds={"]
)
def test_override_that_cannot_be_read_is_refused_and_quoted(override: str) -> None:
    assert repr(override) in refusal(override)


def test_file_that_is_no_mapping_no_yaml_or_not_there_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "config.yaml"
    assert str(place) in refusal(path=place)
    place.write_text("- one\n- two\n", encoding="utf-8")
    assert "list" in refusal(path=place)
    place.write_text("loop: {rounds: 3\n", encoding="utf-8")
    assert "not YAML" in refusal(path=place)
    place.write_bytes(b"\xff\xfe\xff")
    assert str(place) in refusal(path=place)


CHANGES = (
    "name=other",
    "seed=1",
    "device=cuda",
    "dtype=bfloat16",
    "threads=3",
    "data.split_seed=1",
    "data.test_documents=3",
    "teacher.samples=5",
    "teacher.sampling.temperature=0.9",
    "teacher.learning.epochs=7",
    "student.bank_slots=31",
    "student.unit_updates=63",
    "student.bank_memory_gb=1.5",
    "student.update.max_steps=255",
    "loop.rounds=19",
    "comparison.resamples=9999",
    "comparison.joint_update=null",
    "grading={grader: {type: exact}}",
)


def test_digest_changes_with_every_setting_that_may_change_a_result() -> None:
    digests = [load_config(DEMO, [change]).digest for change in CHANGES]
    assert len({load_config(DEMO).digest, *digests}) == len(CHANGES) + 1
    covered = {change.partition("=")[0].partition(".")[0] for change in CHANGES}
    assert covered == set(RunConfig.model_fields) - {"tracking", "serving"}


@pytest.mark.parametrize("change", ["uri=sqlite:///elsewhere.db", "experiment=other", "registry_prefix=other"])
def test_digest_does_not_depend_on_where_the_lineage_goes(change: str) -> None:
    changed = load_config(DEMO, [f"tracking.{change}"])
    assert changed.tracking != load_config(DEMO).tracking
    assert changed.digest == load_config(DEMO).digest


def test_digest_does_not_depend_on_how_students_are_served() -> None:
    assert load_config(DEMO, ["serving.restarts=7"]).digest == load_config(DEMO).digest
