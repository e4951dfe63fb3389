"""The documents of a run, checked against what the run needs of them."""

from __future__ import annotations

from evaluation.errors import ConfigError
from evaluation.splits import load_split
from evaluation.tasks import Split
from pipelines.config import RunConfig


def load_documents(config: RunConfig) -> Split:
    """Return the documents that a run learns from, chooses on and compares on.

    Raises:
        InputError: The source was refused.
        ConfigError: A round takes more documents than there are to learn from.
    """
    split = load_split(config.data)
    wanted, there = config.loop.documents, len(split.train)
    if config.loop.rounds and wanted > there:
        raise ConfigError(
            f"loop.documents: got {wanted}, but there are only {there} training documents. Lower it, or give more "
            "documents."
        )
    return split
