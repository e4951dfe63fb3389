"""The micro-grids' tasks as the three sides of a run."""

from __future__ import annotations

from evaluation.data_config import MicrogridsData
from evaluation.grids.adaptation import as_task
from evaluation.microgrids.world import ADAPTED, TESTED, draw_tasks
from evaluation.tasks import KnowledgeTask, Split


def microgrids_split(config: MicrogridsData) -> Split:
    """Return the tasks of a run; those of the test are of all families, held-out ones among them."""

    def side(name: str, families: tuple[str, ...], count: int) -> tuple[KnowledgeTask, ...]:
        tests = config.rewarded_tests + config.compared_tests
        drawn = draw_tasks(name, families, count, config.split_seed, demonstrations=config.demonstrations, tests=tests)
        return tuple(as_task(task, views=config.views, rewarded=config.rewarded_tests) for task in drawn)

    return Split(
        side("train", ADAPTED, config.train_documents),
        side("development", ADAPTED, config.development_documents),
        side("test", TESTED, config.test_documents),
    )
