"""What is to be learned: documents, questions and the tasks made of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator

from evaluation.digests import digest_json
from evaluation.errors import InputError
from evaluation.grids.tasks import GridTask


class Question(BaseModel):
    """A question about a document, with the gold answer that a student must give without seeing the document."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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


class Document(BaseModel):
    """A text with an id, a title and a source. Two documents with the same title and text have the same digest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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


class KnowledgeTask(BaseModel):
    """One adaptation problem: learn a document, then answer questions about it with the document out of sight."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    document: Document
    questions: tuple[Question, ...] = Field(min_length=1)
    """Asked after an update to give its reward; never shown to the teacher."""
    held_out_questions: tuple[Question, ...] = ()
    """Asked only in comparisons: other phrasings than the rewards use. Empty: `questions` are asked there too."""
    puzzle: GridTask | None = None
    """The grid puzzle that the document shows and the questions ask for; None where the document is a text."""

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


class Split(NamedTuple):
    """Tasks for three purposes, disjoint by document."""

    train: tuple[KnowledgeTask, ...]
    """Rewards on these teach the teacher."""
    development: tuple[KnowledgeTask, ...]
    """Choices (the best fixed kind, a checkpoint) are made on these."""
    test: tuple[KnowledgeTask, ...]
    """Comparisons are made on these, once."""


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
