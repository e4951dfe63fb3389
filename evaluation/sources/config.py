"""The `data` sections of the knowledge domain, discriminated by `type`; validation opens no data."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from evaluation.common.data import Frozen
from evaluation.tasks import DataSplit


class FileSplit(DataSplit):
    """A source with optional retention probes."""

    retention_path: Path | None = None
    """JSON Lines file of prior knowledge to retain (`{"question": ..., "answer": ...}`); None for no probes."""


class SampledData(FileSplit):
    """A source of which a sample can be taken."""

    max_documents: int | None = Field(default=None, ge=1)
    """Sample size, at least 1, after a seeded shuffle; None takes all, in the source's order."""


class LocalData(FileSplit):
    """A source on this machine."""

    path: Path
    """The file, plain or gzipped, relative to the current directory."""


class JsonLinesData(LocalData):
    """A JSON Lines file with one document per line (`evaluation.sources.files`)."""

    type: Literal["jsonl"] = "jsonl"


class SquadData(SampledData, LocalData):
    """A SQuAD v1.1 file, in the official nested form or regrouped by paragraph (`evaluation.sources.files`)."""

    type: Literal["squad"] = "squad"


class ColumnMapping(Frozen):
    """Column names: `question` and `answer` for one question per row, or `questions` for one document per row."""

    text: str = Field(default="text", min_length=1)
    """Column with the passage."""
    title: str | None = Field(default=None, min_length=1)
    """Column with the title; None for empty titles."""
    id: str | None = Field(default=None, min_length=1)
    """Column with the document's id (not the question's); None derives ids from title and content."""
    question: str | None = Field(default=None, min_length=1)
    """Column with a question; requires `answer`, excludes `questions`."""
    answer: str | None = Field(default=None, min_length=1)
    """Column with its answer: a string, a list (the first is gold), or SQuAD's `{"text": [...]}`."""
    questions: str | None = Field(default=None, min_length=1)
    """Column with a list of `{question, answer}`; excludes `question` and `answer`."""

    @model_validator(mode="after")
    def _exclusive(self) -> ColumnMapping:
        flat = (self.question is not None, self.answer is not None)
        if flat not in ((True, True), (False, False)) or (self.questions is not None) == all(flat):
            raise ValueError(
                f"give either both question and answer, or questions alone; got question={self.question!r}, "
                f"answer={self.answer!r}, questions={self.questions!r}"
            )
        return self


class HuggingFaceData(SampledData):
    """A data set of the `datasets` library."""

    type: Literal["huggingface"] = "huggingface"
    path: str = Field(min_length=1)
    """A hub id, a directory from `save_to_disk`, or a local data file or directory (JSON, CSV, Parquet, Arrow)."""
    name: str | None = Field(default=None, min_length=1)
    """Configuration name on the hub; None for the default."""
    split: str = Field(default="train", min_length=1)
    """Such as `train` or `validation`."""
    columns: ColumnMapping


class EmbeddedData(DataSplit):
    """Generated documents."""

    train_documents: int = Field(ge=1)
    """Training documents, at least 1."""


class MicroworldData(EmbeddedData):
    """Documents of the micro-world; its splits have disjoint entities."""

    type: Literal["microworld"] = "microworld"
    train_documents: int = Field(default=240, ge=1, le=330)
    """Training documents, in [1, 330]."""
    development_documents: int = Field(default=12, ge=0, le=48)
    """Development documents, in [0, 48]."""
    test_documents: int = Field(default=64, ge=1, le=150)
    """Test documents, in [1, 150]."""


LoadedData = JsonLinesData | SquadData | HuggingFaceData
"""Sections of `evaluation.sources.files.load_tasks`."""
