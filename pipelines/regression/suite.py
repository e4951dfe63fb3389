"""A suite: which documents, questions and probes two subjects are compared on, and what counts as worse.

The file names where the data come from and holds digests of all that they must be (`pipelines.regression.pins`).
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
from evaluation.errors import ConfigError
from evaluation.retention import retention_probes
from evaluation.splits import load_split
from evaluation.tasks import KnowledgeTask, Question
from pipelines.config import QuestionSet, TrackingConfig
from pipelines.regression.pins import Pins
from pipelines.regression.verdict import VerdictConfig
from student.config import UpdateRecipe
from teacher.config import TeacherConfig


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


WRITES = {"prompt", "chat", "sampling"}
"""Fields of a teacher's section that say how its model writes; the others say how it learns."""


class AdaptationConfig(_Frozen):
    """How ways of adapting are measured, and what a teacher alone does not say: its prompt, how a student learns."""

    teacher: TeacherConfig
    """Base of the teachers, with the prompt and the sampling that they write with; how they learn plays no part."""
    update: UpdateRecipe = UpdateRecipe()
    """By which the student takes in what the teachers wrote."""
    edits: int = Field(default=2, ge=1, le=64)
    """Self-edits of each document, in [1, 64]; each is taken into an adapter of its own, and scores are averaged."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of the sampling and of the updates, in [0, 2^31): the same for candidate and baseline."""

    @property
    def digest(self) -> str:
        """SHA-256 of what the file says; settings that it leaves out are no part, so that new ones change nothing."""
        teacher = self.teacher.model_dump(mode="json", exclude_unset=True, include={"model", *WRITES})
        others = self.model_dump(mode="json", exclude_unset=True, exclude={"teacher"})
        return digest_json({**others, "teacher": teacher})


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
    adaptation: AdaptationConfig | None = None
    """How ways of adapting are measured; None compares students alone."""
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
    adaptation: str | None = None
    """`AdaptationConfig.digest` of the suite; None where it has no such section."""


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
    probes = retention_probes(suite.data, suite.probes, suite.probe_seed)
    return SuiteContent(tasks, asked, probes, None if suite.adaptation is None else suite.adaptation.digest)
