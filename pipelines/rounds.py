"""The rounds of a teacher: sample self-edits, update students, score them, form rewards, let the teacher learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from evaluation.statistics import known_mean
from pipelines.development import Progress
from pipelines.diagnostics import edit_notes
from pipelines.records import CandidateRecord, ReliabilityRecord, RoundRecord, replicates_by_edit
from pipelines.rewarding import (
    groups_of,
    judge,
    mean_runs,
    measured,
    reliability_record,
    replicate_values,
    with_learned_rewards,
)
from pipelines.trials import (
    Trials,
    read_in_context,
    repeated_documents,
    screening_record,
    try_edits,
    update_requests,
)
from pipelines.units import Units
from pipelines.workspace import Workspace
from teacher.config import RewardConfig
from teacher.rewards import Reliability
from teacher.selection import Selection, select_examples

RELIABILITY_ROUNDS = 5
"""Rounds that an estimate of reliability looks back on: rewards spread otherwise as the teacher changes."""

_Values = list[list[list[float]]]
"""Rewards of single updates (D, E, S)."""


class Pilot(NamedTuple):
    """The reliability of rewards before any learning."""

    values: _Values
    """By the run's own metric."""
    records: dict[str, ReliabilityRecord]
    """By metric: `accuracy` and `probability`."""


def run_pilot(ws: Workspace, units: Units, reward: RewardConfig) -> Pilot | None:
    """Return how reliable rewards are for the untrained teacher's self-edits; None where the run has no pilot.

    Its documents are the last ones of the training side, which the first rounds need not share.
    """
    plan = ws.config.loop.pilot
    if plan is None:
        return None
    tasks = ws.split.train[-plan.documents :]
    sampling = units.sample(None, ws.config.teacher.prompt, tasks, n=plan.samples, seed=ws.seed("sample", "pilot"))
    updates = units.banks(update_requests(ws, sampling.edits, "pilot", plan.replicates), "rewards")
    trials = Trials(replicates=replicates_by_edit(updates.replicates))
    counts = {task.id: plan.replicates for task in tasks}
    found: dict[str, _Values] = {}
    for metric in ("accuracy", "probability"):
        other = reward.model_copy(update={"metric": metric})
        found[metric] = replicate_values(judge(sampling, trials, {}, other), other, counts)
    records = {m: reliability_record(measured([v]), float(plan.replicates)) for m, v in found.items()}
    return Pilot(
        found.get(reward.metric, []), {metric: record for metric, record in records.items() if record is not None}
    )


class Course(NamedTuple):
    """The rounds of one teacher."""

    rounds: tuple[RoundRecord, ...]
    policy: str | None
    """The state that is taken on: the best on the development documents, or the last one; None after no round."""


def run_course(
    ws: Workspace,
    units: Units,
    reward: RewardConfig,
    pilot: Pilot | None,
    on_round: Callable[[RoundRecord], None],
) -> Course:
    """Run all rounds of one teacher.

    Args:
        ws: The run's workspace.
        units: Where units run.
        reward: How scores become rewards.
        pilot: Reliability before learning, which the first rounds' estimates rest on.
        on_round: Called with each round's record.
    """
    settings = ws.config.loop.development
    rounds: list[RoundRecord] = []
    values: list[_Values] = [] if pilot is None else [pilot.values]
    policy: str | None = None
    progress = None if settings is None else Progress(settings)
    for number in range(ws.config.loop.rounds):
        record, found = _run_round(ws, units, number, policy, reward, rounds, values[-RELIABILITY_ROUNDS:])
        values.append(found)
        policy = record.learning.policy
        last = number == ws.config.loop.rounds - 1
        if progress is not None and settings is not None and (last or (number + 1) % settings.every == 0):
            look = progress.look(policy, _development_reward(ws, units, policy, reward))
            record = record.model_copy(update={"development": look})
            policy = progress.goes_on_from
        rounds.append(record)
        on_round(record)
        if progress is not None and progress.ended:
            break
    return Course(tuple(rounds), policy if progress is None or not rounds else progress.best_policy)


