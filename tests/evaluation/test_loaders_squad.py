from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from evaluation.data_config import SquadData
from evaluation.loaders import load_tasks
from evaluation.tasks import split_tasks
from tests.evaluation.loader_inputs import QUESTIONS, official, pairs, paragraph, refusal, write_squad


def test_squad_official_and_regrouped_forms_give_the_same_tasks(tmp_path: Path) -> None:
    nested = official(
        paragraph("One.", ("Who?", ["Ada", "Ada L."]), ("When?", ["1843"])), paragraph("Two.", ("Why?", ["x"]))
    )
    grouped = [
        {
            "title": "Ada",
            "context": "One.",
            "questions": [*QUESTIONS, {"question": "When?", "answer": "1843"}],
        },
        {"title": "Ada", "context": "Two.", "questions": [{"question": "Why?", "answer": "x"}]},
    ]
    first = load_tasks(write_squad(tmp_path / "official.json", nested))
    second = load_tasks(write_squad(tmp_path / "regrouped.json", grouped))
    assert [(task.id, task.digest) for task in first] == [(task.id, task.digest) for task in second]
    assert pairs(first[0]) == [("Who?", "Ada"), ("When?", "1843")]
    assert first[1].document.title == "Ada"
    assert first[1].document.source == f"{tmp_path / 'official.json'}: data[0].paragraphs[1]"


def test_squad_repeated_paragraphs_and_questions_are_kept(tmp_path: Path) -> None:
    again = paragraph("One.", ("Who?", ["Ada"]), ("Who?", ["Ada"]))
    first, second = load_tasks(write_squad(tmp_path / "d.json", official(again, again)))
    assert len(first.questions) == 2
    assert first.document.digest == second.document.digest
    assert second.id == f"{first.id}-2"


def test_squad_official_mistakes_are_listed_by_json_path(tmp_path: Path) -> None:
    value = official(
        paragraph("Fine.", ("Who?", ["Ada"])),
        paragraph("No answer.", ("Who?", ["Ada"]), ("When?", [])),
        {"qas": [{"question": "Q?", "answers": [{"text": "A"}]}]},
        {"context": "", "qas": []},
        "paragraph",
        {"context": "C.", "qas": [{"question": 5, "answers": [{"text": ""}]}, {"answers": "A"}]},
    )
    value["data"] += [{"title": 3, "paragraphs": [paragraph("C.", ("Q?", ["A"]))]}, {"title": "No paragraphs"}]
    config = write_squad(tmp_path / "bad.json", value)
    listed = refusal(config).splitlines()[1:-1]
    assert listed == [
        f"  {config.path}: {text}"
        for text in (
            "data[0].paragraphs[1].qas[1]: answers is empty, must hold at least one item",
            "data[0].paragraphs[2]: context is missing",
            "data[0].paragraphs[3]: context is empty; qas is empty, must hold at least one item",
            "data[0].paragraphs[4]: must be an object, got a string",
            "data[0].paragraphs[5].qas[0]: question must be a string, got a number",
            "data[0].paragraphs[5].qas[0].answers[0]: text is empty",
            "data[0].paragraphs[5].qas[1]: question is missing; answers must be a list, got a string",
            "data[1]: title must be a string, got a number",
            "data[2]: paragraphs is missing",
        )
    ]


def test_squad_regrouped_mistakes_are_listed_by_json_path(tmp_path: Path) -> None:
    good = {"id": "x", "context": "C.", "questions": QUESTIONS}
    value = [good, good, {"title": "T", "questions": [{"question": "Q?"}]}, 7, {"context": "a\0", "questions": []}]
    config = write_squad(tmp_path / "bad.json", value)
    assert refusal(config).splitlines()[1:-1] == [
        f"  {config.path}: {text}"
        for text in (
            "[1]: id 'x' was already given at [0]",
            "[2]: context is missing",
            "[2].questions[0]: answer is missing",
            "[3]: must be an object, got a number",
            "[4]: context holds a NUL character (U+0000); questions is empty, must hold at least one item",
        )
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"data": [', "broken JSON: Expecting value at column 11"),
        (b'[\n{"title":\n}]', "broken JSON: Expecting value at line 3 column 1"),
        (b'[\n{"title": "\xff"}]', "not UTF-8: line 2 byte 12 has 0xff"),
        (b'{"text": "T.", "questions": []}', "not SQuAD: the top level must be"),
        (b'"text"', "not SQuAD: the top level must be"),
        (b"[]", "holds no document"),
        (b'{"data": []}', "top level: data is empty"),
        (b'{"data": {}}', "top level: data must be a list, got an object"),
    ],
)
def test_squad_file_that_is_no_squad_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "d.json"
    path.write_bytes(content)
    message = refusal(SquadData(path=path))
    assert str(path) in message
    assert reason in message


def test_squad_sample_is_seeded_and_keeps_ids(tmp_path: Path) -> None:
    value = official(*(paragraph(f"Text {i}.", ("Q?", [str(i)])) for i in range(20)))
    config = write_squad(tmp_path / "d.json", value)
    everything = load_tasks(config)
    samples = {
        seed: load_tasks(SquadData(path=config.path, max_documents=5, sample_seed=seed)) for seed in (1, 1, 2, 3)
    }
    assert all(len(sample) == 5 and set(sample) <= set(everything) for sample in samples.values())
    assert samples[1] == load_tasks(SquadData(path=config.path, max_documents=5, sample_seed=1))
    assert len(set(samples.values())) == 3
    assert len(load_tasks(SquadData(path=config.path, max_documents=99))) == 20


def test_loading_leaves_the_global_random_state_alone(tmp_path: Path) -> None:
    config = write_squad(tmp_path / "d.json", official(paragraph("C.", ("Q?", ["A"]))))
    before = random.getstate()
    load_tasks(config.model_copy(update={"max_documents": 1}))
    assert random.getstate() == before


def test_squad_development_set_is_read_whole(shared_data: Callable[..., Path]) -> None:
    # 2,067 paragraphs and 10,570 questions: the data's README; SQuAD v1.1's development set has 48 articles
    # (arXiv 1606.05250). The 35 questions asked again about the same paragraph were counted in the raw file.
    tasks = load_tasks(SquadData(path=shared_data("squad", "squad_val.json.gz")))
    assert len(tasks) == 2067
    assert sum(len(task.questions) for task in tasks) == 10_570
    assert len({task.document.title for task in tasks}) == 48
    assert len({task.id for task in tasks}) == len({task.document.digest for task in tasks}) == 2067
    asked = Counter((task.id, question.question) for task in tasks for question in task.questions)
    assert sum(count > 1 for count in asked.values()) == 35


def test_squad_sample_of_200_is_seals_evaluation_set_in_order(shared_data: Callable[..., Path]) -> None:
    recorded = json.loads(gzip.decompress(shared_data("seal", "completions", "base_val.json.gz").read_bytes()))
    config = SquadData(path=shared_data("squad", "squad_val.json.gz"), max_documents=200, sample_seed=42)
    tasks = load_tasks(config)
    assert [task.document.text for task in tasks] == [item["context"] for item in recorded]
    split = split_tasks(tasks, development=20, test=50, seed=config.split_seed)
    assert tuple(map(len, split)) == (130, 20, 50)
