"""Retention probes."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.data_config import JsonLinesData, MicroworldData
from evaluation.errors import InputError
from evaluation.microworld.corpora import known_facts
from evaluation.retention import retention_probes


def test_probes_of_the_micro_world_are_about_what_the_student_knew() -> None:
    probes = retention_probes(MicroworldData(), 24, 0)
    assert len({probe.question for probe in probes}) == 24
    names = {fact.name for side in known_facts() for fact in side}
    assert all(any(name in probe.question for name in names) for probe in probes)
    assert probes == retention_probes(MicroworldData(), 24, 0) != retention_probes(MicroworldData(), 24, 1)
    assert retention_probes(MicroworldData(), 0, 0) == ()


def test_probes_of_other_data_come_from_a_file_and_without_one_there_are_none(tmp_path: Path) -> None:
    path = tmp_path / "probes.jsonl"
    path.write_text('{"question": "Q1?", "answer": "a"}\n\n{"question": "Q2?", "answer": "b"}\n', encoding="utf-8")
    data = JsonLinesData(path=tmp_path / "documents.jsonl", retention_path=path)
    assert {probe.answer for probe in retention_probes(data, 5, 0)} == {"a", "b"}
    assert len(retention_probes(data, 1, 0)) == 1
    assert retention_probes(JsonLinesData(path=path), 5, 0) == ()


def test_bad_lines_are_refused_with_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "probes.jsonl"
    path.write_text('{"question": "Q1?", "answer": "a"}\nnot json\n{"question": "Q2?"}\n', encoding="utf-8")
    data = JsonLinesData(path=path, retention_path=path)
    with pytest.raises(InputError, match=r"(?s)2.*3"):
        retention_probes(data, 5, 0)
