"""Every specification of a space tried on grid tasks: which is best for all of them, and which for each.

The best fixed one is chosen on training tasks and needs no teacher; only a teacher that reads the task can beat it. The
best one of each test task is the oracle, what reading can gain at most. Both are chosen by the tests that rewards come
from and then scored, like every variant, on those of the comparison.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from evaluation.across_seeds import kept_share
from evaluation.statistics import bootstrap_mean, known_mean
from evaluation.tasks import KnowledgeTask
from pipelines.comparison import scored_variant
from pipelines.records import EditRecord, Interval, ReplicateRecord, SamplingRecord
from pipelines.results import OracleRecord, SpecSearchRecord, VariantRecord
from pipelines.trials import update_requests
from pipelines.units import Units
from pipelines.workspace import Workspace
from teacher.spec_space import SpecSpace, edit_of, write_spec


class FixedSpec(NamedTuple):
    """The one specification that is best over the training tasks."""

    choice: dict[str, object]
    record: SpecSearchRecord


_TIE = 1e-3
"""Weight of the gold outputs' probability beside exact match: it orders specifications that solve equally many."""

Table = Mapping[str, Sequence[float | None]]
"""By task id, the score of each specification in the order of the space, None where it has none."""


def try_all(ws: Workspace, units: Units, tasks: Sequence[KnowledgeTask], space: SpecSpace, purpose: str) -> Table:
    """Return how well the student does on the rewarded tests of each task after each specification.

    Args:
        ws: The run's workspace.
        units: Where units run.
        tasks: Grid tasks.
        space: What is tried.
        purpose: Part of the seeds.
    """
    choices = list(space.choices())
    edits = [_written(task.id, place, choice) for task in tasks for place, choice in enumerate(choices)]
    replicates = units.banks(update_requests(ws, edits, purpose, 1), "rewards").replicates
    scores = {(r.document_id, r.index): _score(r) for r in replicates}
    return {task.id: [scores[task.id, place] for place in range(len(choices))] for task in tasks}


def best_fixed(table: Table) -> tuple[int, list[float | None]]:
    """Return the place of the specification with the best mean, and all means.

    One without a score on some task, such as one over the step budget, has no mean and cannot be the best.

    Raises:
        ValueError: None has a score on every task.
    """
    by_spec = list(zip(*table.values(), strict=True))
    means = [None if any(score is None for score in scores) else known_mean(scores) for scores in by_spec]
    known = [place for place, mean in enumerate(means) if mean is not None]
    if not known:
        raise ValueError("no specification has a score on every task")
    return max(known, key=lambda place: means[place] or 0.0), means


def find_fixed(ws: Workspace, units: Units) -> FixedSpec | None:
    """Return the best fixed specification on the run's training tasks; None where the run wants none."""
    plan = ws.config.comparison.specs
    if plan is None:
        return None
    tasks = ws.split.train[: plan.fixed_tasks]
    choices = list(plan.space.choices())
    best, means = best_fixed(try_all(ws, units, tasks, plan.space, "fixed specification"))
    scores = {write_spec(choice): mean for choice, mean in zip(choices, means, strict=True)}
    record = SpecSearchRecord(tasks=len(tasks), fixed=write_spec(choices[best]), scores=scores)
    return FixedSpec(choices[best], record)


def fixed_spec_variant(ws: Workspace, units: Units, fixed: FixedSpec, tasks: Sequence[KnowledgeTask]) -> VariantRecord:
    """Return the student adapted to every task with the best fixed specification."""
    edits = tuple(_written(task.id, 0, fixed.choice) for task in tasks)
    return scored_variant(
        ws, units, "fixed_spec", "best fixed specification", SamplingRecord(edits=edits, seconds=0.0), tasks
    )


def find_oracle(ws: Workspace, units: Units, variants: Sequence[VariantRecord]) -> OracleRecord | None:
    """Return what the best specification of each of some test tasks scores, and the variants beside it.

    None where the run wants no oracle, or where a task has no specification with a score.
    """
    plan, test = ws.config.comparison.specs, ws.split.test
    if plan is None or not plan.oracle_tasks:
        return None
    # At random, and not every n-th: where families of tasks take turns, that meets the same few again and again.
    drawn = random.Random(ws.seed("oracle tasks")).sample(range(len(test)), min(plan.oracle_tasks, len(test)))
    tasks = [test[place] for place in sorted(drawn)]
    choices = list(plan.space.choices())
    best = {name: _best_of(scores) for name, scores in try_all(ws, units, tasks, plan.space, "oracle").items()}
    edits = tuple(_written(name, 0, choices[place]) for name, place in best.items() if place is not None)
    sampling = SamplingRecord(edits=edits, seconds=0.0)
    oracle = scored_variant(ws, units, "spec_oracle", "best specification of each task", sampling, tasks)
    return _beside(ws, oracle, variants, {name: choices[place] for name, place in best.items() if place is not None})


def _beside(
    ws: Workspace, oracle: VariantRecord, variants: Sequence[VariantRecord], chosen: Mapping[str, dict[str, object]]
) -> OracleRecord | None:
    """Return the oracle's score with those of the variants on the same tasks."""
    shared = [name for name in oracle.accuracy if all(name in v.accuracy for v in variants if v.accuracy)]
    if not shared:
        return None
    best = [oracle.accuracy[name] for name in shared]

    def interval(values: Sequence[float], low: float = 0.0) -> Interval:
        return Interval.of(bootstrap_mean(values, bounds=(low, 1.0), **ws.intervals))

    trained = next((v for v in variants if v.name == "trained_teacher" and v.accuracy), None)
    mine = None if trained is None else [trained.accuracy[name] for name in shared]
    share = None if mine is None else kept_share(mine, best, **ws.intervals)
    return OracleRecord(
        tasks=len(shared),
        oracle=interval(best),
        variants={v.name: interval([v.accuracy[name] for name in shared]) for v in variants if v.accuracy},
        share=None if share is None else Interval.of(share),
        regret=None if mine is None else interval([b - m for b, m in zip(best, mine, strict=True)], -1.0),
        chosen={name: write_spec(choice) for name, choice in chosen.items()},
    )


def _best_of(scores: Sequence[float | None]) -> int | None:
    known = [place for place, score in enumerate(scores) if score is not None]
    return max(known, key=lambda place: scores[place] or 0.0) if known else None


def _score(replicate: ReplicateRecord) -> float | None:
    exact, probability = replicate.accuracy, replicate.mean_token_probability
    return None if exact is None or probability is None else exact + _TIE * probability


def _written(document_id: str, place: int, choice: dict[str, object]) -> EditRecord:
    return EditRecord(
        document_id=document_id,
        index=place,
        text=write_spec(choice),
        token_ids=(),
        finish_reason="stop",
        edit=edit_of(choice),
    )
