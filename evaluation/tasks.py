"""What is to be learned: documents, questions, the tasks made of them, and what a domain of tasks decides."""

from __future__ import annotations

import itertools
import random
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from pydantic import Field, field_validator

from evaluation.common.data import Frozen, digest_json
from evaluation.common.errors import InputError


class Question(Frozen):
    """A question about a document, with the gold answer that a student must give without seeing the document."""

    question: str = Field(min_length=1)
    """The question as asked, without any prompt around it."""
    answer: str = Field(min_length=1)
    """The gold answer; exact match means these very tokens."""
    phrasing: str = ""
    """Name of the question's template where the world has templates; rewards and final scores use disjoint ones."""

    @field_validator("question", "answer")
    @classmethod
    def _not_blank(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must contain more than white space")
        return value


class Document(Frozen):
    """A text with an id, a title and a source. Two documents with the same title and text have the same digest."""

    id: str = Field(min_length=1)
    """Unique within a data set."""
    text: str = Field(min_length=1)
    """The passage that the teacher reads."""
    title: str = ""
    """Shown to the teacher above the passage when it is not empty."""
    source: str = ""
    """Where the document came from: a file and line, a data set and row, or the micro-world's seed."""
    entities: tuple[str, ...] = ()
    """Names of what the document is about, where known; splits keep them disjoint."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of title and text (64 hex digits)."""
        return digest_json({"title": self.title, "text": self.text})


class KnowledgeTask(Frozen):
    """One adaptation problem: learn a document, then answer questions about it with the document out of sight."""

    document: Document
    questions: tuple[Question, ...] = Field(min_length=1)
    """Asked after an update to give its reward; never shown to the teacher."""
    held_out_questions: tuple[Question, ...] = ()
    """Asked only in comparisons: other phrasings than the rewards use. Empty: `questions` are asked there too."""
    domain: str = "knowledge"
    """Name of its domain, a key of `evaluation.domains.DOMAINS`."""
    group: str = ""
    """Group of tasks for which reports break accuracy down, such as a family of rules; empty for none."""

    @property
    def id(self) -> str:
        """The document's id."""
        return self.document.id

    @property
    def comparison_questions(self) -> tuple[Question, ...]:
        """The questions that comparisons ask: the held-out phrasings where the task has them."""
        return self.held_out_questions or self.questions

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the document's digest and of all questions with their answers."""
        asked = [[q.question, q.answer] for q in self.questions]
        held_out = [[q.question, q.answer] for q in self.held_out_questions]
        return digest_json({"document": self.document.digest, "questions": asked, "held_out": held_out})


LossOn = Literal["all", "answer", "outputs"]
"""Tokens that carry loss: all of a sequence, those of its answer, or those of its answer and of `Line.outputs`."""


class Line(NamedTuple):
    """One text to train on."""

    text: str
    """A statement, or a question."""
    answer: str | None = None
    """Answer to the question; None for a statement."""
    outputs: tuple[tuple[int, int], ...] = ()
    """Spans of `text` (first character, one after the last) that carry loss under `loss_on: outputs`."""


class Expansion(NamedTuple):
    """Training data of an update."""

    lines: tuple[Line, ...]
    note: str = ""
    """For the record of a successful update, such as how many examples were left out; empty for nothing."""


class Verdicts(NamedTuple):
    """A domain's own grades, one for each question."""

    correct: tuple[bool, ...]
    partial: tuple[float, ...]
    """Share of an answer that is right, in [0, 1]."""


class Edit(Protocol):
    """A parsed self-edit (`teacher.self_edit.SelfEdit`)."""

    @property
    def implications(self) -> Sequence[Any]:
        """Lines with `text` and `answer`."""

    @property
    def augmentations(self) -> Any:
        """Specification of the training data, or None."""

    @property
    def training(self) -> Any:
        """Hyperparameters of the update, or None."""


def specifications(space: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Yield every combination of values by field, the last field varying fastest: one specification each."""
    for values in itertools.product(*space.values()):
        yield dict(zip(space, values, strict=True))


def lines_of(edit: Edit) -> tuple[Line, ...]:
    """Return the implications of a self-edit as lines to train on."""
    return tuple(Line(line.text, line.answer) for line in edit.implications)


class DataSplit(Frozen):
    """Base of every `data` section: how the documents are divided; what is left over is for training."""

    domain: ClassVar[str] = "knowledge"
    """Name of the domain whose tasks it loads."""
    development_documents: int = Field(default=20, ge=0)
    """Documents to make choices on, at least 0."""
    test_documents: int = Field(default=50, ge=1)
    """Documents to compare variants on, at least 1."""
    split_seed: int = Field(default=0, ge=0)
    """Seed of the split, at least 0; the same documents and seed give the same split."""


class Split(NamedTuple):
    """Tasks for three purposes, disjoint by document."""

    train: tuple[KnowledgeTask, ...]
    """Rewards on these teach the teacher."""
    development: tuple[KnowledgeTask, ...]
    """Choices (the best fixed kind, a checkpoint) are made on these."""
    test: tuple[KnowledgeTask, ...]
    """Comparisons are made on these, once."""


class Domain(ABC):
    """A kind of tasks: how they are loaded, shown, turned into training data and graded.

    To add one, subclass this in a module of its own and import the instance in `evaluation.domains`
    (docs/extending.md).
    """

    name: str
    """Key in `DOMAINS`, and `KnowledgeTask.domain` of its tasks."""
    sections: tuple[type[DataSplit], ...]
    """Classes of the `data` section, told apart by `type`; each names this domain."""
    prompts: Mapping[str, str] = MappingProxyType({})
    """Further prompt templates by name (`teacher.prompts`)."""
    baselines: frozenset[str] = frozenset({"null_edit", "other_document"})
    """Controls that make sense, and `specs` where every specification of a space can be tried."""
    grades: bool = False
    """Whether `grade` decides, under `grading.grader: {type: domain}`."""
    spec_alone: bool = False
    """A specification in a self-edit stands alone: lines beside it are reasoning, and parsing drops them."""
    shows_document: bool = False
    """Each question, and each line of an expanded specification, is as long as the document; for cost estimates."""

    @abstractmethod
    def load(self, data: Any) -> Split:
        """Return the tasks of one of `sections`, divided.

        Raises:
            InputError: The source cannot be read, has mistakes or too few tasks; the message lists all reasons.
        """

    def render(self, task: KnowledgeTask) -> Document:
        """Return what the teacher reads of a task, never a question."""
        return task.document

    def expand(self, task: KnowledgeTask, edit: Edit, seed: int) -> Expansion:
        """Return what a student trains on to take in a self-edit of a task; `seed` decides all that is random."""
        return Expansion(lines_of(edit))

    def count_lines(self, data: Any, augmentations: Any) -> int | None:
        """Return the most lines that `expand` makes of a task; None: one for each line of a self-edit."""
        return None

    def answer_in(self, text: str) -> str:
        """Return the answer in a student's output."""
        return text.strip()

    def grade(self, questions: Sequence[Question], answers: Sequence[str]) -> Verdicts:
        """Return verdicts on the answers to all questions that a task asks at once."""
        raise NotImplementedError(f"{self.name}: grades nothing itself")

    def check(self, data: Any, grader: str | None, baselines: Collection[str]) -> None:
        """Refuse a configuration that asks for what the domain does not have.

        Args:
            data: The `data` section.
            grader: `grading.grader.type`; None where exact match decides.
            baselines: Controls of the comparison, and `specs`.

        Raises:
            ValueError: Something does not fit together.
        """
        if grader == "domain" and not self.grades:
            raise ValueError(
                f"grading.grader: type domain is for domains with grades of their own, got data.type {data.type!r}"
            )
        needless = sorted(set(baselines) - self.baselines)
        if needless:
            raise ValueError(
                f"comparison: got {needless}, which make no sense for data.type {data.type!r}; allowed of controls "
                f"and specs are {sorted(self.baselines)}"
            )


def split_tasks(tasks: Sequence[KnowledgeTask], *, development: int, test: int, seed: int) -> Split:
    """Return a seeded split by document; what is left after `development` and `test` is for training.

    Tasks whose documents have the same text, or share an entity, never end up on different sides.

    Args:
        tasks: At least `development + test + 1` tasks.
        development: Number of documents to choose on, at least 0.
        test: Number of documents to compare on, at least 1.
        seed: Of the shuffle.

    Raises:
        InputError: There are too few documents, or groups that must stay together do not fit.
    """
    if len(tasks) < development + test + 1:
        raise InputError(
            f"split: got {len(tasks)} documents, need at least {development + test + 1} "
            f"({development} for development, {test} for test, 1 for training). "
            "Give more documents or lower data.development_documents or data.test_documents."
        )
    groups = _connected_groups(tasks)
    random.Random(seed).shuffle(groups)
    sides: dict[str, list[KnowledgeTask]] = {"test": [], "development": [], "train": []}
    wanted = {"test": test, "development": development}
    for group in groups:
        side = next((name for name, n in wanted.items() if len(sides[name]) + len(group) <= n), "train")
        sides[side].extend(group)
    for name, n in wanted.items():
        if len(sides[name]) < n:
            raise InputError(
                f"split: only {len(sides[name])} of {n} {name} documents could be chosen, because documents with the "
                "same text or entities stay together. Give more independent documents."
            )
    return Split(train=tuple(sides["train"]), development=tuple(sides["development"]), test=tuple(sides["test"]))


def _connected_groups(tasks: Sequence[KnowledgeTask]) -> list[list[KnowledgeTask]]:
    """Return the tasks grouped so that equal texts and documents with a common entity are in one group."""
    parent = list(range(len(tasks)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first_with: dict[str, int] = {}
    for i, task in enumerate(tasks):
        for mark in (f"text:{task.document.text}", *(f"entity:{name}" for name in task.document.entities)):
            parent[root(i)] = root(first_with.setdefault(mark, i))
    groups: dict[int, list[KnowledgeTask]] = {}
    for i, task in enumerate(tasks):
        groups.setdefault(root(i), []).append(task)
    return list(groups.values())
