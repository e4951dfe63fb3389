"""Configurations: those that ship, what is refused, and what the digest covers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from evaluation.common.errors import ConfigError
from pipelines.adapt_student.config import NightConfig
from pipelines.settings import Settings, load, to_yaml
from pipelines.train_teacher.config import TrainTeacherConfig
from pipelines.train_teacher.sources import STANDARD
from pipelines.write_corpus.config import WriteCorpusConfig
from tests.pipelines.factories import CONFIGS

DEMO = CONFIGS / "demo.yaml"
FILES = sorted(path for path in CONFIGS.glob("*.yaml") if not path.stem.endswith("-plan"))


def demo(*overrides: str, path: Path = DEMO) -> TrainTeacherConfig:
    return load(path, TrainTeacherConfig, overrides)


def refusal(*overrides: str, path: Path = DEMO) -> str:
    with pytest.raises(ConfigError) as caught:
        demo(*overrides, path=path)
    return str(caught.value)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_shipped_config_is_valid_names_its_command_and_reads_back(path: Path, tmp_path: Path) -> None:
    kind: Any = NightConfig if path.stem.startswith("night") else TrainTeacherConfig
    kind = WriteCorpusConfig if path.stem.startswith("write-corpus") else kind
    config: Settings = load(path, kind)
    assert config.name == path.stem
    header = path.read_text(encoding="utf-8").partition("\nname:")[0]
    assert re.search(rf"{kind.command}.* configs/{path.name}\b", header)
    again = tmp_path / "config.yaml"
    again.write_text(to_yaml(config), encoding="utf-8")
    read: Settings = load(again, kind)
    assert (read, read.digest) == (config, config.digest)


def test_all_mistakes_are_listed_in_one_message() -> None:
    mistakes = {
        "loop.round=3": "did you mean rounds?",
        "loop.documents=many": "'many'",
        "teacher.sampling.temperature=-1": "-1",
        "student.update.rank=0": "0",
        "data.train_documents=100000": "100000",
        "dtype=float16": "'float16'",
    }
    message = refusal(*mistakes)
    assert f"{len(mistakes)} mistakes" in message
    assert str(DEMO) in message
    for override, got in mistakes.items():
        field = override.partition("=")[0].rpartition(".")[2]
        assert any(f"{field} " in line and got in line for line in message.splitlines())


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
        ("comparison.variants=[poem]", "comparison.variants"),
        ("comparison.variants=[base, base]", "comparison"),
        ("student.bank_slots=1025", "student.bank_slots"),
        ("student.bank_memory_gb=0", "student.bank_memory_gb"),
    ],
)
def test_one_mistake_is_refused_by_its_place(override: str, place: str) -> None:
    message = refusal(override)
    assert "1 mistake:" in message
    assert place in message


def test_settings_that_do_not_fit_together_are_refused() -> None:
    assert "teacher.samples" in refusal("teacher.samples=1")
    assert "data.development_documents" in refusal("data.development_documents=0")
    assert "equal_tokens" in refusal("comparison.variants=[base, trained_teacher, fixed_kind_equal_tokens]")
    assert demo("teacher.samples=1", "loop.rounds=0").teacher.samples == 1
    assert demo("data.development_documents=0", "comparison.variants=[base, trained_teacher]")


def test_variants_are_listed_by_name_or_in_full() -> None:
    own = "{name: mine, label: my prompt, source: {type: best_prompt, prompts: [micro-rewrite]}}"
    variants = demo(f"comparison.variants=[base, {own}]").comparison.variants
    assert variants[0] == STANDARD["base"]
    assert (variants[1].name, variants[1].source.type) == ("mine", "best_prompt")


def test_overrides_win_over_the_file_and_the_last_over_the_first() -> None:
    config = demo(
        "loop.rounds=3", "loop.rounds=4", "teacher.sampling={temperature: 0.5}", "tracking.experiment=nightly"
    )
    assert (config.loop.rounds, config.loop.documents) == (4, demo().loop.documents)
    assert config.teacher.sampling.temperature == 0.5
    assert "tracking" not in yaml.safe_load(DEMO.read_text(encoding="utf-8"))
    assert config.tracking.experiment == "nightly"


@pytest.mark.parametrize(
    "override", ["loop.rounds", "=3", "loop..rounds=3", ".loop=3", "seed.value=3", "loop.rounds=[1", "loop.rounds={"]
)
def test_override_that_cannot_be_read_is_refused_and_quoted(override: str) -> None:
    assert repr(override) in refusal(override)


@pytest.mark.parametrize("content", [None, b"- one\n- two\n", b"loop: {rounds: 3\n", b"\xff\xfe\xff"])
def test_file_that_is_not_a_yaml_mapping_is_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    place = tmp_path / "config.yaml"
    if content is not None:
        place.write_bytes(content)
    assert str(place) in refusal(path=place)


def test_store_is_that_of_the_environment_and_the_experiment_that_of_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there")
    assert demo().tracking.location == "http://there"
    assert demo("tracking.uri=http://here").tracking.location == "http://here"
    night = load(CONFIGS / "nights-demo.yaml", NightConfig, ["tracking.uri=http://here"])
    assert night.tracking.experiment == "preceptor/adapt-student"


CHANGES = (
    "warm_start={}",
    "name=other",
    "seed=1",
    "device=cuda",
    "dtype=bfloat16",
    "threads=3",
    "data.split_seed=1",
    "teacher.samples=5",
    "teacher.learning.epochs=7",
    "student.bank_slots=31",
    "student.update.max_steps=255",
    "loop.rounds=19",
    "comparison.resamples=9999",
    "grading={grader: {type: exact}}",
)


def test_digest_changes_with_every_setting_that_may_change_a_result_and_no_other() -> None:
    digests = [demo(change).digest for change in CHANGES]
    assert len({demo().digest, *digests}) == len(CHANGES) + 1
    covered = {change.partition("=")[0].partition(".")[0] for change in CHANGES}
    assert covered == set(TrainTeacherConfig.model_fields) - {"tracking"}
    for change in ("uri=sqlite:///elsewhere.db", "experiment=other"):
        changed = demo(f"tracking.{change}")
        assert changed.tracking != demo().tracking
        assert changed.digest == demo().digest
