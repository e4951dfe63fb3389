"""Self-edits put to the test in a round: gates, cheap scores, then updates of students, more for the leaders."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TypeAlias

from pipelines.records import (
    CandidateRecord,
    EditRecord,
    ReplicateRecord,
    RoundRecord,
    SamplingRecord,
    ScreeningRecord,
    UsageRecord,
    edits_by_document,
)
from pipelines.units import Units
from pipelines.work import UpdateRequest
from pipelines.workspace import Workspace
from teacher.allocation import leaders
from teacher.config import RewardConfig
from teacher.gates import EditFacts, edit_facts, first_equal, refusal
from teacher.reward_model import RewardModel, features
from teacher.rewards import Replicate, RewardFailure, RewardOutcome, reward_of
from teacher.screening import check_screening, screen

Key: TypeAlias = str
"""`EditRecord.id`: document and index."""


@dataclass
class Trials:
    """What came of the self-edits of a round that could be parsed."""

    facts: dict[Key, dict[str, float]] = field(default_factory=dict)
    proxies: dict[Key, float | None] = field(default_factory=dict)
    """Mean gold-answer probability in context; empty where it was not asked for."""
    proxy_probabilities: dict[Key, tuple[float, ...]] = field(default_factory=dict)
    """The same by question."""
    predicted: dict[Key, float] = field(default_factory=dict)
    """The score that screening used."""
    audited: set[Key] = field(default_factory=set)
    refused: dict[Key, RewardFailure] = field(default_factory=dict)
    """By a gate or by screening."""
    replicates: dict[Key, tuple[ReplicateRecord, ...]] = field(default_factory=dict)
    """Equal self-edits of a document share theirs."""
    inner_runs: int = 0
    """Updates made, shared ones counted once."""
    seconds: float = 0.0
    usage: UsageRecord = field(default_factory=UsageRecord)


def update_requests(
    ws: Workspace, edits: Sequence[EditRecord], purpose: str, replicates: int, *, first: int = 0
) -> list[UpdateRequest]:
    """Return the updates to make for the self-edits that could be parsed.

    All self-edits of a document share their seeds (common random numbers): what differs between them is the edit.
    Seeds differ between purposes, so that no comparison reuses a round's luck.

    Args:
        ws: The run's workspace.
        edits: Those without a parsed self-edit are passed over.
        purpose: Part of every seed.
        replicates: Updates of each self-edit.
        first: Number of the first of them.
    """
    shared = ws.config.loop.common_random_numbers or not purpose.startswith("round")

    def seed(edit: EditRecord, replicate: int) -> int:
        own = () if shared else (edit.index,)
        return ws.seed("update", purpose, edit.document_id, replicate, *own)

    return [
        UpdateRequest(e.document_id, e.index, e.edit, seed(e, replicate))
        for replicate in range(first, first + replicates)
        for e in edits
        if e.edit is not None
    ]


def try_edits(
    ws: Workspace,
    units: Units,
    sampling: SamplingRecord,
    number: int,
    reward: RewardConfig,
    history: Sequence[RoundRecord],
) -> Trials:
    """Return what came of a round's self-edits.

    Args:
        ws: The run's workspace.
        units: Where units run.
        sampling: The self-edits.
        number: Of the round, counted from 0.
        reward: How scores become rewards; with the proxy no student is updated.
        history: The rounds before, for the regression that screens.
    """
    trials = Trials()
    parsed = [edit for edit in sampling.edits if edit.edit is not None]
    known = {edit.id: _facts(ws, edit) for edit in parsed}
    trials.facts = {key: _figures(facts) for key, facts in known.items()}
    for key, facts in known.items():
        reason = refusal(facts, ws.config.teacher.gates)
        if reason is not None:
            trials.refused[key] = reason
    passed = [edit for edit in parsed if edit.id not in trials.refused]
    screening = ws.config.teacher.screening
    if reward.metric == "proxy" or (screening is not None and screening.by == "proxy"):
        read_in_context(units, passed, trials)
    if reward.metric == "proxy":
        return trials
    if screening is not None:
        passed = _screened(ws, passed, known, number, history, trials)
    _update(ws, units, passed, number, reward, trials, _remembered(history) if ws.config.loop.remember else {})
    return trials


def _facts(ws: Workspace, edit: EditRecord) -> EditFacts:
    task = ws.tasks[edit.document_id]
    assert edit.edit is not None
    return edit_facts(edit.edit, edit.tokens, task.document.text, task.questions, ngram=ws.config.teacher.gates.ngram)


def _figures(facts: EditFacts) -> dict[str, float]:
    return {name: float(value) for name, value in asdict(facts).items() if value is not None}


def read_in_context(units: Units, edits: Sequence[EditRecord], trials: Trials) -> None:
    """Add the proxy scores of some self-edits."""
    pairs = [(edit.document_id, edit.edit) for edit in edits if edit.edit is not None]
    if not pairs:
        return
    found = units.proxy(pairs)
    trials.proxies |= {edit.id: value for edit, value in zip(edits, found.means, strict=True)}
    trials.proxy_probabilities |= {
        edit.id: values for edit, values in zip(edits, found.probabilities, strict=True) if values is not None
    }
    trials.seconds += found.seconds


def _screened(
    ws: Workspace,
    edits: Sequence[EditRecord],
    known: Mapping[Key, EditFacts],
    number: int,
    history: Sequence[RoundRecord],
    trials: Trials,
) -> list[EditRecord]:
    """Return the self-edits that are updated, and note those that are not."""
    config = ws.config.teacher.screening
    assert config is not None
    groups = [edit.document_id for edit in edits]
    if config.by == "proxy":
        scores = [trials.proxies.get(edit.id) for edit in edits]
    else:
        scores = _regressed(edits, known, history, trials) if number >= config.warm_up_rounds else [None] * len(edits)
    trials.predicted = {edit.id: score for edit, score in zip(edits, scores, strict=True) if score is not None}
    chosen = screen(
        groups,
        scores,
        skip_share=config.skip_share,
        audit_share=config.audit_share,
        rng=random.Random(ws.seed("screen", number)),
    )
    trials.audited = {edit.id for edit, audited in zip(edits, chosen.audited, strict=True) if audited}
    trials.refused |= {
        edit.id: RewardFailure.SCREENED_OUT for edit, runs in zip(edits, chosen.run, strict=True) if not runs
    }
    return [edit for edit, runs in zip(edits, chosen.run, strict=True) if runs]


def _regressed(
    edits: Sequence[EditRecord], known: Mapping[Key, EditFacts], history: Sequence[RoundRecord], trials: Trials
) -> list[float | None]:
    """Return what the regression on all rounds so far expects of each self-edit; Nones where it cannot be fitted."""
    past = [
        (f"{record.round}/{c.edit.document_id}", c)
        for record in history
        for c in record.candidates
        if c.reward is not None
    ]
    model = RewardModel.fit(
        [group for group, _ in past],
        [features(_restored(c), c.proxy) for _, c in past],
        [c.reward or 0.0 for _, c in past],
    )
    if model is None:
        return [None] * len(edits)
    return list(model.predict([features(known[edit.id], trials.proxies.get(edit.id)) for edit in edits]))


def _restored(candidate: CandidateRecord) -> EditFacts:
    facts = candidate.facts
    whole = {name: int(facts[name]) for name in ("tokens", "lines")}
    shares = {name: facts[name] for name in facts if name not in (*whole, "coverage")}
    return EditFacts(coverage=facts.get("coverage"), **whole, **shares)  # type: ignore[arg-type]


_Memory: TypeAlias = Mapping[tuple[str, str], Sequence[ReplicateRecord]]
"""By document and digest of a self-edit, its replicates."""


def _remembered(history: Sequence[RoundRecord]) -> _Memory:
    """Return what is known of self-edits that were updated in earlier rounds."""
    return {
        (c.edit.document_id, c.edit.edit.digest): c.replicates
        for record in history
        for c in record.candidates
        if c.edit.edit is not None and c.replicates
    }


def _update(
    ws: Workspace,
    units: Units,
    edits: Sequence[EditRecord],
    number: int,
    reward: RewardConfig,
    trials: Trials,
    memory: _Memory,
) -> None:
    """Add the replicates of some self-edits: all of them first, then stage by stage the leaders of each document.

    What is in memory is not updated again; seeds then do not depend on the round, so that all of a document compare.
    """
    loop = ws.config.loop
    purpose = "round" if loop.remember else f"round {number}"
    alike: dict[Key, Key] = {edit.id: edit.id for edit in edits}
    if loop.common_random_numbers:  # the same self-edit with the same seeds has the same scores
        for members in edits_by_document(edits).values():
            alike |= {e.id: members[i].id for e, i in zip(members, first_equal([e.edit for e in members]), strict=True)}
    once = [edit for edit in edits if alike[edit.id] == edit.id]
    made: dict[Key, list[ReplicateRecord]] = {
        edit.id: list(memory.get((edit.document_id, edit.edit.digest if edit.edit else ""), ())) for edit in once
    }

    def run(chosen: Sequence[EditRecord], replicates: int) -> None:
        # Dealt out before any is run, or those that were just updated would be taken for ones that had more before.
        parts: dict[int, list[EditRecord]] = {}
        for edit in chosen:
            parts.setdefault(len(made[edit.id]), []).append(edit)
        for count, part in sorted(parts.items()):
            record = units.banks(update_requests(ws, part, purpose, replicates, first=count), "rewards")
            for replicate in record.replicates:
                made[replicate.edit_id].append(replicate)
            trials.inner_runs += len(record.replicates)
            trials.seconds += record.seconds
            trials.usage = UsageRecord.merged([trials.usage, record.usage])

    run([edit for edit in once if not made[edit.id]], loop.replicates)
    repeated = repeated_documents(ws, number)
    if repeated:
        run([edit for edit in once if edit.document_id in repeated], 1)
    for stage in loop.halving:
        so_far = [outcome_of(made[edit.id], reward.of_any).value for edit in once]
        best = leaders([edit.document_id for edit in once], so_far, stage.keep)
        run([once[i] for i in best], stage.replicates)
    trials.replicates = {key: _shared(made[first], key) for key, first in alike.items()}


def repeated_documents(ws: Workspace, number: int) -> set[str]:
    """Return the documents of a round whose self-edits are all updated once more."""
    return {task.id for task in ws.round_documents(number)[: ws.config.loop.repeated_documents]}


def outcome_of(replicates: Sequence[ReplicateRecord], reward: RewardConfig) -> RewardOutcome:
    """Return the reward of one self-edit, or of the student without one."""
    plain = [
        Replicate(
            seed=r.seed,
            accuracy=r.accuracy,
            probability=r.mean_probability,
            token_probability=r.mean_token_probability,
            forgetting=r.forgetting,
            failure=r.failure,
        )
        for r in replicates
    ]
    return reward_of(plain, reward)


def _shared(replicates: Sequence[ReplicateRecord], key: Key) -> tuple[ReplicateRecord, ...]:
    """Return the replicates of a self-edit under the index of one that is equal to it."""
    index = int(key.rpartition("#")[2])
    return tuple(r if r.index == index else r.model_copy(update={"index": index}) for r in replicates)


def screening_record(trials: Trials, candidates: Sequence[CandidateRecord]) -> ScreeningRecord:
    """Return what screening left out of a round and how well its score told."""
    found = check_screening(
        [c.edit.document_id for c in candidates],
        [c.predicted for c in candidates],
        [c.reward for c in candidates],
        [c.audited for c in candidates],
    )
    return ScreeningRecord(
        skipped=sum(reason is RewardFailure.SCREENED_OUT for reason in trials.refused.values()),
        audited=len(trials.audited),
        rank_correlation=found.rank_correlation,
        audited_gap=found.audited_gap,
    )
