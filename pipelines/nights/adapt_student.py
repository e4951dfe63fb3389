"""The flow `adapt-student`: everything new is routed, learned, scored for what it cost, and promoted or not."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from prefect import flow
from rich.console import Console

from evaluation.errors import LineageError
from evaluation.tasks import KnowledgeTask, Question, Split
from pipelines.config import read_config, to_yaml
from pipelines.embedded import embedded_flow
from pipelines.lineage import Lineage
from pipelines.lineage_store import flatten_params, run_tags
from pipelines.nights import learning, opening
from pipelines.nights.concluding import conclude, result_of
from pipelines.nights.config import NightConfig
from pipelines.nights.measuring import ask_gate, general_questions, measure
from pipelines.nights.night import Night, NightStudent
from pipelines.nights.opening import Champion
from pipelines.nights.plan import NightPlan
from pipelines.nights.questioning import write_missing_questions
from pipelines.nights.results import NightResult
from pipelines.nights.state import HeldDocument
from pipelines.nights.teachers import champion_teacher
from pipelines.nights.units import NightUnits
from pipelines.progress import Reporter
from pipelines.records import CandidateRecord
from pipelines.registry import Registry
from pipelines.units import Units
from pipelines.workspace import Workspace
from teacher.rewards import RewardFailure

FLOW_NAME = "adapt-student"
_OUTCOMES = {"promote": "promoted", "hold": "held", "reject": "rejected"}


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
    with embedded_flow(place, FLOW_NAME) as flow_run:
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
        write_missing_questions(config, work_dir, reporter.say)
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
            night = Night(
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


def _adapt(night: Night) -> NightResult:
    """Return the night's result; everything of it is logged, and the plan is closed."""
    started = time.perf_counter()
    policy, teacher = champion_teacher(night.ws, night.lineage.registry)
    probes, general = general_questions(night)
    student = _learn(night, policy, general)
    learned = time.perf_counter()
    measured = measure(night, student, probes)
    report = ask_gate(night, student, measured)
    outcome = "promote" if report is None else report.decision
    result = result_of(night, student, measured, report, teacher).model_copy(
        update={
            "outcome": _OUTCOMES[outcome],
            "seconds": {"learn": learned - started, "score": time.perf_counter() - learned},
        }
    )
    return conclude(night, student, measured, result)


def _learn(night: Night, policy: str | None, general: Sequence[Question]) -> NightStudent:
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
    return NightStudent(adapter, state, candidates, update, len(again), missing)


def _why(candidates: Sequence[CandidateRecord], task: KnowledgeTask) -> str:
    reasons = sorted({c.reason.value for c in candidates if c.edit.document_id == task.id and c.reason is not None})
    return ", ".join(reasons) or RewardFailure.GENERATION_FAILED.value
