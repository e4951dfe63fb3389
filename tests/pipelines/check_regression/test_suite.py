from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from evaluation.common.errors import ConfigError, InputError
from pipelines.check_regression.compare import current_pins
from pipelines.check_regression.suite import (
    AdaptationConfig,
    Pins,
    check_pins,
    load_content,
    load_suite,
    pins_of,
    write_pins,
)
from tests.pipelines.check_regression.factories import (
    ADAPTATION,
    SHIPPED,
    adaptation_suite,
    small_suite,
    student_digest,
)


@pytest.mark.parametrize("path", sorted(SHIPPED.parent.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_suites_ask_what_they_were_pinned_with(path: Path) -> None:
    suite = load_suite(path)
    check_pins(suite, current_pins(suite, load_content(suite)))
    assert path.read_text(encoding="utf-8").startswith("# ")


def test_the_shipped_suite_asks_two_facts_of_each_document_in_phrasings_that_rewards_do_not_use() -> None:
    content = load_content(load_suite(SHIPPED))
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
    suite = load_suite(small_suite(tmp_path, pin=False, data=section, side="train", probes=0))

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
    suite = load_suite(adaptation_suite(tmp_path, pin=False))
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
    suite = load_suite(path)
    pins = pins_of(suite, load_content(suite), student_digest())
    for _ in range(2):
        write_pins(path, pins)
        text = path.read_text(encoding="utf-8")
        assert text.startswith(written.rstrip())
        assert text.count("pins:") == 1
    assert load_suite(path).pins == pins
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
        load_suite(small_suite(tmp_path, pin=False, **change))


def test_groups_must_name_documents_of_the_suite(tmp_path: Path) -> None:
    suite = load_suite(small_suite(tmp_path, pin=False, groups={"a": ["nobody"]}))
    with pytest.raises(ConfigError, match="nobody"):
        load_content(suite)
