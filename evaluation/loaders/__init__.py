"""Loaders: documents with questions from files and data sets, validated as a whole before anything else happens."""

from __future__ import annotations

from typing import assert_never

from evaluation.data_config import HuggingFaceData, JsonLinesData, LoadedData, SquadData
from evaluation.loaders.hugging_face import load_hugging_face
from evaluation.loaders.json_lines import load_json_lines
from evaluation.loaders.squad import load_squad
from evaluation.tasks import KnowledgeTask

__all__ = ["load_tasks"]


def load_tasks(config: LoadedData) -> tuple[KnowledgeTask, ...]:
    """Return all tasks of the source that `config` names; ids are unique.

    Raises:
        InputError: The source cannot be read or has bad rows; one message lists all of them with place and reason.
    """
    match config:
        case JsonLinesData():
            return load_json_lines(config)
        case SquadData():
            return load_squad(config)
        case HuggingFaceData():
            return load_hugging_face(config)
        case _:
            assert_never(config)
