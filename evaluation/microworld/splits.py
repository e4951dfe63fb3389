"""The micro-world's documents as the three sides of a run."""

from __future__ import annotations

from evaluation.data_config import MicroworldData
from evaluation.microworld.world import Sheet, draw_documents
from evaluation.tasks import Split


def microworld_split(config: MicroworldData) -> Split:
    """Return the documents of a run; the sides come from pools of names that no two share.

    Raises:
        InputError: A pool has too few names.
    """
    sides = (
        draw_documents("train", config.train_documents, config.split_seed),
        draw_documents("development", config.development_documents, config.split_seed),
        draw_documents("test", config.test_documents, config.split_seed),
    )
    return Split(*(tuple(document.task for document in side) for side in sides))


def microworld_sheets(config: MicroworldData) -> dict[str, Sheet]:
    """Return the fact tables behind the documents of `microworld_split`, by document id."""
    counts = (config.train_documents, config.development_documents, config.test_documents)
    return {
        document.task.id: document.sheet
        for pool, count in zip(("train", "development", "test"), counts, strict=True)
        for document in draw_documents(pool, count, config.split_seed)
    }
