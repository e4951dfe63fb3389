"""The flow `adapt-student`: everything new is routed, learned, scored for what it cost, and promoted or not."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from prefect import flow
from prefect.context import get_run_context
from rich.console import Console

from evaluation.errors import LineageError
from evaluation.gate import TOUCHED, GateReport, PairedScore, decide, report_markdown
from evaluation.retention import rehearsal_questions, retention_probes
from evaluation.tasks import KnowledgeTask, Question, Split
from pipelines.config import read_config, to_yaml
from pipelines.embedded import close_stale_flow_runs, exclusive, record_server, stop_orphans
from pipelines.inbox.store import INBOX_FILE, InboxStore
from pipelines.lineage import Lineage
from pipelines.lineage_store import flatten_params, run_tags
from pipelines.nights import learning, opening, scoring
from pipelines.nights.config import NightConfig
from pipelines.nights.opening import Champion
from pipelines.nights.page import write_page
from pipelines.nights.plan import NightPlan
from pipelines.nights.results import GroupScore, NewDocument, NightResult
from pipelines.nights.scoring import StudentScores
from pipelines.nights.state import HeldDocument, StudentState
from pipelines.nights.teachers import champion_teacher
from pipelines.nights.touched import contradicting, find_touched, touched_scores
from pipelines.nights.units import NightUnits
from pipelines.progress import Reporter
from pipelines.promotions import DATA_TAG, DECISION_TAG, NO_PARENT, PARENT_TAG
from pipelines.records import CandidateRecord
from pipelines.registry import MEMORY_TAG, Registry
from pipelines.units import Units
from pipelines.workspace import Workspace
from student.adapters import Adapter
from teacher.rewards import RewardFailure

FLOW_NAME = "adapt-student"
NIGHT_TAG = "preceptor.night"
"""Tag of a version: the night that made it."""
MOST_GENERAL = 100_000
"""Questions on general knowledge that are looked through for those about the new documents, at most."""
_OUTCOMES = {"promote": "promoted", "hold": "held", "reject": "rejected"}


class _Night(NamedTuple):
    config: NightConfig
    ws: Workspace
    plan: NightPlan
    parent: Champion
    units: Units
    own: NightUnits
    lineage: Lineage
    reporter: Reporter


class _Student(NamedTuple):
    """The student that the night made."""

    adapter: Adapter
    state: StudentState
    candidates: list[CandidateRecord]
    update: learning.NightUpdateRecord | None
    replayed: int
    not_learned: dict[str, str]
    """By id of a document for the weights, why they could not take it in."""


class _Measured(NamedTuple):
    """Scores on the same questions: probes are the retention probes alone."""

    after: StudentScores
    before: StudentScores
    base: StudentScores
    touched: tuple[PairedScore, ...]
    contradicting: tuple[str, ...]
    """Ids of new documents about whose subjects less is known than before."""


@flow(name=FLOW_NAME, persist_result=False)
def adapt_student(config_path: str, overrides: list[str] | None = None, work_dir: str = ".preceptor") -> NightResult:
    """Adapt the champion student to everything new in the inbox, and promote the result if the gate lets it through.

    A night that was killed is finished by the next start, with the same result; no student is ever half promoted,
    because a version is complete before an alias moves.

    Args:
        config_path: YAML file of the night.
        overrides: Settings such as `replay.documents=16`.
        work_dir: Directory of the inbox, the nights and the embedded stores.
    """
    config, place = read_config(Path(config_path), NightConfig, overrides or ()), Path(work_dir)
    with exclusive(place):
        stop_orphans(place)
        record_server(place)
        flow_run = str(get_run_context().flow_run.id)  # type: ignore[union-attr]
        close_stale_flow_runs(FLOW_NAME, flow_run)
        result = run_night(config, place, flow_run, Console())
        _announce(result, config.tracking.registry_prefix)
        return result


def _announce(result: NightResult, prefix: str) -> None:
    """Emit `preceptor.night.<outcome>`, which automations of a Prefect server can act on."""
    from prefect.events import emit_event

    emit_event(
        event=f"preceptor.night.{result.outcome.replace(' ', '-')}",
        resource={"prefect.resource.id": f"preceptor.student.{prefix}", "prefect.resource.name": f"{prefix}-student"},
        payload={"night": result.night, "version": result.version, "page": result.page, "run": result.mlflow_run_id},
    )


def run_night(config: NightConfig, work_dir: Path, flow_run: str, console: Console) -> NightResult:
    """Run one night in a work directory that this process holds; see `adapt_student`."""
    with Reporter(console, 8) as reporter:
        registry = Registry.open(config.tracking, work_dir)
        plan, parent = opening.open_plan(config, work_dir, registry, reporter.say)
        if plan is None:
            reporter.say("nothing new in the inbox")
            return NightResult(night="", outcome="nothing new", parent=parent.version)
        weights = sum(planned.place == "weights" for planned in plan.documents)
        told = f"{len(plan.documents)} new documents, {weights} for the weights"
        reporter.say(f"{plan.night}: {told} of {_name(parent)}")
        held = tuple(document.task for document in parent.state.documents)
        tasks = tuple({task.id: task for task in (*(p.task for p in plan.documents), *held)}.values())
        with Workspace(config.as_run(), work_dir, Split((), (), tasks)) as ws:
            lineage = _open_lineage(config, ws, plan, flow_run)
            night = _Night(
                config, ws, plan, parent, Units(ws, reporter), NightUnits(ws, reporter, config), lineage, reporter
            )
            try:
                result = _adapt(night)
            except BaseException:
                with suppress(LineageError):  # the first failure is the one to report
                    lineage.finish("FAILED")
                raise
            lineage.finish("FINISHED")
    return result


def _name(student: Champion) -> str:
    return "the base student" if student.version is None else f"version {student.version} of the student"


def _open_lineage(config: NightConfig, ws: Workspace, plan: NightPlan, flow_run: str) -> Lineage:
    lineage = Lineage.open(
        config.tracking,
        ws.work_dir,
        run_name=f"{config.name} {plan.night}",
        run_key=f"{FLOW_NAME}/{ws.key('night', [config.digest, plan.model_dump(mode='json')])}",
        config_yaml=to_yaml(config),
        params=flatten_params(config.model_dump(mode="json", exclude={"tracking"})),
        tags=run_tags(
            kind=FLOW_NAME,
            seed=config.seed,
            config_digest=config.digest,
            code_digest=ws.code_digest,
            flow_run_id=flow_run,
        ),
    )
    lineage.log_documents("train", [planned.task for planned in plan.documents])
    return lineage


def _adapt(night: _Night) -> NightResult:
    """Return the night's result; everything of it is logged, and the plan is closed."""
    started = time.perf_counter()
    policy, teacher = champion_teacher(night.ws, night.lineage.registry)
    probes, general = _general_questions(night)
    student = _learn(night, policy, general)
    learned = time.perf_counter()
    measured = _measure(night, student, probes)
    report = _judge(night, student, measured)
    outcome = "promote" if report is None else report.decision
    result = _result(night, student, measured, report, teacher).model_copy(
        update={
            "outcome": _OUTCOMES[outcome],
            "seconds": {"learn": learned - started, "score": time.perf_counter() - learned},
        }
    )
    return _conclude(night, student, measured, result)


