"""The real passages that ship: free, sound, and found from any directory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from evaluation.sources.files import JsonLinesData, load_tasks

PASSAGES = Path("configs/examples/real/passages.jsonl")


def holds(text: str, answer: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text) is not None


def test_passages_ship_with_questions_that_only_they_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tasks = load_tasks(JsonLinesData(path=PASSAGES))
    assert len(tasks) >= 72
    assert len({task.document.digest for task in tasks}) == len({task.document.title for task in tasks}) == len(tasks)
    asked = [question.question for task in tasks for question in (*task.questions, *task.held_out_questions)]
    assert len(set(asked)) == len(asked)
    for task in tasks:
        assert task.document.source.endswith("public domain")
        assert 40 <= len(task.document.text.split()) <= 110
        assert min(len(task.questions), len(task.held_out_questions)) >= 4
        for question in (*task.questions, *task.held_out_questions):
            assert holds(task.document.text, question.answer), question
            assert len(question.answer.split()) <= 5
            assert not holds(question.question.lower(), question.answer.lower()), question
