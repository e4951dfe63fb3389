"""Documents, questions, tasks and their splits, and the interface of a task domain."""

from __future__ import annotations

import itertools
import random
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from pydantic import Field

from evaluation.common.data import Frozen, digest_json
from evaluation.common.errors import InputError

CONTINUATION = "continuation"
"""Phrasing of a text whose next sentence is the answer: put without a template, and scored by its probability."""

PARAPHRASES = ("Answer briefly. {question}", "Can you tell me: {question}", "{question} (short answer)")
"""Further phrasings of a question, for what a student knows however it is asked; `{question}` is the question."""


class Question(Frozen):
    """A closed-book question about a document with its gold answer."""

    question: str = Field(pattern=r"\S")
    """Without a prompt; not blank."""
    answer: str = Field(pattern=r"\S")
    """Exact match compares its tokens; not blank."""
    phrasing: str = ""
    """Name of the question's template, if any; rewards and comparisons use disjoint ones."""
    paraphrases: tuple[str, ...] | None = None
    """The question in other words; None puts it into `PARAPHRASES`, empty leaves it alone, such as a grid."""

    @property
    def rephrased(self) -> tuple[Question, ...]:
        """Its paraphrases with the same answer; none of a text to continue."""
        texts = self.paraphrases
        if texts is None:
            texts = () if self.is_continuation else tuple(p.format(question=self.question) for p in PARAPHRASES)
        return tuple(Question(question=text, answer=self.answer) for text in texts)

    @property
    def is_continuation(self) -> bool:
        """Whether it is a text to continue, and no question; see `CONTINUATION`."""
        return self.phrasing == CONTINUATION


class Document(Frozen):
    """A text with an id, a title and a source."""

    id: str = Field(min_length=1)
    """Unique within a data set."""
    text: str = Field(min_length=1)
    title: str = ""
    """Shown to the teacher above the passage, unless empty."""
    source: str = ""
    """Provenance, such as file and line."""
    entities: tuple[str, ...] = ()
    """Entities of the document, if known; splits keep them disjoint."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of title and text (64 hex digits)."""
        return digest_json({"title": self.title, "text": self.text})


class KnowledgeTask(Frozen):
    """One adaptation problem: learn a document, then answer closed-book questions about it."""

    document: Document
    questions: tuple[Question, ...]
    """For rewards; never shown to the teacher. Empty for a document that is looked up and not learned."""
    held_out_questions: tuple[Question, ...] = ()
    """For comparisons; if empty, `questions` are used."""
    domain: str = "knowledge"
    """Key of `evaluation.domains.DOMAINS`."""
    group: str = ""
    """Group for reports, such as a family of rules; empty for none."""

    @property
    def id(self) -> str:
        """The document's id."""
        return self.document.id

    @property
    def comparison_questions(self) -> tuple[Question, ...]:
        """The questions of comparisons: held-out ones, if any."""
        return self.held_out_questions or self.questions

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the document's digest and of all questions with their answers."""
        sets = {"questions": self.questions, "held_out": self.held_out_questions}
        asked = {name: [[q.question, q.answer] for q in questions] for name, questions in sets.items()}
        return digest_json({"document": self.document.digest, **asked})


LossOn = Literal["all", "answer", "outputs"]
"""Tokens with loss: the whole sequence, the answer, or the answer and `Line.outputs`."""


class Line(NamedTuple):
    """A training text."""

    text: str
    """A statement, or a question."""
    answer: str | None = None
    """Answer to the question; None for a statement."""
    outputs: tuple[tuple[int, int], ...] = ()
    """Character spans (start, end) of `text` with loss under `loss_on: outputs`."""


class Expansion(NamedTuple):
    """Training data of an update."""

    lines: tuple[Line, ...]
    note: str = ""
    """For the record of the update, such as the number of dropped examples; may be empty."""


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
    """Yield every combination of values by field, the last field varying fastest."""
    for values in itertools.product(*space.values()):
        yield dict(zip(space, values, strict=True))


def lines_of(edit: Edit) -> tuple[Line, ...]:
    """Return the implications of a self-edit as training lines."""
    return tuple(Line(line.text, line.answer) for line in edit.implications)