def _general_questions(night: _Night) -> tuple[tuple[Question, ...], tuple[Question, ...]]:
    """Return the retention probes, and the questions on general knowledge that are trained on again."""
    config, ws = night.config, night.ws
    rehearsed = rehearsal_questions(
        config.general, config.replay.general, ws.seed("retention"), probes=len(ws.retention_probes)
    )
    return ws.retention_probes, rehearsed


def _learn(night: _Night, policy: str | None, general: Sequence[Question]) -> _Student:
    """Return the student with everything that is new."""
    config, ws, plan, parent = night.config, night.ws, night.plan, night.parent
    candidates = learning.best_edits(ws, night.units, policy, plan.to_weights, config, plan.night)
    edits = learning.learned_edits(candidates, config.writing.learned)
    again = learning.replayed(
        parent.state.after((), plan.superseded),
        config.composition,
        config.replay.documents,
        ws.seed("replay", plan.night),
    )
    update, adapter = None, parent.adapter
    if edits:
        whole = learning.lines_of(edits, again, general)
        update = night.own.update(parent.adapter, parent.directory, whole, seed=ws.seed("night", plan.night))
        adapter = learning.adapter_of(ws, update.adapter_digest) or adapter
    if adapter is None:
        adapter = learning.unchanged_student(ws, config.update, ws.seed("night", "unchanged"))
    failed = "" if update is None or update.adapter_digest is not None else update.detail
    missing = {task.id: failed or _why(candidates, task) for task in plan.to_weights if failed or task.id not in edits}
    new = [
        HeldDocument(
            task=planned.task,
            night=plan.night,
            place=planned.place,
            because=planned.because,
            edits=edits.get(planned.task.id, ()) if planned.place == "weights" else (),
            effective=planned.effective,
        )
        for planned in plan.documents
        if planned.task.id not in missing
    ]
    state = parent.state.after(new, plan.superseded).model_copy(update={"parent": parent.version})
    return _Student(adapter, state, candidates, update, len(again), missing)