def _run_round(
    ws: Workspace,
    units: Units,
    number: int,
    policy: str | None,
    reward: RewardConfig,
    history: Sequence[RoundRecord],
    earlier: Sequence[_Values],
) -> tuple[RoundRecord, _Values]:
    """Return the record of one round, and the rewards of its single updates; the new state is in the work directory."""
    teacher, tasks = ws.config.teacher, ws.round_documents(number)
    sampling = units.sample(policy, teacher.prompt, tasks, n=teacher.samples, seed=ws.seed("sample", f"round {number}"))
    trials = try_edits(ws, units, sampling, number, reward, history)
    base = units.base(tasks, "rewards")
    base_by_document = {record.document_id: record for record in base.replicates}
    judged = judge(sampling, trials, base_by_document, reward)
    values = replicate_values(judged, reward, _replicate_counts(ws, number)) if reward.metric != "proxy" else []
    found: Reliability | None = measured([*earlier, values])
    candidates = with_learned_rewards(judged, found, reward)
    selection = select_examples(groups_of(ws, teacher.prompt, candidates, base_by_document, reward), teacher.learning)
    learning = units.learn(policy, selection.examples, seed=ws.seed("learn", number))
    record = RoundRecord(
        round=number,
        document_ids=tuple(task.id for task in tasks),
        candidates=_weighted(candidates, selection),
        left_out={**{name: reason.value for name, reason in selection.left_out.items()}, **sampling.too_long},
        mean_reward=known_mean([c.reward for c in candidates]),
        base_reward=known_mean([c.base_reward for c in candidates]),
        learning=learning,
        seconds={"sample": sampling.seconds, "update": trials.seconds + base.seconds, "learn": learning.seconds},
        usage=trials.usage,
        inner_runs=trials.inner_runs,
        reliability=reliability_record(found, mean_runs(candidates)),
        screening=screening_record(trials, candidates) if teacher.screening and reward.metric != "proxy" else None,
        notes=edit_notes(ws, sampling.edits),
    )
    return record, values


def _replicate_counts(ws: Workspace, number: int) -> dict[str, int]:
    """Return how many updates all self-edits of each document of a round had."""
    repeated, least = repeated_documents(ws, number), ws.config.loop.replicates
    return {task.id: least + (task.id in repeated) for task in ws.round_documents(number)}


def _development_reward(ws: Workspace, units: Units, policy: str, reward: RewardConfig) -> float | None:
    """Return a teacher's mean reward on the development documents; every teacher has the same seeds."""
    plan, tasks = ws.config.loop.development, ws.split.development
    assert plan is not None
    prompt, seed = ws.config.teacher.prompt, ws.seed("sample", "development")
    sampling = units.sample(policy, prompt, tasks, n=plan.edits, seed=seed)
    trials = Trials()
    parsed = [edit for edit in sampling.edits if edit.edit is not None]
    if reward.metric == "proxy":
        read_in_context(units, parsed, trials)
    else:
        updates = units.banks(update_requests(ws, sampling.edits, "development", 1), "rewards")
        trials.replicates = replicates_by_edit(updates.replicates)
    return known_mean(candidate.reward for candidate in judge(sampling, trials, {}, reward.of_any))


def _weighted(candidates: Sequence[CandidateRecord], selection: Selection) -> tuple[CandidateRecord, ...]:
    """Return the candidates with the weights that selection gave them; in several pairs they add up."""
    weights: dict[tuple[str, tuple[int, ...]], float] = {}
    for example in selection.examples:
        key = (example.group_id, example.token_ids)
        weights[key] = weights.get(key, 0.0) + example.weight if example.pair is not None else example.weight
    return tuple(
        c.model_copy(update={"weight": weights.get((c.edit.document_id, c.edit.token_ids))}) for c in candidates
    )
