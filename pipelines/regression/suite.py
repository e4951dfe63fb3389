"""A pinned suite: which documents, questions and probes two students are compared on, and what counts as worse.

The file names where the data come from and holds digests of all that they must be. A document or a question that has
changed would make today's verdict about something else than yesterday's, so it is refused, by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from evaluation.answers import AnswerFormat
from evaluation.data_config import DataConfig
from evaluation.digests import digest_json
from evaluation.errors import ConfigError, InputError
from evaluation.retention import retention_probes
from evaluation.splits import load_split
from evaluation.tasks import KnowledgeTask, Question
from pipelines.config import QuestionSet, TrackingConfig
from pipelines.regression.verdict import VerdictConfig

_PINS = "\npins:"
_SHOWN = 5
"""Changed documents that a message names at most."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Pins(_Frozen):
    """What the suite's contents were when it was pinned."""

    student: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the student's weights (`model_digest`)."""
    probes: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of all probes with their answers."""
    documents: dict[str, str] = Field(min_length=1)
    """Document id -> SHA-256 of its text and of the questions asked about it, with their answers."""


class RegressionSuite(_Frozen):
    """The YAML file of a suite."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    """Shown in reports and in MLflow; letters, digits, `_`, `.` and `-`, at most 64."""
    student: str = Field(min_length=1)
    """Base of the students: directory, hub name, or `micro-student`."""
    answer_format: AnswerFormat = AnswerFormat()
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the student runs."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the student."""
    threads: int | None = Field(default=None, ge=1, le=1024)
    """CPU threads of torch, in [1, 1024]; None is one for each core."""
    data: DataConfig
    side: Literal["train", "development", "test"] = "test"
    """Side of the data whose documents are asked about."""
    questions: QuestionSet = "comparison"
    """Held-out phrasings, or those that rewards use."""
    questions_per_document: int | None = Field(default=None, ge=1)
    """First questions of a document that are asked, at least 1; None asks all."""
    probes: int = Field(default=0, ge=0, le=10_000)
    """Questions on what the base knew before, in [0, 10000], where the data has such; 0 asks none."""
    probe_seed: int = Field(default=0, ge=0)
    """Of the choice of probes, at least 0."""
    groups: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Name -> ids of documents with a verdict of their own. No document is in two; those in none count in the whole."""
    limits: VerdictConfig = VerdictConfig()
    tracking: TrackingConfig = TrackingConfig(experiment="preceptor/check-regression")
    """Where registered versions are found and results are logged."""
    pins: Pins | None = None
    """Written by `preceptor check-regression SUITE --pin`; without them nothing is compared."""

    @model_validator(mode="after")
    def _one_group_each(self) -> Self:
        listed = [document for ids in self.groups.values() for document in ids]
        twice = sorted({document for document in listed if listed.count(document) > 1})
        if twice:
            raise ValueError(f"groups: documents {twice} are listed twice; name each once")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of what may change a verdict."""
        return digest_json(self.model_dump(mode="json", exclude={"tracking", "threads"}))


class SuiteContent(NamedTuple):
    """What is asked."""

    tasks: tuple[KnowledgeTask, ...]
    questions: dict[str, tuple[Question, ...]]
    """Document id -> questions asked about it, in the order of the tasks."""
    probes: tuple[Question, ...]


def load_suite(path: Path) -> RegressionSuite:
    """Return the suite in a YAML file.

    Raises:
        ConfigError: The file cannot be read, or holds mistakes; the message lists them all.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"suite {str(path)!r} cannot be read: {error}. Give a YAML file.") from error
    if not isinstance(found, Mapping):
        raise ConfigError(f"suite {str(path)!r}: got {type(found).__name__}, allowed is a mapping of settings.")
    try:
        return RegressionSuite.model_validate(found)
    except ValidationError as error:
        mistakes = [f"{'.'.join(map(str, m['loc']))}: {m['msg']}, got {m['input']!r:.80}" for m in error.errors()]
        raise ConfigError(f"suite {str(path)!r}: {'; '.join(mistakes)}") from error


def load_content(suite: RegressionSuite) -> SuiteContent:
    """Return the documents, questions and probes that the suite names, whatever its pins say.

    Raises:
        InputError: The data were refused.
        ConfigError: A group names a document that is not there, or there is no document.
    """
    tasks: tuple[KnowledgeTask, ...] = getattr(load_split(suite.data), suite.side)
    if not tasks:
        raise ConfigError(f"suite {suite.name!r}: the side {suite.side!r} has no documents. Name another side.")
    there = {task.id for task in tasks}
    absent = sorted({document for ids in suite.groups.values() for document in ids} - there)
    if absent:
        raise ConfigError(f"suite {suite.name!r}: groups name the documents {absent}, which the data do not have.")
    asked = {
        task.id: (task.questions if suite.questions == "rewards" else task.comparison_questions)[
            : suite.questions_per_document
        ]
        for task in tasks
    }
    return SuiteContent(tasks, asked, retention_probes(suite.data, suite.probes, suite.probe_seed))


def pins_of(content: SuiteContent, student_digest: str) -> Pins:
    """Return the digests of what is asked, and of whom."""
    documents = {
        task.id: digest_json([task.document.digest, _asked(content.questions[task.id])]) for task in content.tasks
    }
    return Pins(student=student_digest, probes=digest_json(_asked(content.probes)), documents=documents)


def check_pins(suite: RegressionSuite, found: Pins) -> None:
    """Refuse a suite whose contents are not what was pinned.

    Args:
        suite: With its pins.
        found: Of its contents now.

    Raises:
        ConfigError: It was never pinned.
        InputError: Something has changed; the message names it.
    """
    pinned = suite.pins
    if pinned is None:
        raise ConfigError(
            f"suite {suite.name!r} is not pinned, so that nobody would notice if its questions changed. Run `preceptor "
            "check-regression SUITE --pin` once, and commit the file."
        )
    changes = {
        "changed": sorted(i for i, d in found.documents.items() if i in pinned.documents and pinned.documents[i] != d),
        "new": sorted(found.documents.keys() - pinned.documents.keys()),
        "missing": sorted(pinned.documents.keys() - found.documents.keys()),
    }
    told = [f"{len(ids)} documents or their questions are {what}: {_few(ids)}" for what, ids in changes.items() if ids]
    told += ["the retention probes are changed"] if found.probes != pinned.probes else []
    if found.student != pinned.student:
        told.append(f"the student {suite.student!r} has the digest {found.student[:12]}, not {pinned.student[:12]}")
    if told:
        raise InputError(
            f"suite {suite.name!r} is not what was pinned: {'; '.join(told)}. Restore them; or, if the change is "
            "meant, pin the suite again with --pin and compare with a baseline that was made for it."
        )


def write_pins(path: Path, pins: Pins) -> None:
    """Put the pins at the end of a suite's file, in place of those that are there; all else stays as it is written."""
    text = path.read_text(encoding="utf-8")
    head = ("\n" + text).partition(_PINS)[0].lstrip("\n").rstrip() + "\n"
    dumped = yaml.safe_dump({"pins": pins.model_dump()}, sort_keys=False)
    path.write_text(f"{head}{dumped}", encoding="utf-8")


def _asked(questions: tuple[Question, ...]) -> list[list[str]]:
    return [[question.question, question.answer] for question in questions]


def _few(ids: list[str]) -> str:
    return ", ".join(map(repr, ids[:_SHOWN])) + (", ..." if len(ids) > _SHOWN else "")
