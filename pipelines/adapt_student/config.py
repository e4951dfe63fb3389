"""Configuration of the flow `adapt-student`."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field, field_validator

from evaluation.common.data import Frozen
from evaluation.domains import DataConfig
from evaluation.gate.decisions import GateConfig
from evaluation.retention import retention_probes
from pipelines.ask.answers import AskOptions, MemoryConfig
from pipelines.inbox.documents import Route
from pipelines.inbox.questions import WriterSettings
from pipelines.inbox.worker import ReadingLimits
from pipelines.settings import LoopSettings, TrackingConfig, for_documents
from student.config import UpdateRecipe


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"is not a regular expression: {error}") from error
    return value


class WritingConfig(Frozen):
    """Self-edits for each new document."""

    edits: int = Field(default=4, ge=1, le=64)
    """Self-edits sampled for each document, in [1, 64]; each fine-tunes a student of its own for its reward."""
    learned: int = Field(default=2, ge=1, le=64)
    """Self-edits with the highest rewards that the night's update trains on, in [1, 64]."""


class ReplayConfig(Frozen):
    """Training data repeated against forgetting."""

    documents: int = Field(default=32, ge=0, le=100_000)
    """Earlier documents, in [0, 100000]; all if there are fewer, else a random sample each night."""
    general: int = Field(default=48, ge=0, le=100_000)
    """General-knowledge questions with their answers, in [0, 100000], disjoint from the retention probes
    (`evaluation.retention.rehearsal_questions`)."""


class RoutingConfig(Frozen):
    """Which documents stay in external memory; the sender's hint overrides every rule."""

    changing: Route = "memory"
    """Route of documents that replace earlier ones or have an effective date."""
    volatile_patterns: tuple[Annotated[str, AfterValidator(_pattern)], ...] = (
        r"\bas of (today|now|this|\d)",
        r"\bcurrently\b",
        r"\buntil further notice\b",
        r"\bsubject to change\b",
        r"\b(today|tonight|tomorrow|this (week|month|quarter))\b",
    )
    """Case-insensitive regular expressions; a document whose text matches one goes to memory."""
    longest: int = Field(default=20_000, ge=1, le=10_000_000)
    """Longest text for the weights, in characters, in [1, 10000000]; longer documents go to memory."""


class NightConfig(LoopSettings):
    """Everything about the nights of one student.

    The registry's champion teacher samples the self-edits; without one the untrained checkpoint. `student.update` is
    the recipe of the updates that measure a self-edit's reward.
    """

    command: ClassVar[str] = "adapt-student"
    general: DataConfig | None = None
    """Source of general-knowledge questions: the micro-world, or a source with `retention_path`, whose documents are
    not used. None: the 152 questions that ship with the package, the first ones (by seed) as probes, the others for
    rehearsal."""
    probes: int = Field(default=96, ge=0, le=10_000)
    """Retention probes, in [0, 10000]: what the student knew before the first night."""
    writing: WritingConfig = WritingConfig()
    questions: WriterSettings | None = WriterSettings()
    """How questions are generated for documents without any that go to the weights; None leaves such documents
    waiting."""
    update: UpdateRecipe = UpdateRecipe()
    """Recipe of the night's one update."""
    limits: ReadingLimits = ReadingLimits()
    """For `preceptor inbox add --config`."""
    replay: ReplayConfig = ReplayConfig()
    routing: RoutingConfig = RoutingConfig()
    memory: MemoryConfig = MemoryConfig()
    gate: GateConfig | None = GateConfig()
    """None promotes every night's student: only to measure what a gate is worth."""
    tracking: TrackingConfig = TrackingConfig(experiment="preceptor/adapt-student")

    _graded = field_validator("grading")(for_documents)

    @field_validator("update")
    @classmethod
    def _one_passage(cls, value: UpdateRecipe) -> UpdateRecipe:
        if value.objective != "likelihood":
            raise ValueError(
                f"objective: got {value.objective!r}, allowed is likelihood: lines of a night's update "
                "are about several passages"
            )
        return value

    def read_data(self) -> object:
        """Read the retention probes; raises InputError if they are refused."""
        return retention_probes(self.general, self.probes, self.seed_of("retention"))

    @property
    def asking(self) -> AskOptions:
        """How the student is asked, by a night's scores and by `preceptor ask` alike."""
        return AskOptions.of(self, self.memory)
