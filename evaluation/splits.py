"""The three sides of a run's documents, whatever their source."""

from __future__ import annotations

from evaluation.data_config import DataConfig, MicroworldData
from evaluation.loaders import load_tasks
from evaluation.tasks import Split, split_tasks


def load_split(config: DataConfig) -> Split:
    """Return the documents that `config` names, divided for training, choices and comparisons.

    Raises:
        InputError: The source cannot be read, has bad rows, or has too few documents; the message lists all reasons.
    """
    if isinstance(config, MicroworldData):
        from evaluation.microworld.splits import microworld_split

        return microworld_split(config)
    tasks = load_tasks(config)
    return split_tasks(
        tasks, development=config.development_documents, test=config.test_documents, seed=config.split_seed
    )
