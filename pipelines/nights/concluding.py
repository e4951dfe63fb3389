"""How a night ends: its version registered and promoted, or not; documents set aside; the page; the plan closed."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from evaluation.gate import TOUCHED, GateReport, report_markdown
from pipelines.inbox.store import INBOX_FILE, InboxStore
from pipelines.nights import opening
from pipelines.nights.night import Measured, Night, NightStudent
from pipelines.nights.page import write_page
from pipelines.nights.results import GroupScore, NewDocument, NightResult
from pipelines.promotions import DATA_TAG, DECISION_TAG, NO_PARENT, PARENT_TAG
from pipelines.registry import MEMORY_TAG

NIGHT_TAG = "preceptor.night"
"""Tag of a version: the night that made it."""


def result_of(
    night: Night, student: NightStudent, measured: Measured, report: GateReport | None, teacher: str
) -> NightResult:
    """Return the result as far as it is known before anything is registered."""
    plan = night.plan
    return NightResult(
        night=plan.night,
        outcome="held",
        parent=plan.parent,
        new=_new_documents(night, student, measured),
        waiting=plan.without_questions,
        superseded=plan.superseded,
        groups=_group_scores(night, student, measured),
        probes=len(measured.base.probes),
        probes_base=_share(measured.base.probes),
        probes_before=_share(measured.before.probes),
        probes_after=_share(measured.after.probes),
        candidates=tuple(student.candidates),
        replayed=student.replayed,
        update=student.update,
        gate=report,
        teacher=teacher,
        mlflow_run_id=night.lineage.run_id,
        config_digest=night.config.digest,
        code_digest=night.ws.code_digest,
    )


def _new_documents(night: Night, student: NightStudent, measured: Measured) -> tuple[NewDocument, ...]:
    """Return what came in, where it went, and how well it is known before and after."""
    plan = night.plan
    replaces: dict[str, list[str]] = {}
    for old, newer in plan.superseded.items():
        replaces.setdefault(newer, []).append(old)
    return tuple(
        NewDocument(
            id=planned.task.id,
            title=planned.task.document.title,
            source=planned.task.document.source,
            place=planned.place,
            because=planned.because,
            questions=len(planned.task.comparison_questions),
            before=measured.before.accuracy([planned.task.id]),
            after=measured.after.accuracy([planned.task.id]),
            supersedes=tuple(replaces.get(planned.task.id, ())),
            not_learned=student.not_learned.get(planned.task.id, ""),
        )
        for planned in plan.documents
    )


def _group_scores(night: Night, student: NightStudent, measured: Measured) -> tuple[GroupScore, ...]:
    """Return how well the documents of each earlier night are known."""
    return tuple(
        GroupScore(
            night=name,
            documents=len(group),
            then=student.state.scores.get(name),
            before=measured.before.accuracy([held.task.id for held in group]),
            after=measured.after.accuracy([held.task.id for held in group]),
        )
        for name, group in student.state.groups().items()
        if name != night.plan.night
    )


def _share(right: Sequence[bool]) -> float | None:
    return sum(right) / len(right) if right else None


def conclude(night: Night, student: NightStudent, measured: Measured, result: NightResult) -> NightResult:
    """Register the student, promote it or not, write the page, and close the plan; return the whole result.

    Each step is done at most once however often a killed night comes here again, and the alias moves after everything
    that belongs to the version is written.
    """
    plan, ws, lineage = night.plan, night.ws, night.lineage
    mine = measured.after.accuracy([document.id for document in result.new if not document.not_learned])
    scores = {**student.state.scores, plan.night: mine or 0.0}
    state = student.state.model_copy(update={"scores": scores})
    with tempfile.TemporaryDirectory(dir=ws.work_dir) as scratch:
        files = opening.version_directory(_files_of(night, student), state, Path(scratch))
        version = lineage.register(
            "student",
            files,
            digest=student.adapter.digest,
            tags={NIGHT_TAG: plan.night, MEMORY_TAG: state.memory.digest, "preceptor.student": ws.student_digest},
            metrics={} if mine is None else {"eval/new_accuracy": mine},
        )
    done = result.model_copy(update={"version": version.version})
    text = report_markdown(done.gate) if done.gate is not None else f"{plan.night}: promoted without a gate.\n"
    if done.outcome == "promoted":
        record = {
            DECISION_TAG: "promote" if done.gate is not None else "no gate",
            DATA_TAG: state.digest,
            PARENT_TAG: NO_PARENT if plan.parent is None else str(plan.parent),
        }
        lineage.registry.promote("student", version.version, record=record, report=text)
    aside = _to_set_aside(done, measured)
    if aside:
        with InboxStore(ws.work_dir / INBOX_FILE) as inbox:
            inbox.set_aside(aside, _reason(done), plan.night)
    done = done.model_copy(update={"aside": aside})
    page = write_page(done, ws.work_dir / opening.NIGHTS / plan.night)
    done = done.model_copy(update={"page": str(page)})
    lineage.log_night(done, text, page)
    opening.write_night_file(ws.work_dir, plan.night, opening.RESULT, done.model_dump_json(indent=2))
    opening.close_plan(ws.work_dir)
    return done


def _files_of(night: Night, student: NightStudent) -> Path:
    """Return the directory of the student's adapter: made tonight, or the champion's own."""
    made = night.ws.adapter_dir(student.adapter.digest)
    return made if made.is_dir() or night.parent.directory is None else night.parent.directory


def _to_set_aside(result: NightResult, measured: Measured) -> tuple[str, ...]:
    """Return the ids of documents that wait for a person.

    All of a rejected night; of one that is held because it contradicts what was known, those that may be why.
    """
    if result.outcome == "rejected":
        return tuple(document.id for document in result.new)
    checks = () if result.gate is None else result.gate.checks
    contradicted = any(check.name == TOUCHED and check.verdict != "pass" for check in checks)
    return measured.suspects if contradicted else ()


def _reason(result: NightResult) -> str:
    """Return why the gate did not promote a night, in words for the person who may release its documents."""
    checks = () if result.gate is None else result.gate.checks
    worst = [check for check in checks if check.verdict == "fail"] or [c for c in checks if c.verdict != "pass"]
    return " ".join(f"{check.name}: {check.sentence}" for check in worst)
