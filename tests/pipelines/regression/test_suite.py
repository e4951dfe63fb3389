from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from evaluation.errors import ConfigError, InputError
from pipelines.regression.pins import check_pins, check_teacher, pins_of, write_pins
from pipelines.regression.scoring import teacher_digest
from pipelines.regression.suite import load_content, load_suite
from tests.pipelines.regression.parts import SHIPPED, SUITES, small_suite, student_digest


@pytest.mark.parametrize("path", sorted(SUITES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_suites_ask_what_they_were_pinned_with(path: Path) -> None:
    suite = load_suite(path)
    check_pins(suite, pins_of(load_content(suite), student_digest()))
    found = teacher_digest(suite)
    if found is not None:
        check_teacher(suite, found)
    assert path.read_text(encoding="utf-8").startswith("# ")


def test_a_suite_without_pins_is_refused_with_the_command_that_pins_it(tmp_path: Path) -> None:
    suite = load_suite(small_suite(tmp_path, pin=False))
    with pytest.raises(ConfigError, match="--pin"):
        check_pins(suite, pins_of(load_content(suite), "0" * 64))


def write_documents(path: Path, answers: list[str]) -> None:
    rows = [
        {"id": f"doc-{i}", "text": f"Text {i}.", "questions": [{"question": f"What is {i}?", "answer": answer}]}
        for i, answer in enumerate(answers)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_a_changed_a_new_and_a_missing_document_are_named(tmp_path: Path) -> None:
    data = tmp_path / "documents.jsonl"
    write_documents(data, ["a", "b", "c", "d"])
    section = {"type": "jsonl", "path": str(data), "development_documents": 0, "test_documents": 1}
    suite_path = small_suite(tmp_path, data=section, side="train", probes=0)
    before = load_suite(suite_path)
    check_pins(before, pins_of(load_content(before), student_digest()))

    write_documents(data, ["a", "b", "c", "d", "e"])
    content = load_content(before)
    pinned = before.pins
    assert pinned is not None
    found = pins_of(content, student_digest())
    with pytest.raises(InputError, match="1 documents or their questions are new"):
        check_pins(before, found)
    first, *rest = found.documents
    changed = found.model_copy(update={"documents": {**found.documents, first: "0" * 64}})
    with pytest.raises(InputError, match=f"1 documents or their questions are changed: '{first}'"):
        check_pins(before.model_copy(update={"pins": found}), changed)
    fewer = found.model_copy(update={"documents": {name: found.documents[name] for name in rest}})
    with pytest.raises(InputError, match=f"are missing: '{first}'"):
        check_pins(before.model_copy(update={"pins": found}), fewer)


def test_another_answer_another_text_another_probe_and_another_student_change_the_pins(tmp_path: Path) -> None:
    data = tmp_path / "documents.jsonl"
    section = {"type": "jsonl", "path": str(data), "development_documents": 0, "test_documents": 1}
    write_documents(data, ["a", "b"])
    suite = load_suite(small_suite(tmp_path, pin=False, data=section, probes=0))
    pins = pins_of(load_content(suite), "1" * 64)
    write_documents(data, ["x", "y"])
    assert pins_of(load_content(suite), "1" * 64).documents != pins.documents
    write_documents(data, ["a", "b"])
    assert pins_of(load_content(suite), "1" * 64) == pins
    data.write_text(data.read_text().replace("Text ", "A text "))
    assert pins_of(load_content(suite), "1" * 64).documents != pins.documents
    pinned = suite.model_copy(update={"pins": pins})
    with pytest.raises(InputError, match=r"student 'micro-student' has the digest 222222222222"):
        check_pins(pinned, pins.model_copy(update={"student": "2" * 64}))
    with pytest.raises(InputError, match="retention probes are changed"):
        check_pins(pinned, pins.model_copy(update={"probes": "2" * 64}))


def test_pinning_keeps_the_file_as_it_was_written_and_can_be_repeated(tmp_path: Path) -> None:
    path = small_suite(tmp_path, pin=False)
    written = path.read_text(encoding="utf-8")
    suite = load_suite(path)
    pins = pins_of(load_content(suite), "a" * 64)
    for _ in range(2):
        write_pins(path, pins)
        text = path.read_text(encoding="utf-8")
        assert text.startswith(written.rstrip())
        assert text.count("pins:") == 1
    assert load_suite(path).pins == pins
    assert yaml.safe_load(text)["pins"]["student"] == "a" * 64


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"groups": {"a": ["test-0-0000"], "b": ["test-0-0000"]}}, "listed twice"),
        ({"limits": {"tolerance": 0.5}}, "tolerance must be below detectable"),
        ({"unknown": 1}, "unknown"),
        ({"probes": -1}, "probes"),
        ({"adaptation": {"edits": 2}}, "adaptation.teacher"),
    ],
    ids=["group", "limits", "unknown", "range", "adaptation"],
)
def test_mistakes_in_a_suite_are_told(tmp_path: Path, change: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_suite(small_suite(tmp_path, pin=False, **change))


def test_groups_must_name_documents_that_are_there(tmp_path: Path) -> None:
    suite = load_suite(small_suite(tmp_path, pin=False, groups={"a": ["nobody"]}))
    with pytest.raises(ConfigError, match="nobody"):
        load_content(suite)


def test_files_that_are_no_suite_are_refused(tmp_path: Path) -> None:
    for name, text in (("list.yaml", "- 1\n"), ("bad.yaml", "a: [\n")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match=name):
            load_suite(tmp_path / name)
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        load_suite(tmp_path / "none.yaml")


def test_the_shipped_suite_asks_two_facts_of_each_document_in_phrasings_that_rewards_do_not_use() -> None:
    content = load_content(load_suite(SHIPPED))
    assert len(content.tasks) == 80
    for task in content.tasks:
        asked = content.questions[task.id]
        assert len(asked) == 4
        assert len({question.answer for question in asked}) == 2
        assert not {q.phrasing for q in asked} & {q.phrasing for q in task.questions}
