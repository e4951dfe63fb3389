"""The registry of domains, and that a new one is a module and a line."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from pydantic import TypeAdapter, ValidationError

from evaluation import domains
from evaluation.domains import DOMAINS, DataConfig, domain_of, load_split
from evaluation.microworld.world import MicroworldData
from evaluation.sources.files import HuggingFaceData, JsonLinesData, SquadData
from evaluation.tasks import (
    DataSplit,
    Document,
    Domain,
    Edit,
    Expansion,
    KnowledgeTask,
    Line,
    Question,
    Split,
    split_tasks,
)
from teacher.self_edit import Implication, SelfEdit, TrainingSpec
from tests.evaluation.factories import row, write_lines


class SumsData(DataSplit):
    domain: ClassVar[str] = "sums"
    type: Literal["sums"] = "sums"
    count: int = 9


class Sums(Domain):
    """Sums of two digits; a specification stands for drills on all of them."""

    name = "sums"
    sections = (SumsData,)
    prompts: Mapping[str, str] = {"sums": "Sums: {passage}\n"}
    grades = True

    def load(self, data: SumsData) -> Split:
        tasks = [
            KnowledgeTask(
                document=Document(id=str(n), text=f"sums with {n}"),
                questions=(Question(question=f"{n} + {n} =", answer=str(2 * n)),),
                domain=self.name,
            )
            for n in range(data.count)
        ]
        return split_tasks(
            tasks, development=data.development_documents, test=data.test_documents, seed=data.split_seed
        )

    def expand(self, task: KnowledgeTask, edit: Edit, seed: int) -> Expansion:
        if edit.training is None:
            return super().expand(task, edit, seed)
        n = int(task.id)
        return Expansion(tuple(Line(f"{n} + {m} =", str(n + m)) for m in range(3)), "three drills")

    def grade(self, questions: Sequence[Question], answers: Sequence[str]) -> tuple[bool, ...]:
        return tuple(q.answer == a for q, a in zip(questions, answers, strict=True))


def test_a_new_domain_is_its_module_and_one_import() -> None:
    extended: dict[str, Any] = {"SUMS": Sums(), "__name__": "extended"}  # as if the registry's module imported SUMS
    exec(compile(inspect.getsource(domains), "extended", "exec"), extended)
    data = TypeAdapter(extended["DataConfig"]).validate_python(
        {"type": "sums", "development_documents": 2, "test_documents": 3}
    )
    domain, split = extended["domain_of"](data), extended["load_split"](data)
    assert list(map(len, split)) == [4, 2, 3]
    task = split.train[0]
    assert extended["domain_of"](task) is domain is extended["DOMAINS"]["sums"]
    assert domain.render(task) == task.document
    assert domain.expand(task, SelfEdit(training=TrainingSpec(epochs=1)), 0).note == "three drills"
    assert domain.expand(task, SelfEdit(implications=(Implication(text="a"),)), 0).lines == (Line("a"),)
    assert domain.grade(task.questions, [task.questions[0].answer]) == (True,)
    domain.check(data, "domain", {"null_edit"})
    with pytest.raises(ValueError, match=r"got \['oracle', 'specs'\]"):
        domain.check(data, "domain", {"oracle", "specs"})


def test_sections_are_told_apart_by_type_and_name_their_domain() -> None:
    adapter: TypeAdapter[DataConfig] = TypeAdapter(DataConfig)
    for name, domain in DOMAINS.items():
        assert domain.name == name
        assert all(section.domain == name for section in domain.sections)
    found = adapter.validate_python({"type": "microworld", "split_seed": 3})
    assert found == MicroworldData(split_seed=3)
    with pytest.raises(ValidationError, match="'microgrids'"):
        adapter.validate_python({"type": "sums"})


def test_knowledge_trains_on_what_is_written_and_leaves_grading_to_graders() -> None:
    data = MicroworldData(train_documents=2, development_documents=1, test_documents=2)
    task, knowledge = load_split(data).train[0], domain_of(data)
    assert domain_of(task) is knowledge
    lines = (Implication(text="A is b."), Implication(text="What is A?", answer="b"))
    assert knowledge.expand(task, SelfEdit(implications=lines, training=TrainingSpec(epochs=1)), 0) == (
        (Line("A is b."), Line("What is A?", "b")),
        "",
    )
    assert knowledge.answer_in("\n b \nQuestion: c") == "b"
    knowledge.check(data, "judge", {"oracle", "equal_tokens"})
    with pytest.raises(ValueError, match=r"grading\.grader: type domain"):
        knowledge.check(data, "domain", set())
    with pytest.raises(ValueError, match="specs"):
        knowledge.check(data, None, {"specs"})


def test_load_split_of_a_file_divides_by_the_configuration(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", *(row(id=str(i), text=f"Text {i}.") for i in range(9))).path
    split = load_split(JsonLinesData(path=path, development_documents=2, test_documents=3, split_seed=1))
    assert [len(side) for side in split] == [4, 2, 3]
    assert {task.id for side in split for task in side} == set(map(str, range(9)))


ADAPTER: TypeAdapter[DataConfig] = TypeAdapter(DataConfig)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"type": "jsonl", "path": "d.jsonl"}, JsonLinesData),
        ({"type": "squad", "path": "d.json", "max_documents": 200}, SquadData),
        (
            {"type": "huggingface", "path": "org/name", "columns": {"question": "q", "answer": "a"}, "split_seed": 3},
            HuggingFaceData,
        ),
    ],
)
def test_data_config_type_chooses_the_variant(section: dict[str, Any], expected: type) -> None:
    config = ADAPTER.validate_python(section)
    assert type(config) is expected
    assert ADAPTER.validate_json(ADAPTER.dump_json(config)) == config
    assert ADAPTER.validate_python(config.model_dump()) == config


@pytest.mark.parametrize(
    "section",
    [
        {"path": "d.jsonl"},
        {"type": "csv", "path": "d"},
        {"type": "jsonl"},
        {"type": "jsonl", "path": "d", "max_documents": 3},
        {"type": "jsonl", "path": "d", "test_documents": 0},
        {"type": "jsonl", "path": "d", "development_documents": -1},
        {"type": "squad", "path": "d", "max_documents": 0},
        {"type": "huggingface", "path": "p"},
        {"type": "huggingface", "path": "p", "columns": {"question": "q"}},
        {"type": "huggingface", "path": "p", "columns": {"answer": "a"}},
        {"type": "huggingface", "path": "p", "columns": {"text": "t"}},
        {"type": "huggingface", "path": "p", "columns": {"question": "q", "answer": "a", "questions": "qs"}},
        {"type": "huggingface", "path": "p", "columns": {"question": "q", "questions": "qs"}},
    ],
)
def test_data_config_refuses(section: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(section)
