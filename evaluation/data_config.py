"""The `data` section of a run's configuration: where documents with questions come from and how they are split.

Importable without datasets or torch: validating a configuration opens no data. The variants are told apart by `type`;
to add one, subclass `DataSplit`, give it a `type` literal, name it in `DataConfig` and in `evaluation.loaders`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class DataSplit(BaseModel):
    """How the documents of any source are divided; what development and test leave over is for training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    development_documents: int = Field(default=20, ge=0)
    """Documents to make choices on, at least 0."""
    test_documents: int = Field(default=50, ge=1)
    """Documents to compare variants on, at least 1."""
    split_seed: int = Field(default=0, ge=0)
    """Seed of the split, at least 0; the same documents and seed give the same split."""


class FileSplit(DataSplit):
    """A source other than the micro-world, which knows what its student knew before."""

    retention_path: Path | None = None
    """JSON Lines file of questions with answers (`{"question": ..., "answer": ...}`) that the student must not unlearn;
    None asks none. A relative path starts at the current directory."""


class SampledData(FileSplit):
    """A source that may be far larger than a run needs."""

    max_documents: int | None = Field(default=None, ge=1)
    """Take at most this many documents, at least 1, after a seeded shuffle; None takes all, in the source's order."""
    sample_seed: int = Field(default=42, ge=0)
    """Seed of that shuffle, at least 0; 42 with 200 of SQuAD's development documents gives SEAL's evaluation set."""


class JsonLinesData(FileSplit):
    """A JSON Lines file, one document with its questions on each line (`evaluation.loaders.json_lines`)."""

    type: Literal["jsonl"] = "jsonl"
    path: Path
    """The file, plain or gzipped; a relative path starts at the current directory."""


class SquadData(SampledData):
    """A SQuAD v1.1 file, in the official nested form or regrouped by paragraph (`evaluation.loaders.squad`)."""

    type: Literal["squad"] = "squad"
    path: Path
    """The JSON file, plain or gzipped; a relative path starts at the current directory."""


class ColumnMapping(BaseModel):
    """Which columns of a data set hold what.

    Either `question` and `answer`: one question a row, rows with the same text are one document. Or `questions`: one
    document a row, with a list of `{question, answer}`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str = Field(default="text", min_length=1)
    """Column with the passage."""
    title: str | None = Field(default=None, min_length=1)
    """Column with the title; None leaves titles empty."""
    id: str | None = Field(default=None, min_length=1)
    """Column with the document's id (not the question's); None derives ids from title and content."""
    question: str | None = Field(default=None, min_length=1)
    """Column with one question; goes with `answer`, excludes `questions`."""
    answer: str | None = Field(default=None, min_length=1)
    """Column with its answer: a string, a list of which the first counts, or SQuAD's `{"text": [...]}`."""
    questions: str | None = Field(default=None, min_length=1)
    """Column with a list of `{question, answer}`; excludes `question` and `answer`."""

    @model_validator(mode="after")
    def _one_way_to_ask(self) -> ColumnMapping:
        flat = (self.question is not None, self.answer is not None)
        if flat not in ((True, True), (False, False)) or (self.questions is not None) == all(flat):
            raise ValueError(
                f"give either both question and answer, or questions alone; got question={self.question!r}, "
                f"answer={self.answer!r}, questions={self.questions!r}"
            )
        return self


class HuggingFaceData(SampledData):
    """A data set that the `datasets` library opens (`evaluation.loaders.hugging_face`)."""

    type: Literal["huggingface"] = "huggingface"
    path: str = Field(min_length=1)
    """A hub id, a directory from `save_to_disk`, or a local data file or directory (JSON, CSV, Parquet, Arrow)."""
    name: str | None = Field(default=None, min_length=1)
    """The data set's configuration on the hub; None takes its default one."""
    split: str = Field(default="train", min_length=1)
    """The split to take, such as `train` or `validation`."""
    columns: ColumnMapping
    """Which columns hold what."""


class MicroworldData(DataSplit):
    """Documents of the micro-world (`evaluation.microworld`); its three sides never share an entity."""

    type: Literal["microworld"] = "microworld"
    train_documents: int = Field(default=240, ge=1, le=330)
    """Documents that rewards are earned on, in [1, 330]."""
    development_documents: int = Field(default=12, ge=0, le=48)
    """Documents to make choices on, in [0, 48]."""
    test_documents: int = Field(default=64, ge=1, le=150)
    """Documents to compare variants on, in [1, 150]."""


ViewName = Literal[
    "as-it-is",
    "turn-90",
    "turn-180",
    "turn-270",
    "mirror",
    "mirror-turn-90",
    "mirror-turn-180",
    "mirror-turn-270",
]
"""Orientations of a grid: turned counterclockwise, after mirroring left to right; `mirror-turn-90` is the transpose."""


def _distinct_views(value: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(value)) < len(value):
        raise ValueError("allowed are views that differ")
    return value


class ArcData(SampledData):
    """Grid tasks in ARC's JSON (`evaluation.loaders.arc`); a document is a task's demonstrations."""

    type: Literal["arc"] = "arc"
    path: Path
    """A file of challenges or of one task, or a directory of files of one task; relative to the current directory."""
    solutions_path: Path | None = None
    """The file with the test outputs of a file of challenges; None where they are in `path`."""
    views: tuple[ViewName, ...] = Field(default=("as-it-is",), min_length=1)
    """Orientations under which comparisons ask for each output; with the grader `grid-votes` they are voted on."""

    @field_validator("views")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _distinct_views(value)


class MicrogridsData(DataSplit):
    """Tasks of the micro-grids (`evaluation.microgrids`); the test has families of rules that no teacher learns on."""

    type: Literal["microgrids"] = "microgrids"
    train_documents: int = Field(default=132, ge=1, le=100_000)
    """Tasks that rewards are earned on, in [1, 100000]; families take turns."""
    development_documents: int = Field(default=22, ge=0, le=10_000)
    """Tasks to make choices on, in [0, 10000]."""
    test_documents: int = Field(default=112, ge=1, le=10_000)
    """Tasks to compare variants on, in [1, 10000]."""
    demonstrations: int = Field(default=4, ge=2, le=8)
    """Pairs that show a task's rule, in [2, 8]."""
    rewarded_tests: int = Field(default=8, ge=1, le=64)
    """Test inputs of a task that rewards are earned on, in [1, 64]."""
    compared_tests: int = Field(default=8, ge=1, le=64)
    """Further test inputs of a task, which comparisons ask, in [1, 64]."""
    views: tuple[ViewName, ...] = Field(default=("as-it-is",), min_length=1)
    """Orientations under which comparisons ask for each output; with the grader `grid-votes` they are voted on."""

    @field_validator("views")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _distinct_views(value)


GridData = ArcData | MicrogridsData
"""The sections whose documents are grid tasks."""

LoadedData = JsonLinesData | SquadData | HuggingFaceData
"""The sections whose documents are loaded from files or data sets; `evaluation.loaders` reads them."""

DataConfig = Annotated[LoadedData | ArcData | MicroworldData | MicrogridsData, Field(discriminator="type")]
"""Any `data` section; `type` says which."""
