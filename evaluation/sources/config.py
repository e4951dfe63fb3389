"""The `data` sections of the knowledge domain: where documents with questions come from.

Importable without datasets or torch: validating a configuration opens no data. The variants are told apart by `type`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from evaluation.common.data import Frozen
from evaluation.tasks import DataSplit


class FileSplit(DataSplit):
    """A source other than the micro-world, which knows its student's prior knowledge."""

    retention_path: Path | None = None
    """JSON Lines file of questions with answers (`{"question": ..., "answer": ...}`) that the student must not forget;
    None probes none. A relative path starts at the current directory."""


class SampledData(FileSplit):
    """A source that may be far larger than a run needs."""

    max_documents: int | None = Field(default=None, ge=1)
    """Take at most this many documents, at least 1, after a seeded shuffle; None takes all, in the source's order."""


class LocalData(FileSplit):
    """A source on this machine."""

    path: Path
    """The file, plain or gzipped; a relative path starts at the current directory."""


class JsonLinesData(LocalData):
    """A JSON Lines file, one document with its questions on each line (`evaluation.sources.files`)."""

    type: Literal["jsonl"] = "jsonl"


class SquadData(SampledData, LocalData):
    """A SQuAD v1.1 file, in the official nested form or regrouped by paragraph (`evaluation.sources.files`)."""

    type: Literal["squad"] = "squad"


class ColumnMapping(Frozen):
    """Which columns of a data set hold what.

    Either `question` and `answer`: one question a row, rows with the same text are one document. Or `questions`: one
    document a row, with a list of `{question, answer}`.
    """

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
    """A data set that the `datasets` library opens (`evaluation.sources.hugging_face`)."""

    type: Literal["huggingface"] = "huggingface"
    path: str = Field(min_length=1)
    """A hub id, a directory from `save_to_disk`, or a local data file or directory (JSON, CSV, Parquet, Arrow)."""
    name: str | None = Field(default=None, min_length=1)
    """The data set's configuration on the hub; None takes its default one."""
    split: str = Field(default="train", min_length=1)
    """The split to take, such as `train` or `validation`."""
    columns: ColumnMapping
    """Which columns hold what."""


class EmbeddedData(DataSplit):
    """Documents that are generated here."""

    train_documents: int = Field(ge=1)
    """Documents that rewards are earned on, at least 1."""


class MicroworldData(EmbeddedData):
    """Documents of the micro-world (`evaluation.microworld`); its three sides never share an entity."""

    type: Literal["microworld"] = "microworld"
    train_documents: int = Field(default=240, ge=1, le=330)
    """Documents that rewards are earned on, in [1, 330]."""
    development_documents: int = Field(default=12, ge=0, le=48)
    """Documents to make choices on, in [0, 48]."""
    test_documents: int = Field(default=64, ge=1, le=150)
    """Documents to compare variants on, in [1, 150]."""


LoadedData = JsonLinesData | SquadData | HuggingFaceData
"""Sections whose documents are loaded from files or data sets (`evaluation.sources.files.load_tasks`)."""
