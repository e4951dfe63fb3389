from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.common.errors import ConfigError, LineageError
from pipelines.check_regression.subjects import download, parse_subject, resolve, settings_of, variant_digest
from pipelines.check_regression.suite import load_suite
from pipelines.lineage.registry import Registry
from pipelines.lineage.run import Lineage
from pipelines.settings import TrackingConfig
from tests.pipelines.check_regression.factories import (
    ADAPTATION,
    DEMO,
    SHIPPED,
    adaptation_suite,
    made_adapter,
    run_config,
    saved_adapter,
    small_suite,
)
from tests.pipelines.lineage.test_registry import Open

INVALID = (
    *("", "bases", "x:y", "adapter:", "teacher:", "config:", "version:", "version:student", "version:student/0"),
    *("version:teacher", "version:grader/1", "version:student@"),
)


@pytest.mark.parametrize("text", INVALID)
def test_words_that_name_no_subject_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="allowed are base, adapter:DIRECTORY"):
        parse_subject(text)


def test_subjects_are_read_in_all_their_forms(tmp_path: Path) -> None:
    assert parse_subject("base")[:3] == ("base", "base", "student")
    assert parse_subject("teacher:base")[:3] == ("teacher:base", "base", "teacher")
    assert parse_subject(f"adapter:{tmp_path}").directory == parse_subject(f"teacher:{tmp_path}").directory == tmp_path
    assert parse_subject("version:student/12")[1:5] == ("version", "student", None, 12)
    assert parse_subject("version:teacher@champion")[1:5] == ("version", "teacher", None, "champion")
    assert parse_subject(f"config:{DEMO}").config == DEMO
    assert all(parse_subject(text).is_variant for text in ("teacher:base", "version:teacher/1", f"config:{DEMO}"))
    assert not any(parse_subject(text).is_variant for text in ("base", "version:student/1", f"adapter:{tmp_path}"))
    absent = (f"config:{tmp_path}", f"config:{tmp_path}/none.yaml", f"teacher:{tmp_path}/no", f"adapter:{tmp_path}/no")
    for text in absent:
        with pytest.raises(ConfigError, match="there is no"):
            parse_subject(text)


@pytest.mark.parametrize("variant", ["teacher:base", "version:teacher@champion", f"config:{DEMO}"])
@pytest.mark.parametrize("student", ["base", "version:student/1"])
def test_a_student_and_a_variant_do_not_compare(variant: str, student: str, tmp_path: Path) -> None:
    suite = load_suite(SHIPPED)
    for pair in ((variant, student), (student, variant)):
        with pytest.raises(ConfigError, match="is a variant"):
            resolve(suite, *pair, tmp_path)


def test_versions_are_found_by_number_and_by_alias(open_run: Open, work_dir: Path, tmp_path: Path) -> None:
    lineage: Lineage = open_run()
    digest = made_adapter(0.0).digest
    version = lineage.registry.register(
        "student", saved_adapter(tmp_path / "a", 0.0), digest=digest, tags={}, run_id=lineage.run_id
    )
    Registry.open(TrackingConfig(), work_dir).promote("student", version)
    for text in (f"version:student/{version}", "version:student@champion"):
        found = download(parse_subject(text), TrackingConfig(), work_dir, tmp_path / "scratch")
        assert found.version == version
        assert found.directory is not None
        assert (found.directory / "adapter_model.safetensors").is_file()
    with pytest.raises(ConfigError, match="no version with the alias 'previous'"):
        download(parse_subject("version:student@previous"), TrackingConfig(), work_dir, tmp_path)
    with pytest.raises((LineageError, ConfigError)):
        download(parse_subject("version:student/99"), TrackingConfig(), work_dir, tmp_path)
    suite = load_suite(SHIPPED)
    assert [subject.text for subject in resolve(suite, "base", "base", tmp_path)] == ["base", "base"]
    with pytest.raises(ConfigError, match="holds no runs"):
        resolve(suite, "version:student/1", "base", tmp_path)


def test_a_variant_has_the_suites_student_and_seed_and_its_own_teacher_and_recipe(tmp_path: Path) -> None:
    suite = load_suite(adaptation_suite(tmp_path, pin=False, seed=7, adaptation={**ADAPTATION, "edits": 3}))
    teacher = settings_of(suite, parse_subject("teacher:base"))
    assert suite.adaptation is not None
    assert (teacher.teacher, teacher.student.update) == (suite.adaptation.teacher, suite.adaptation.update)
    file = run_config(tmp_path / "run.yaml", "seed=3", "teacher.prompt=micro-rewrite", "student.update.epochs=2")
    configured = settings_of(suite, parse_subject(f"config:{file}"))
    assert (configured.teacher.prompt, configured.student.update.epochs) == ("micro-rewrite", 2)
    for settings in (teacher, configured):
        assert (settings.seed, settings.student.model, settings.grading) == (7, suite.student, None)


def test_the_digest_of_a_variant_is_of_what_decides_its_scores(tmp_path: Path) -> None:
    suite = load_suite(SHIPPED)

    def digest(text: str, weights: str = "a") -> str:
        return variant_digest(settings_of(suite, parse_subject(text)), weights * 64)

    base = digest("teacher:base")
    assert digest(f"config:{DEMO}") == base  # the shipped suite has the demo's recipe
    others = [digest("teacher:base", "b")]
    for change in ("teacher.prompt=micro-rewrite", "student.update.rank=4", "teacher.sampling.temperature=0.5"):
        others.append(digest(f"config:{run_config(tmp_path / 'run.yaml', change)}"))
    assert len({base, *others}) == 5


def test_variants_that_do_not_fit_a_suite_are_refused(tmp_path: Path) -> None:
    without = load_suite(small_suite(tmp_path, pin=False))
    for text in ("teacher:base", f"config:{DEMO}"):
        with pytest.raises(ConfigError, match="has no section 'adaptation'"):
            settings_of(without, parse_subject(text))
    suite = load_suite(adaptation_suite(tmp_path, pin=False))
    for change, message in (
        ("student.model=elsewhere", r"student.model is 'elsewhere'"),
        ("student.answer_format.joiner=': '", r"student.answer_format is"),
    ):
        other = run_config(tmp_path / "other.yaml", change)
        with pytest.raises(ConfigError, match=message):
            settings_of(suite, parse_subject(f"config:{other}"))
    broken = tmp_path / "broken.yaml"
    broken.write_text(DEMO.read_text().replace("algorithm: grpo", "algorithm: none"))
    with pytest.raises(ConfigError, match=r"teacher\.learning"):
        settings_of(suite, parse_subject(f"config:{broken}"))
    endpoint = {"type": "openai", "endpoint": {"base_url": "http://127.0.0.1:1/v1", "model": "served"}}
    remote = load_suite(adaptation_suite(tmp_path, pin=False, adaptation={"teacher": {"sampling": endpoint}}))
    settings_of(remote, parse_subject("teacher:base"))
    with pytest.raises(ConfigError, match="behind an endpoint, which takes no adapter"):
        settings_of(remote, parse_subject("version:teacher/1"))
