"""What a night's student knows, against the champion and the base, and what the gate makes of it."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.gate import GateReport, decide
from evaluation.retention import rehearsal_questions, retention_probes
from evaluation.tasks import Question
from pipelines.nights import scoring
from pipelines.nights.night import Measured, Night, NightStudent
from pipelines.nights.state import StudentState
from pipelines.nights.touched import find_touched, suspects, touched_scores

MOST_GENERAL = 100_000
"""Questions on general knowledge that are looked through for those about the new documents, at most."""


def general_questions(night: Night) -> tuple[tuple[Question, ...], tuple[Question, ...]]:
    """Return the retention probes, and the questions on general knowledge that are trained on again."""
    config, ws = night.config, night.ws
    rehearsed = rehearsal_questions(
        config.general, config.replay.general, ws.seed("retention"), probes=len(ws.retention_probes)
    )
    return ws.retention_probes, rehearsed


def measure(night: Night, student: NightStudent, probes: Sequence[Question]) -> Measured:
    """Return the scores of the night's student, of the champion, and of the base, on the same questions."""
    config, parent, own, ids = night.config, night.parent, night.own, {p.task.id for p in night.plan.documents}
    asked = [held.task for held in student.state.documents if held.asked]
    pool = retention_probes(config.general, MOST_GENERAL, night.ws.seed("retention"))
    touched = find_touched(
        [task for task in asked if task.id in ids],
        [task for task in asked if task.id not in ids],
        pool,
    )
    whole, count = (*probes, *touched.general), len(probes)
    after = own.scores("the new student", student.adapter, student.state.memory, asked, whole)
    before = own.scores("the champion", parent.adapter, parent.state.memory, asked, whole)
    base = own.scores("the base student", None, StudentState().memory, (), probes)
    found = touched_scores(touched, after, before, after.probes[count:], before.probes[count:])
    against = suspects(touched, found)
    return Measured(after.with_probes(count), before.with_probes(count), base, found, against)


def ask_gate(night: Night, student: NightStudent, measured: Measured) -> GateReport | None:
    """Return what the gate says; None without one."""
    if night.config.gate is None:
        return None
    groups = {name: [held.task.id for held in group] for name, group in student.state.groups().items()}
    new = groups.pop(night.plan.night, [])
    update = student.update
    canaries = {"update": None if update is None or update.adapter_digest else update.detail}
    evidence = scoring.evidence_of(
        measured.after, measured.before, measured.base.probes, new, groups, canaries, measured.touched
    )
    return decide(evidence, night.config.gate)
