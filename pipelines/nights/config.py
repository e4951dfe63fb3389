"""The configuration of a night: one YAML file, validated as a whole before anything expensive starts."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from evaluation.data_config import DataConfig
from evaluation.digests import digest_json
from evaluation.gate import GateConfig
from pipelines.asking_options import AskingOptions
from pipelines.config import ComparisonConfig, LoopConfig, RunConfig, StudentConfig, TrackingConfig
from pipelines.inbox.question_writer import WriterSettings
from pipelines.nights.router import RoutingConfig
from student.config import UpdateRecipe
from teacher.config import TeacherConfig

Composition = Literal["sequential", "joint", "merged"]
"""How a night's self-edits come to what the student has learned before: its adapter is trained on, with replay; a new
adapter is trained on everything that was ever learned; an adapter for the night alone is added to the student's."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WritingConfig(_Frozen):
    """How many self-edits the teacher writes for a document, and how many of them are learned."""

    edits: int = Field(default=4, ge=1, le=64)
    """Self-edits of each document, in [1, 64]; each is tried on a student of its own for its reward."""
    learned: int = Field(default=2, ge=1, le=64)
    """Of these, the ones with the best rewards that the night's update learns from, in [1, 64]."""


class ReplayConfig(_Frozen):
    """What is trained on again beside the new documents, so that it is not forgotten."""

    documents: int = Field(default=32, ge=0, le=100_000)
    """Earlier documents, in [0, 100000]; all where there are fewer, else a random choice in each night. `joint` learns
    all of them whatever this says, and `merged` none."""
    general: int = Field(default=48, ge=0, le=100_000)
    """Questions on what the student knew before any night, in [0, 100000], with their answers; none of them is a
    retention probe (`evaluation.retention.rehearsal_questions`)."""


class MemoryConfig(_Frozen):
    """How documents in external memory are used for answers, by scores and by `preceptor ask` alike."""

    passages: int = Field(default=1, ge=1, le=32)
    """Passages that are put before a question at most, in [1, 32]."""
    least_score: float = Field(default=1.25, ge=0.0, le=1000.0)
    """Score of a passage from which on it is read, in [0, 1000]; see `student.external_memory.Hit.score`."""
    with_passages: Literal["memory", "both"] = "memory"
    """What reads passages: the base alone, or the adapter too."""


class NightConfig(_Frozen):
    """Everything about the nights of one student."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    """Shown in MLflow and Prefect; letters, digits, `_`, `.` and `-`, at most 64."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of everything that is random, in [0, 2^31)."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the models run."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the frozen bases."""
    threads: int | None = Field(default=None, ge=1, le=1024)
    """CPU threads of torch, in [1, 1024]; None is one for each core."""
    teacher: TeacherConfig
    """Its champion in the registry writes; without one the checkpoint as it is."""
    student: StudentConfig
    """Its recipe is that of the updates which single self-edits are tried with."""
    general: DataConfig
    """Where questions on general knowledge come from: the micro-world, or a source with `retention_path`. Its documents
    are not used."""
    probes: int = Field(default=96, ge=0, le=10_000)
    """Retention probes, in [0, 10000]: what the student knew before the first night."""
    writing: WritingConfig = WritingConfig()
    questions: WriterSettings | None = None
    """How questions are written for documents that came without any; None lets such documents wait."""
    composition: Composition = "sequential"
    update: UpdateRecipe = UpdateRecipe()
    """Of the one update of a night."""
    replay: ReplayConfig = ReplayConfig()
    routing: RoutingConfig = RoutingConfig()
    memory: MemoryConfig = MemoryConfig()
    gate: GateConfig | None = GateConfig()
    """None promotes whatever a night makes: only to measure what a gate is worth."""
    resamples: int = Field(default=2000, ge=100, le=1_000_000)
    """Bootstrap resamples of intervals on the page, in [100, 1000000]."""
    tracking: TrackingConfig = TrackingConfig(experiment="preceptor/adapt-student")

    def as_run(self) -> RunConfig:
        """Return the run by which single self-edits are written and tried: rewards by the recipe of the student."""
        return RunConfig(
            name=self.name,
            seed=self.seed,
            device=self.device,
            dtype=self.dtype,
            threads=self.threads,
            data=self.general,
            teacher=self.teacher,
            student=self.student,
            loop=LoopConfig(rounds=0),
            comparison=ComparisonConfig(
                edits=self.writing.edits, retention_probes=self.probes, resamples=self.resamples
            ),
            tracking=self.tracking,
        )

    def asking(self) -> AskingOptions:
        """Return how questions are answered."""
        return AskingOptions(
            answer_format=self.student.answer_format,
            device=self.device,
            dtype=self.dtype,
            **self.memory.model_dump(),
        )

    @property
    def digest(self) -> str:
        """SHA-256 of what may change the result; where the lineage goes is left out."""
        return digest_json(self.model_dump(mode="json", exclude={"tracking"}))
