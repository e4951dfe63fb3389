"""Every specification of a space tried on some tasks: which is best for all of them, and which for each.

The best fixed one is chosen on training tasks and needs no teacher; only a teacher that reads the task can beat it. The
best one of each test task is the oracle, the most that reading can gain. Both are chosen by the tests that rewards come
from and then scored, like every variant, on those of the comparison.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evaluation.statistics import Interval, bootstrap_mean, kept_share, known_mean
from evaluation.tasks import KnowledgeTask
from pipelines.loop.loop import Loop
from pipelines.plan import Stage
from pipelines.records import Edit, Sampling, ScoredUpdate
from pipelines.results import SpecOracle, SpecSearch, VariantScores
from pipelines.train_teacher.config import TRAINED_TEACHER, FixedSpecification
from teacher.self_edit import edit_of

if TYPE_CHECKING:
    from pipelines.train_teacher.variants import Comparing

_TIE = 1e-3
"""Weight of the gold outputs' probability beside exact match: it orders specifications that solve equally many."""

Table = Mapping[str, Sequence[float | None]]
"""By task id, the score of each specification in the order of the space, None where it has none."""


def written(task_id: str, place: int, choice: Mapping[str, Any]) -> Edit:
    """Return a specification as a self-edit for a task."""
    return Edit.written(task_id, edit_of(choice), json.dumps(choice), index=place)


def try_all(loop: Loop, tasks: Sequence[KnowledgeTask], choices: Sequence[Mapping[str, Any]], purpose: str) -> Table:
    """Return the student's score on the rewarded tests of each task after each specification.

    Args:
        loop: Updates the student.
        tasks: To try them on.
        choices: What is tried.
        purpose: Part of the seeds.
    """
    edits = [written(task.id, place, choice) for task in tasks for place, choice in enumerate(choices)]
    updates = loop.update(loop.trials(edits, purpose), "rewards").replicates
    scores = {(update.document_id, update.index): _score(update) for update in updates}
    return {task.id: [scores[task.id, place] for place in range(len(choices))] for task in tasks}


def best_of(table: Table, choices: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], SpecSearch]:
    """Return the specification with the best mean over the tasks of a table, and the record of the search.

    One without a score on some task, such as one over the step budget, has no mean and cannot be the best.

    Raises:
        ValueError: None has a score on every task.
    """
    by_spec = list(zip(*table.values(), strict=True))
    means = [None if any(score is None for score in scores) else known_mean(scores) for scores in by_spec]
    best = _best(means)
    if best is None:
        raise ValueError("no specification has a score on every task")
    scores = {json.dumps(choice): mean for choice, mean in zip(choices, means, strict=True)}
    return choices[best], SpecSearch(tasks=len(table), fixed=json.dumps(choices[best]), scores=scores)


def find_oracle(comparing: Comparing, stage: Stage) -> SpecOracle | None:
    """Return the score of the best specification of each of some test tasks, and the variants' on the same tasks.

    None where no task has a specification with a score.
    """
    source: FixedSpecification = stage.subject
    loop, test = comparing.loop, comparing.split.test
    # Drawn at random: every n-th task would meet the same few families where families take turns.
    places = random.Random(loop.seed("oracle tasks")).sample(range(len(test)), min(source.oracle_tasks, len(test)))
    tasks = [test[place] for place in sorted(places)]
    choices = source.choices
    with loop.reporter.step(stage.steps[0], stage.name):
        table = try_all(loop, tasks, choices, "oracle")
    best = {name: choices[place] for name, scores in table.items() if (place := _best(scores)) is not None}
    sampling = Sampling(edits=tuple(written(name, 0, choice) for name, choice in best.items()))
    with loop.reporter.step(stage.steps[1], stage.name):
        oracle = comparing.score_edits("spec_oracle", "best specification of each task", sampling, tasks)
    return _beside(comparing, oracle, {name: json.dumps(choice) for name, choice in best.items()})


def _beside(comparing: Comparing, oracle: VariantScores, chosen: Mapping[str, str]) -> SpecOracle | None:
    """Return the oracle's score with those of the variants on the same tasks."""
    variants, settings = [v for v in comparing.scored if v.accuracy], comparing.intervals
    shared = [name for name in oracle.accuracy if all(name in v.accuracy for v in variants)]
    if not shared:
        return None
    best = [oracle.accuracy[name] for name in shared]

    def interval(values: Sequence[float], low: float = 0.0) -> Interval:
        return bootstrap_mean(values, bounds=(low, 1.0), **settings)

    trained = next((v for v in variants if v.name == TRAINED_TEACHER), None)
    mine = None if trained is None else [trained.accuracy[name] for name in shared]
    return SpecOracle(
        tasks=len(shared),
        oracle=interval(best),
        variants={v.name: interval([v.accuracy[name] for name in shared]) for v in variants},
        share=None if mine is None else kept_share(mine, best, **settings),
        regret=None if mine is None else interval([b - m for b, m in zip(best, mine, strict=True)], -1.0),
        chosen=dict(chosen),
    )


def _best(scores: Sequence[float | None]) -> int | None:
    known = [place for place, score in enumerate(scores) if score is not None]
    return max(known, key=lambda place: scores[place] or 0.0) if known else None


def _score(update: ScoredUpdate) -> float | None:
    exact, probability = update.accuracy, update.mean_token_probability
    return None if exact is None or probability is None else exact + _TIE * probability
