"""Suites with their pins, and the subjects that are compared on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from evaluation.common.errors import ConfigError, InputError, LineageError
from evaluation.engines.endpoint import EndpointConfig
from pipelines.check_regression.compare import current_pins
from pipelines.check_regression.suite import (
    AdaptationConfig,
    Pins,
    RegressionSuite,
    check_pins,
    download,
    load_content,
    parse_subject,
    pins_of,
    resolve,
    settings_of,
    variant_digest,
    write_pins,
)
from pipelines.lineage.registry import Registry
from pipelines.lineage.run import Lineage
from pipelines.settings import TrackingConfig, load
from tests.pipelines.check_regression.factories import (
    ADAPTATION,
    DEMO,
    SHIPPED,
    adaptation_suite,
    made_adapter,
    run_config,
    saved_adapter,
    small_suite,
    student_digest,
)
from tests.pipelines.lineage.test_registry import Open


@pytest.mark.parametrize("path", sorted(SHIPPED.parent.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_suites_ask_what_they_were_pinned_with(path: Path) -> None:
    suite = load(path, RegressionSuite)
    check_pins(suite, current_pins(suite, load_content(suite)))
    assert path.read_text(encoding="utf-8").startswith("# ")


def test_the_shipped_suite_asks_two_facts_of_each_document_in_phrasings_that_rewards_do_not_use() -> None:
    content = load_content(load(SHIPPED, RegressionSuite))
    assert len(content.tasks) == 80
    for task in content.tasks:
        asked = task.comparison_questions
        assert (len(asked), len({question.answer for question in asked})) == (4, 2)
        assert not {q.phrasing for q in asked} & {q.phrasing for q in task.questions}


def write_documents(path: Path, answers: str, text: str = "Text") -> None:
    rows = [
        {"id": f"doc-{i}", "text": f"{text} {i}.", "questions": [{"question": f"What is {i}?", "answer": answer}]}
        for i, answer in enumerate(answers)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_a_suite_without_pins_and_every_change_of_a_pinned_one_are_refused(tmp_path: Path) -> None:
    data = tmp_path / "documents.jsonl"
    section = {"type": "jsonl", "path": str(data), "development_documents": 0, "test_documents": 1}
    write_documents(data, "abcd")
    suite = load(small_suite(tmp_path, pin=False, data=section, side="train", probes=0), RegressionSuite)

    def pins() -> Pins:
        return pins_of(suite, load_content(suite), "1" * 64)

    before = pins()
    with pytest.raises(ConfigError, match="--pin"):
        check_pins(suite, before)
    pinned = suite.model_copy(update={"pins": before})
    check_pins(pinned, pins())
    for answers, text, message in (
        ("abcde", "Text", "1 documents or their questions are new"),
        ("abc", "Text", "documents or their questions are missing"),
        ("abxy", "Text", "documents or their questions are changed: 'doc-"),
        ("abcd", "A text", "3 documents or their questions are changed: 'doc-"),
    ):
        write_documents(data, answers, text)
        with pytest.raises(InputError, match=message):
            check_pins(pinned, pins())
    with pytest.raises(InputError, match=r"student 'micro-student' has the digest 222222222222"):
        check_pins(pinned, before.model_copy(update={"student": "2" * 64}))
    with pytest.raises(InputError, match="retention probes are changed"):
        check_pins(pinned, before.model_copy(update={"probes": "2" * 64}))


def adaptation(**changes: Any) -> str:
    return AdaptationConfig.model_validate({**ADAPTATION, **changes}).digest


def test_pins_notice_how_teachers_write_and_students_learn_but_not_how_teachers_learn(tmp_path: Path) -> None:
    teacher = ADAPTATION["teacher"]
    digests = [
        adaptation(edits=2),
        adaptation(update={**ADAPTATION["update"], "rank": 4}),
        adaptation(teacher={**teacher, "prompt": "micro-rewrite"}),
        adaptation(teacher={**teacher, "sampling": {"temperature": 0.5}}),
    ]
    assert len({adaptation(), *digests}) == 5
    assert adaptation(teacher={**teacher, "samples": 3, "policy": {"rank": 2}}) == adaptation()
    suite = load(adaptation_suite(tmp_path, pin=False), RegressionSuite)
    pins = pins_of(suite, load_content(suite), "1" * 64, "2" * 64)
    pinned = suite.model_copy(update={"pins": pins})
    check_pins(pinned, pins.model_copy(update={"teacher": None}))  # it was not opened
    for digest in (digests[0], None):
        with pytest.raises(InputError, match="the section 'adaptation' is changed"):
            check_pins(pinned, pins.model_copy(update={"adaptation": digest}))
    check_pins(pinned, pins)
    other = pins.model_copy(update={"teacher": "3" * 64})
    with pytest.raises(InputError, match="the teacher has the digest 333333333333, not 222222222222"):
        check_pins(pinned, other)
    without = suite.model_copy(update={"pins": pins.model_copy(update={"teacher": None})})
    with pytest.raises(InputError, match="the teacher has the digest 333333333333, not none"):
        check_pins(without, other)


def test_pinning_keeps_the_rest_of_the_file_and_can_be_repeated(tmp_path: Path) -> None:
    path = small_suite(tmp_path, pin=False)
    written = path.read_text(encoding="utf-8")
    suite = load(path, RegressionSuite)
    pins = pins_of(suite, load_content(suite), student_digest())
    for _ in range(2):
        write_pins(path, pins)
        text = path.read_text(encoding="utf-8")
        assert text.startswith(written.rstrip())
        assert text.count("pins:") == 1
    assert load(path, RegressionSuite).pins == pins
    assert yaml.safe_load(text)["pins"]["student"] == pins.student


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": {"a": ["test-0-0000"], "b": ["test-0-0000"]}}, "listed twice"),
        ({"limits": {"tolerance": 0.5}}, "tolerance must be below detectable"),
        ({"limits": {"probe_tolerance": 0.3}}, "probe_tolerance must be below probe_detectable"),
        ({"unknown": 1}, "unknown"),
        ({"probes": -1}, "probes"),
        ({"adaptation": {"edits": 2}}, "adaptation.teacher"),
    ],
    ids=["group", "limits", "probe limits", "unknown", "range", "adaptation"],
)
def test_mistakes_in_a_suite_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(small_suite(tmp_path, pin=False, **change), RegressionSuite)


def test_groups_must_name_documents_of_the_suite(tmp_path: Path) -> None:
    suite = load(small_suite(tmp_path, pin=False, groups={"a": ["nobody"]}), RegressionSuite)
    with pytest.raises(ConfigError, match="nobody"):
        load_content(suite)


# Subjects

INVALID = (
    *("", "bases", "x:y", "adapter:", "teacher:", "config:", "version:", "version:student", "version:student/0"),
    *("version:teacher", "version:grader/1", "version:student@"),
)


@pytest.mark.parametrize("text", INVALID)
def test_words_that_name_no_subject_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="allowed are base, adapter:DIRECTORY"):
        parse_subject(text)


def test_subjects_are_read_in_all_their_forms(tmp_path: Path) -> None:
    assert parse_subject("base")[:2] == ("base", "student")
    assert parse_subject("teacher:base")[:2] == ("teacher:base", "teacher")
    assert not any((*parse_subject("base")[2:], *parse_subject("teacher:base")[2:]))
    for name in ("adapter_config.json", "policy.json", "config.json"):
        (tmp_path / name).touch()
    assert parse_subject(f"model:{tmp_path}").model == tmp_path
    remote = parse_subject("endpoint:http://127.0.0.1:1/v1#org/name?key_env=NAME&budget_tokens=9&api=chat").endpoint
    assert remote == EndpointConfig(
        base_url="http://127.0.0.1:1/v1", model="org/name", key_env="NAME", budget_tokens=9, api="chat"
    )
    for wrong, said in (("http://ann:secret@host/v1#name", "base_url"), ("http://h/v1", "model"), ("#m?x=secret", "x")):
        with pytest.raises(ConfigError, match=said) as refused:
            parse_subject(f"endpoint:{wrong}")
        assert "secret" not in str(refused.value)
    assert parse_subject(f"adapter:{tmp_path}").directory == parse_subject(f"teacher:{tmp_path}").directory == tmp_path
    assert parse_subject("version:student/12")[1:4] == ("student", None, 12)
    assert parse_subject("version:teacher@champion")[1:4] == ("teacher", None, "champion")
    assert parse_subject(f"config:{DEMO}").config == DEMO
    assert all(parse_subject(text).is_variant for text in ("teacher:base", "version:teacher/1", f"config:{DEMO}"))
    assert not any(parse_subject(text).is_variant for text in ("base", "version:student/1", f"adapter:{tmp_path}"))
    (tmp_path / "empty").mkdir()
    absent = [f"config:{tmp_path}", f"config:{tmp_path}/none.yaml", f"teacher:{tmp_path}/no", f"adapter:{tmp_path}/no"]
    absent += [f"teacher:{tmp_path}/empty", f"adapter:{tmp_path}/empty"]
    for text in absent:
        with pytest.raises(ConfigError, match="there is no"):
            parse_subject(text)


@pytest.mark.parametrize("variant", ["teacher:base", "version:teacher@champion", f"config:{DEMO}"])
@pytest.mark.parametrize("student", ["base", "version:student/1"])
def test_a_student_and_a_variant_do_not_compare(variant: str, student: str, tmp_path: Path) -> None:
    suite = load(SHIPPED, RegressionSuite)
    for pair in ((variant, student), (student, variant)):
        with pytest.raises(ConfigError, match="is a variant"):
            resolve(suite, *pair, tmp_path)


def test_versions_are_found_by_number_and_by_alias(open_run: Open, work_dir: Path, tmp_path: Path) -> None:
    lineage: Lineage = open_run()
    digest = made_adapter(0.0).digest
    files = saved_adapter(tmp_path / "a", 0.0)
    version = lineage.registry.register("student", files, digest=digest, tags={}, run_id=lineage.run_id)
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
    suite = load(SHIPPED, RegressionSuite)
    assert [subject.text for subject in resolve(suite, "base", "base", tmp_path)] == ["base", "base"]
    with pytest.raises(ConfigError, match="holds no runs"):
        resolve(suite, "version:student/1", "base", tmp_path)


def test_a_variant_has_the_suites_student_and_seed_and_its_own_teacher_and_recipe(tmp_path: Path) -> None:
    suite = load(adaptation_suite(tmp_path, pin=False, seed=7, adaptation={**ADAPTATION, "edits": 3}), RegressionSuite)
    teacher = settings_of(suite, parse_subject("teacher:base"))
    assert suite.adaptation is not None
    assert (teacher.teacher, teacher.student.update) == (suite.adaptation.teacher, suite.adaptation.update)
    file = run_config(tmp_path / "run.yaml", "seed=3", "teacher.prompt=micro-rewrite", "student.update.epochs=2")
    configured = settings_of(suite, parse_subject(f"config:{file}"))
    assert (configured.teacher.prompt, configured.student.update.epochs) == ("micro-rewrite", 2)
    for settings in (teacher, configured):
        assert (settings.seed, settings.student.model, settings.grading) == (7, suite.student, None)


def test_the_digest_of_a_variant_is_of_what_decides_its_scores(tmp_path: Path) -> None:
    suite = load(SHIPPED, RegressionSuite)

    def digest(text: str, weights: str = "a") -> str:
        return variant_digest(settings_of(suite, parse_subject(text)), weights * 64)

    base = digest("teacher:base")
    assert digest(f"config:{DEMO}") == base  # the shipped suite has the demo's recipe
    others = [digest("teacher:base", "b")]
    for change in ("teacher.prompt=micro-rewrite", "student.update.rank=4", "teacher.sampling.temperature=0.5"):
        others.append(digest(f"config:{run_config(tmp_path / 'run.yaml', change)}"))
    assert len({base, *others}) == 5


def test_variants_that_do_not_fit_a_suite_are_refused(tmp_path: Path) -> None:
    without = load(small_suite(tmp_path, pin=False), RegressionSuite)
    for text in ("teacher:base", f"config:{DEMO}"):
        with pytest.raises(ConfigError, match="has no section 'adaptation'"):
            settings_of(without, parse_subject(text))
    suite = load(adaptation_suite(tmp_path, pin=False), RegressionSuite)
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
    remote = load(
        adaptation_suite(tmp_path, pin=False, adaptation={"teacher": {"sampling": endpoint}}), RegressionSuite
    )
    settings_of(remote, parse_subject("teacher:base"))
    with pytest.raises(ConfigError, match="behind an endpoint, which takes no adapter"):
        settings_of(remote, parse_subject("version:teacher/1"))