class DataSplit(Frozen):
    """Base of every `data` section; the remaining documents are for training."""

    domain: ClassVar[str] = "knowledge"
    """Domain of its tasks."""
    development_documents: int = Field(default=20, ge=0)
    """Development documents, at least 0."""
    test_documents: int = Field(default=50, ge=1)
    """Test documents, at least 1."""
    split_seed: int = Field(default=0, ge=0)
    """At least 0; the same documents and seed give the same split."""


class Split(NamedTuple):
    """Tasks, disjoint by document."""

    train: tuple[KnowledgeTask, ...]
    """For rewards."""
    development: tuple[KnowledgeTask, ...]
    """For model selection."""
    test: tuple[KnowledgeTask, ...]
    """For comparisons."""


class Domain(ABC):
    """A kind of tasks: loading, rendering, expansion to training data, grading.

    To add one, subclass this in its own module and import the instance in `evaluation.domains` (docs/extending.md).
    """

    name: str
    """Key in `DOMAINS`, and `KnowledgeTask.domain` of its tasks."""
    sections: tuple[type[DataSplit], ...]
    """Classes of the `data` section, discriminated by `type`."""
    prompts: Mapping[str, str] = MappingProxyType({})
    """Additional prompt templates by name (`teacher.prompts`)."""
    baselines: frozenset[str] = frozenset({"null_edit", "other_document"})
    """Supported controls, `specs` for exhaustive search over specifications, and what puts passages in contexts."""
    grades: bool = False
    """Supports `grading.grader: {type: domain}`."""
    spec_alone: bool = False
    """Lines beside a specification are reasoning, which parsing drops."""
    shows_document: bool = False
    """Questions and expanded lines contain the document; for cost estimates."""

    @abstractmethod
    def load(self, data: Any) -> Split:
        """Return the tasks of one of `sections`, split; InputError with all reasons if that is impossible."""

    def render(self, task: KnowledgeTask) -> Document:
        """Return the document shown to the teacher, without questions."""
        return task.document

    def expand(self, task: KnowledgeTask, edit: Edit, seed: int) -> Expansion:
        """Return the training data of a self-edit, deterministic given `seed`."""
        return Expansion(lines_of(edit))

    def count_lines(self, data: Any, augmentations: Any) -> int | None:
        """Return the maximum number of lines of `expand`; None is one per line of a self-edit."""
        return None

    def answer_in(self, text: str) -> str:
        """Return the answer in a student's output."""
        return text.strip()

    def grade(self, questions: Sequence[Question], answers: Sequence[str]) -> tuple[bool, ...]:
        """Return for each answer of a task whether it is correct."""
        raise NotImplementedError(f"{self.name}: has no grader")

    def check(self, data: Any, grader: str | None, baselines: Collection[str]) -> None:
        """Raise ValueError for a grader (None is exact match) or baselines that the domain does not support."""
        if grader == "domain" and not self.grades:
            raise ValueError(
                f"grading.grader: type domain is for domains with grades of their own, got data.type {data.type!r}"
            )
        if needless := sorted(set(baselines) - self.baselines):
            raise ValueError(
                f"comparison: got {needless}, which make no sense for data.type {data.type!r}; allowed of these are "
                f"{sorted(self.baselines)}"
            )


def split_tasks(tasks: Sequence[KnowledgeTask], *, development: int, test: int, seed: int) -> Split:
    """Return a seeded split by document; documents with the same text or a common entity are never separated.

    Raises:
        InputError: There are fewer than `development + test + 1` documents, or connected groups do not fit.
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
    return Split(**{name: tuple(side) for name, side in sides.items()})


def _connected_groups(tasks: Sequence[KnowledgeTask]) -> list[list[KnowledgeTask]]:
    """Return connected components by equal text or common entity."""
    from scipy.cluster.hierarchy import DisjointSet  # takes a second

    connected = DisjointSet(range(len(tasks)))
    first_with: dict[tuple[str, str], int] = {}
    for i, task in enumerate(tasks):
        for mark in (("text", task.document.text), *(("entity", name) for name in task.document.entities)):
            connected.merge(i, first_with.setdefault(mark, i))
    groups: dict[int, list[KnowledgeTask]] = {}
    for i, task in enumerate(tasks):
        groups.setdefault(connected[i], []).append(task)
    return list(groups.values())