def _why(candidates: Sequence[CandidateRecord], task: KnowledgeTask) -> str:
    reasons = sorted({c.reason.value for c in candidates if c.edit.document_id == task.id and c.reason is not None})
    return ", ".join(reasons) or RewardFailure.GENERATION_FAILED.value


def _measure(night: _Night, student: _Student, probes: Sequence[Question]) -> _Measured:
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
    against = contradicting(touched, found)
    return _Measured(after.with_probes(count), before.with_probes(count), base, found, against)


def _judge(night: _Night, student: _Student, measured: _Measured) -> GateReport | None:
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


def _result(
    night: _Night, student: _Student, measured: _Measured, report: GateReport | None, teacher: str
) -> NightResult:
    """Return the result as far as it is known before anything is registered."""
    plan, state = night.plan, student.state
    replaces: dict[str, list[str]] = {}
    for old, newer in plan.superseded.items():
        replaces.setdefault(newer, []).append(old)
    new = tuple(
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
    groups = tuple(
        GroupScore(
            night=name,
            documents=len(group),
            then=state.scores.get(name),
            before=measured.before.accuracy([held.task.id for held in group]),
            after=measured.after.accuracy([held.task.id for held in group]),
        )
        for name, group in state.groups().items()
        if name != plan.night
    )
    return NightResult(
        night=plan.night,
        outcome="held",
        parent=plan.parent,
        new=new,
        waiting=plan.without_questions,
        superseded=plan.superseded,
        groups=groups,
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


def _share(right: Sequence[bool]) -> float | None:
    return sum(right) / len(right) if right else None


def _conclude(night: _Night, student: _Student, measured: _Measured, result: NightResult) -> NightResult:
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


def _files_of(night: _Night, student: _Student) -> Path:
    """Return the directory of the student's adapter: made tonight, or the champion's own."""
    made = night.ws.adapter_dir(student.adapter.digest)
    return made if made.is_dir() or night.parent.directory is None else night.parent.directory


def _to_set_aside(result: NightResult, measured: _Measured) -> tuple[str, ...]:
    """Return the ids of documents that wait for a person: all of a rejected night, and of one that is held because it
    contradicts what was known, those that do.
    """
    if result.outcome == "rejected":
        return tuple(document.id for document in result.new)
    checks = () if result.gate is None else result.gate.checks
    contradicted = any(check.name == TOUCHED and check.verdict != "pass" for check in checks)
    return measured.contradicting if contradicted else ()


def _reason(result: NightResult) -> str:
    """Return why the gate did not promote a night, in words for the person who may release its documents."""
    checks = () if result.gate is None else result.gate.checks
    worst = [check for check in checks if check.verdict == "fail"] or [c for c in checks if c.verdict != "pass"]
    return " ".join(f"{check.name}: {check.sentence}" for check in worst)
