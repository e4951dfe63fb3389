"""Retention probes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.common.errors import InputError
from evaluation.domains import DataConfig
from evaluation.microworld.world import ENTITY_KINDS, PHRASINGS, MicroworldData, ask, known_facts, microworld_split
from evaluation.retention import general_questions, rehearsal_questions, retention_probes
from evaluation.sources.files import JsonLinesData

STRATUM = {ask(f, PHRASINGS[0]): (side, f.kind) for side, facts in enumerate(known_facts()) for f in facts}
"""Every question that may be a probe in the micro-world, with its side and kind."""


def of_file(path: Path) -> JsonLinesData:
    return JsonLinesData(path="documents.jsonl", retention_path=path)


def write(path: Path, content: str | bytes) -> JsonLinesData:
    path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    return of_file(path)


def line(question: str, answer: str) -> str:
    return json.dumps({"question": question, "answer": answer}, ensure_ascii=False)


def refusal(data: DataConfig, count: int = 5) -> str:
    with pytest.raises(InputError) as caught:
        retention_probes(data, count, 0)
    return str(caught.value)


# The micro-world


@settings(deadline=None, max_examples=40)
@given(count=st.integers(0, len(STRATUM) + 3), seed=st.integers(0, 2**32 - 1))
def test_probes_of_the_micro_world_are_known_facts_spread_evenly(count: int, seed: int) -> None:
    probes = retention_probes(MicroworldData(), count, seed)
    assert len(probes) == len(set(probes)) == min(count, len(STRATUM))
    strata = Counter(STRATUM[probe] for probe in probes)
    sizes = Counter(STRATUM.values())
    turns = max(strata.values(), default=0)
    # Each stratum has had as many turns as the fullest, or one less, or has nothing left.
    assert all(strata[stratum] >= min(turns - 1, size) for stratum, size in sizes.items())
    assert probes == retention_probes(MicroworldData(), count, seed)
    assert probes[: count // 2] == retention_probes(MicroworldData(), count // 2, seed)


def test_probes_of_the_micro_world_ask_both_sides_and_every_kind_and_follow_the_seed() -> None:
    probes = retention_probes(MicroworldData(), 24, 0)
    each = 24 // (2 * len(ENTITY_KINDS))
    assert Counter(STRATUM[probe] for probe in probes) == {
        (side, kind): each for side in (0, 1) for kind in ENTITY_KINDS
    }
    assert set(probes) != set(retention_probes(MicroworldData(), 24, 1))
    assert {probe.phrasing for probe in probes} == {PHRASINGS[0]}


def test_probes_of_the_micro_world_are_about_no_document_of_a_run() -> None:
    data = MicroworldData()
    names = {name for side in microworld_split(data) for task in side for name in task.document.entities}
    assert not any(name in probe.question for probe in retention_probes(data, 200, 0) for name in names)


# Files


def test_probes_of_other_data_come_from_a_file_and_without_one_there_are_none(tmp_path: Path) -> None:
    data = write(tmp_path / "probes.jsonl", line("Q1?", "a") + "\n\n" + line("Q2?", "b") + "\n")
    assert {probe.answer for probe in retention_probes(data, 5, 0)} == {"a", "b"}
    assert len(retention_probes(data, 1, 0)) == 1
    assert retention_probes(JsonLinesData(path=tmp_path / "probes.jsonl"), 5, 0) == ()
    assert retention_probes(of_file(tmp_path / "missing"), 0, 0) == ()  # not opened


def test_probes_of_a_file_are_chosen_by_the_seed_and_a_smaller_count_is_a_beginning(tmp_path: Path) -> None:
    data = write(tmp_path / "probes.jsonl", "\n".join(line(f"Q{i}?", str(i)) for i in range(30)))
    whole = retention_probes(data, 30, 3)
    assert sorted(int(probe.answer) for probe in whole) == list(range(30))
    assert retention_probes(data, 7, 3) == whole[:7]
    assert retention_probes(data, 7, 4) != whole[:7]


def test_all_bad_lines_are_refused_in_one_message_with_file_line_and_reason(tmp_path: Path) -> None:
    path = tmp_path / "probes.jsonl"
    lines = [line("Q1?", "a"), "not json", '{"question": "Q3?"}', "", line("Q5?", " "), '["Q6?", "a"]']
    lines += ['{"question": "Q7?", "answer": "a", "text": "t"}']
    _, *listed, _ = refusal(write(path, "\n".join(lines))).splitlines()
    reasons = {
        2: "broken JSON",
        3: "answer is missing",
        5: "answer is only white space",
        6: "must be a valid dictionary or instance of QuestionRow",
        7: "text is an unknown key (allowed: question, answer)",
    }
    for found, (number, reason) in zip(sorted(listed), reasons.items(), strict=True):
        assert found.startswith(f"  {path}: line {number}: {reason}")


@pytest.mark.parametrize("name", ["missing.jsonl", "."])
def test_file_that_cannot_be_read_is_refused_by_its_path_and_setting(tmp_path: Path, name: str) -> None:
    message = refusal(of_file(tmp_path / name))
    assert str(tmp_path / name) in message
    assert "data.retention_path" in message


# Rehearsal


def test_micro_world_is_rehearsed_in_other_words_than_the_probes() -> None:
    probes = retention_probes(MicroworldData(), 40, 3)
    rehearsed = rehearsal_questions(MicroworldData(), 40, 3, probes=40)
    assert len(rehearsed) == 40
    assert [question.answer for question in rehearsed] == [question.answer for question in probes]
    everything = rehearsal_questions(MicroworldData(), 10_000, 3, probes=40)
    assert not {question.question for question in everything} & {question.question for question in probes}
    assert everything[:40] == rehearsed
    assert rehearsal_questions(MicroworldData(), 0, 3, probes=40) == ()


def test_file_is_rehearsed_without_its_probes(tmp_path: Path) -> None:
    data = write(tmp_path / "known.jsonl", "\n".join(line(f"Who is {i}?", str(i)) for i in range(10)))
    probes, rehearsed = retention_probes(data, 4, 1), rehearsal_questions(data, 3, 1, probes=4)
    assert len(rehearsed) == 3
    assert not set(probes) & set(rehearsed)
    assert len(rehearsal_questions(data, 99, 1, probes=4)) == 6
    assert rehearsal_questions(data, 0, 1, probes=4) == ()


def test_without_data_the_shipped_questions_are_split_into_probes_and_rehearsal() -> None:
    probes, rehearsed = retention_probes(None, 76, 1), rehearsal_questions(None, 99, 1, probes=76)
    assert (len(probes), len(rehearsed)) == (76, 76)
    assert {*probes, *rehearsed} == {*general_questions()}
    assert probes[:9] == retention_probes(None, 9, 1) != retention_probes(None, 9, 2)
