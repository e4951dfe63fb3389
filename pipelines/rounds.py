"""One round of the loop: sample self-edits, update students, score them, form rewards, let the teacher learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evaluation.statistics import known_mean
from pipelines.diagnostics import edit_notes
from pipelines.records import CandidateRecord, RoundRecord, SamplingRecord
from pipelines.units import Units
from pipelines.work import UpdateRequest, groups_of, judge
from pipelines.workspace import Workspace
from teacher.selection import Selection, select_examples


def update_requests(ws: Workspace, sampling: SamplingRecord, purpose: str, replicates: int) -> list[UpdateRequest]:
    """Return the updates to make for the self-edits that could be parsed.

    All self-edits of a document share their seeds (common random numbers): what differs between them is the edit.
    Seeds differ between purposes, so that no comparison reuses a round's luck.
    """
    return [
        UpdateRequest(e.document_id, e.index, e.edit, ws.seed("update", purpose, e.document_id, replicate))
        for replicate in range(replicates)
        for e in sampling.edits
        if e.edit is not None
    ]


def run_round(ws: Workspace, units: Units, number: int, policy: str | None) -> RoundRecord:
    """Run one round and return its record; the teacher's new state is in the work directory.

    Args:
        ws: The run's workspace.
        units: Where units run.
        number: Counted from 0.
        policy: The teacher's state to start from; None is the untrained teacher.
    """
    teacher = ws.config.teacher
    tasks = ws.round_documents(number)
    sampling = units.sample(policy, teacher.prompt, tasks, n=teacher.samples, seed=ws.seed("sample", f"round {number}"))
    updates = units.banks(update_requests(ws, sampling, f"round {number}", ws.config.loop.replicates), "rewards")
    base = units.base(tasks, "rewards")
    candidates = judge(ws, sampling, updates.replicates, {record.document_id: record for record in base.replicates})
    selection = select_examples(groups_of(ws, teacher.prompt, candidates), teacher.learning)
    learning = units.learn(policy, selection.examples, seed=ws.seed("learn", number))
    return RoundRecord(
        round=number,
        document_ids=tuple(task.id for task in tasks),
        candidates=_weighted(candidates, selection),
        left_out={**{name: reason.value for name, reason in selection.left_out.items()}, **sampling.too_long},
        mean_reward=known_mean([c.reward for c in candidates]),
        base_reward=known_mean([c.base_reward for c in candidates]),
        learning=learning,
        seconds={"sample": sampling.seconds, "update": updates.seconds + base.seconds, "learn": learning.seconds},
        usage=updates.usage,
        notes=edit_notes(ws, sampling.edits),
    )


def _weighted(candidates: Sequence[CandidateRecord], selection: Selection) -> tuple[CandidateRecord, ...]:
    """Return the candidates with the weights that selection gave them."""
    weights: Mapping[tuple[str, tuple[int, ...]], float] = {
        (example.group_id, example.token_ids): example.weight for example in selection.examples
    }
    return tuple(
        c.model_copy(update={"weight": weights.get((c.edit.document_id, c.edit.token_ids))}) for c in candidates
    )
