"""A suite: the documents, questions and probes that two subjects are compared on, what counts as worse, and pins.

Pins are digests of everything that the suite asks, and of whom: a document or question that has changed would make
today's verdict about something else than yesterday's, so it is refused by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple, Self

import yaml
from pydantic import Field, model_validator

from evaluation.common.data import Frozen, digest_json
from evaluation.common.errors import ConfigError, InputError
from evaluation.common.storage import write_atomically
from evaluation.domains import DataConfig, load_split
from evaluation.retention import retention_probes
from evaluation.tasks import KnowledgeTask, Question
from pipelines.check_regression.verdict import VerdictConfig
from pipelines.settings import Asking, Settings, TrackingConfig, load
from student.config import UpdateRecipe
from teacher.config import TeacherConfig

WRITES = {"prompt", "chat", "sampling"}
"""Fields of a teacher's section that say how its model writes; the others say how it learns."""

_SHA = r"^[0-9a-f]{64}$"
_SHOWN = 5
"""Changed documents that a message names at most."""


class AdaptationConfig(Frozen):
    """How variants are scored, and what a teacher alone does not say: its prompt, and how the student learns."""

    teacher: TeacherConfig
    """Base of the teachers, with the prompt and sampling that they write with; how they learn plays no part."""
    update: UpdateRecipe = UpdateRecipe()
    """By which self-edits update the student."""
    edits: int = Field(default=2, ge=1, le=64)
    """Self-edits of each document, in [1, 64]; each updates an adapter of its own, and scores are averaged."""

    @property
    def digest(self) -> str:
        """SHA-256 of what the file sets; settings that it leaves out play no part, so that new ones change nothing."""
        teacher = self.teacher.model_dump(mode="json", exclude_unset=True, include={"model", *WRITES})
        others = self.model_dump(mode="json", exclude_unset=True, exclude={"teacher"})
        return digest_json({**others, "teacher": teacher})


class Pins(Frozen):
    """SHA-256 digests of a suite's contents when it was pinned."""

    student: str = Field(pattern=_SHA)
    """`model_digest` of the student."""
    adaptation: str | None = Field(default=None, pattern=_SHA)
    """`AdaptationConfig.digest`; None for a suite without that section."""
    teacher: str | None = Field(default=None, pattern=_SHA)
    """`model_digest` of the teacher's base; None without the section, and for a teacher behind an endpoint."""
    probes: str = Field(pattern=_SHA)
    """All probes with their answers."""
    documents: dict[str, str] = Field(min_length=1)
    """By document id: its text, and the questions asked about it with their answers."""


class RegressionSuite(Settings, Asking):
    """The YAML file of a suite; sampling and updates of candidate and baseline have the same seeds."""

    student: str = Field(min_length=1)
    """Base of the students: directory, hub id, or `micro-student`."""
    data: DataConfig
    side: Literal["train", "development", "test"] = "test"
    """Side of the data whose documents are asked about."""
    questions_per_document: int | None = Field(default=None, ge=1)
    """First held-out questions of a document that are asked, at least 1; None asks all."""
    probes: int = Field(default=0, ge=0, le=10_000)
    """Questions on what the base knew before, in [0, 10000], where the data has such; 0 asks none."""
    groups: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Name -> ids of documents with a verdict of their own. No document is in two; those in none count in the whole."""
    adaptation: AdaptationConfig | None = None
    """How variants are scored; None compares students alone."""
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
    """`comparison_questions` are the questions that the suite asks."""
    probes: tuple[Question, ...]


def load_suite(path: Path) -> RegressionSuite:
    """Return the suite in a YAML file; see `pipelines.settings.load`."""
    return load(path, RegressionSuite)


def load_content(suite: RegressionSuite) -> SuiteContent:
    """Return the documents, questions and probes that the suite names, whatever its pins say.

    Raises:
        InputError: The data were refused.
        ConfigError: A group names a document that is not there, or there is no document.
    """
    tasks: tuple[KnowledgeTask, ...] = getattr(load_split(suite.data), suite.side)
    if not tasks:
        raise ConfigError(f"suite {suite.name!r}: the side {suite.side!r} has no documents. Name another side.")
    absent = sorted({document for ids in suite.groups.values() for document in ids} - {task.id for task in tasks})
    if absent:
        raise ConfigError(f"suite {suite.name!r}: groups name the documents {absent}, which the data do not have.")
    some = slice(suite.questions_per_document)
    tasks = tuple(t.model_copy(update={"held_out_questions": t.comparison_questions[some]}) for t in tasks)
    return SuiteContent(tasks, retention_probes(suite.data, suite.probes, suite.seed))


def pins_of(suite: RegressionSuite, content: SuiteContent, student: str, teacher: str | None = None) -> Pins:
    """Return the pins of a suite as it is now, given the `model_digest` of its student and of its teacher's base."""
    documents = {t.id: digest_json([t.document.digest, _asked(t.comparison_questions)]) for t in content.tasks}
    return Pins(
        student=student,
        adaptation=None if suite.adaptation is None else suite.adaptation.digest,
        teacher=teacher,
        probes=digest_json(_asked(content.probes)),
        documents=documents,
    )


def check_pins(suite: RegressionSuite, found: Pins) -> None:
    """Refuse a suite whose contents are not what was pinned; a teacher that was not opened is not compared.

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
    now, before = found.documents, pinned.documents
    changes = {
        "changed": sorted(name for name in now.keys() & before.keys() if before[name] != now[name]),
        "new": sorted(now.keys() - before.keys()),
        "missing": sorted(before.keys() - now.keys()),
    }
    told = [
        f"{len(ids)} documents or their questions are {what}: {', '.join(map(repr, ids[:_SHOWN]))}"
        + (", ..." if len(ids) > _SHOWN else "")
        for what, ids in changes.items()
        if ids
    ]
    told += ["the retention probes are changed"] if found.probes != pinned.probes else []
    told += ["the section 'adaptation' is changed"] if found.adaptation != pinned.adaptation else []
    if found.student != pinned.student:
        told.append(f"the student {suite.student!r} has the digest {found.student[:12]}, not {pinned.student[:12]}")
    if found.teacher is not None and found.teacher != pinned.teacher:
        was = "none" if pinned.teacher is None else pinned.teacher[:12]
        told.append(f"the teacher has the digest {found.teacher[:12]}, not {was}")
    if told:
        raise InputError(
            f"suite {suite.name!r} is not what was pinned: {'; '.join(told)}. Restore them; or, if the change is "
            "meant, pin the suite again with --pin and compare with a baseline that was made for it."
        )


def write_pins(path: Path, pins: Pins) -> None:
    """Replace the pins at the end of a suite's file, or append them; the rest keeps its text."""
    head = path.read_text(encoding="utf-8").partition("\npins:")[0].rstrip()
    dumped = yaml.safe_dump({"pins": pins.model_dump(exclude_none=True)}, sort_keys=False)
    write_atomically(path, f"{head}\n{dumped}")


def _asked(questions: tuple[Question, ...]) -> list[list[str]]:
    return [[question.question, question.answer] for question in questions]
