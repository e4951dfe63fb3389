"""Small inputs for the loaders' tests, and what comes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evaluation.data_config import JsonLinesData, LoadedData, SquadData
from evaluation.errors import InputError
from evaluation.loaders import load_tasks
from evaluation.tasks import KnowledgeTask

QUESTIONS = [{"question": "Who?", "answer": "Ada"}]


def row(**changes: Any) -> dict[str, Any]:
    return {"text": "Ada wrote a program.", "questions": QUESTIONS} | changes


def write_lines(path: Path, *lines: object) -> JsonLinesData:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_bytes("\n".join(texts).encode("utf-8", "surrogatepass"))
    return JsonLinesData(path=path)


def write_squad(path: Path, value: object) -> SquadData:
    path.write_text(json.dumps(value))
    return SquadData(path=path)


def refusal(config: LoadedData) -> str:
    with pytest.raises(InputError) as caught:
        load_tasks(config)
    return str(caught.value)


def pairs(task: KnowledgeTask) -> list[tuple[str, str]]:
    return [(question.question, question.answer) for question in task.questions]


def official(*paragraphs: object, title: str = "Ada") -> dict[str, Any]:
    return {"version": "1.1", "data": [{"title": title, "paragraphs": list(paragraphs)}]}


def paragraph(context: str, *asked: tuple[str, list[str]]) -> dict[str, Any]:
    qas = [
        {"question": q, "id": f"q{i}", "answers": [{"text": text, "answer_start": 0} for text in answers]}
        for i, (q, answers) in enumerate(asked)
    ]
    return {"context": context, "qas": qas}
