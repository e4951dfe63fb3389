"""Self-edits of a variant updated, with others in place of those that are refused for what they say."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from pipelines.records import (
    CandidateRecord,
    EditRecord,
    ReplicateRecord,
    SamplingRecord,
    UsageRecord,
    replicates_by_edit,
)
from pipelines.rewarding import judge
from pipelines.trials import Trials, update_requests
from pipelines.units import Units
from pipelines.workspace import Workspace
from teacher.rewards import REFUSALS


class TriedEdits(NamedTuple):
    """Self-edits with what came of them."""

    candidates: list[CandidateRecord]
    replicates: tuple[ReplicateRecord, ...]
    usage: UsageRecord
    redrawn: int
    """Self-edits that took the place of refused ones; those have their indices now."""


def update_with_redraws(ws: Workspace, units: Units, sampling: SamplingRecord, *, keep: int) -> TriedEdits:
    """Return what came of the first self-edits of each document, and of others that stand in for refused ones.

    A refused one changes places with the document's next, so that indices below `comparison.edits` are those that the
    variant is made of.

    Args:
        ws: The run's workspace.
        units: Where units run.
        sampling: The self-edits.
        keep: Documents, from the first on, of which the adapter of the first self-edit is kept.
    """
    count = ws.config.comparison.edits
    kept = set(list(dict.fromkeys(edit.document_id for edit in sampling.edits if edit.index == 0))[:keep])
    plain = ws.config.teacher.reward.model_copy(update={"retention_weight": 0.0, "metric": "probability"})
    waiting: dict[str, list[EditRecord]] = defaultdict(list)
    for edit in sampling.edits:
        if edit.index >= count:
            waiting[edit.document_id].append(edit)
    todo = [edit for edit in sampling.edits if edit.index < count]
    found: dict[str, CandidateRecord] = {}
    records: list[ReplicateRecord] = []
    usages: list[UsageRecord] = []
    redrawn = 0
    while todo:
        requests = [
            request._replace(keep=request.sample == 0 and request.document_id in kept)
            for request in update_requests(ws, todo, "comparison", 1)
        ]
        updates = units.banks(requests, "comparison")
        usages.append(updates.usage)
        trials = Trials(replicates=replicates_by_edit(updates.replicates))
        judged = judge(SamplingRecord(edits=tuple(todo), seconds=0.0), trials, {}, plain.of_any)
        todo = []
        for candidate in judged:
            others = waiting[candidate.edit.document_id]
            if candidate.reason in REFUSALS and others:
                spare = others.pop(0)
                todo.append(spare.model_copy(update={"index": candidate.edit.index}))
                candidate = _at(candidate, spare.index)
            found[candidate.edit.id] = candidate
            records += candidate.replicates
        redrawn += len(todo)
    places = {name: place for place, name in enumerate(dict.fromkeys(edit.document_id for edit in sampling.edits))}
    candidates = sorted(found.values(), key=lambda c: (places[c.edit.document_id], c.edit.index))
    return TriedEdits(candidates, tuple(records), UsageRecord.merged(usages), redrawn)


def _at(candidate: CandidateRecord, index: int) -> CandidateRecord:
    """Return a candidate under another index."""
    edit = candidate.edit.model_copy(update={"index": index})
    replicates = tuple(replicate.model_copy(update={"index": index}) for replicate in candidate.replicates)
    return candidate.model_copy(update={"edit": edit, "replicates": replicates})
