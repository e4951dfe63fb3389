"""The three sides of a run's documents, whatever their source."""

from __future__ import annotations

from evaluation.data_config import ArcData, DataConfig, MicrogridsData, MicroworldData
from evaluation.errors import InputError
from evaluation.loaders import load_tasks
from evaluation.loaders.intake import sample_documents
from evaluation.tasks import KnowledgeTask, Split, split_tasks


def load_split(config: DataConfig) -> Split:
    """Return the documents that `config` names, divided for training, choices and comparisons.

    Raises:
        InputError: The source cannot be read, has bad rows, or has too few documents; the message lists all reasons.
    """
    if isinstance(config, MicroworldData):
        from evaluation.microworld.splits import microworld_split

        return microworld_split(config)
    if isinstance(config, MicrogridsData):
        from evaluation.microgrids.splits import microgrids_split

        return microgrids_split(config)
    tasks = _puzzles(config) if isinstance(config, ArcData) else load_tasks(config)
    return split_tasks(
        tasks, development=config.development_documents, test=config.test_documents, seed=config.split_seed
    )


def _puzzles(config: ArcData) -> tuple[KnowledgeTask, ...]:
    from evaluation.grids.adaptation import as_task
    from evaluation.loaders.arc import load_arc

    puzzles = load_arc(config.path, config.solutions_path)
    unknown = [puzzle.id for puzzle in puzzles if not puzzle.is_scored]
    if unknown:
        raise InputError(
            f"{config.path}: the test outputs of {len(unknown)} of {len(puzzles)} tasks are not known, the first is "
            f"{unknown[0]!r}, so no reward can be given. Name the file of solutions in data.solutions_path."
        )
    return tuple(as_task(puzzle, views=config.views) for puzzle in sample_documents(puzzles, config))
