"""The flow `adapt-student`: everything new is routed, learned, scored against the champion, and promoted or not."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from prefect import flow
from prefect.events import emit_event
from rich.console import Console

from evaluation.common.errors import LineageError
from evaluation.common.storage import write_atomically
from evaluation.gate.decisions import TOUCHED, report_markdown
from evaluation.retention import retention_probes
from pipelines.adapt_student.config import NightConfig
from pipelines.adapt_student.evaluate import PROBES, Measured, answer_settings, ask_gate, measure, suspects
from pipelines.adapt_student.learn import Night, champion_teacher, learn
from pipelines.adapt_student.page import PAGE, GroupScore, NewDocument, NightResult, Outcome, page_of
from pipelines.adapt_student.plan import (
    NIGHTS,
    RESULT,
    SCORES,
    champion_number,
    close_plan,
    open_plan,
    plan_night,
    plan_questions,
    read_inbox,
)
from pipelines.adapt_student.state import StudentVersion, student_label, version_directory
from pipelines.execution import code_digest, content_key
from pipelines.inbox.questions import write_questions
from pipelines.inbox.store import INBOX_FILE, InboxStore
from pipelines.lineage.registry import (
    DATA_TAG,
    DECISION_TAG,
    MEMORY_TAG,
    NIGHT_TAG,
    NO_PARENT,
    PARENT_TAG,
    TEACHER_TAG,
    Registry,
    score_tags,
)
from pipelines.lineage.run import Lineage
from pipelines.loop.loop import Loop
from pipelines.models import open_student, with_answer_format
from pipelines.plan import Stage, steps_of
from pipelines.process import embedded_flow
from pipelines.reports.console import Reporter
from pipelines.reports.format import counted
from pipelines.settings import load
from teacher.samplers.openai import OpenAISampling
from teacher.samplers.sampler import Sampler

FLOW_NAME = "adapt-student"
_OUTCOMES: dict[str, Outcome] = {"promote": "promoted", "hold": "held", "reject": "rejected"}


@flow(name=FLOW_NAME, persist_result=False)
def adapt_student(config_path: str, overrides: list[str] | None = None, work_dir: str = ".preceptor") -> NightResult:
    """Adapt the champion student to everything new in the inbox, and promote the result if it passes the gate.

    The next start finishes a night that was killed, with the same result; no student is ever half promoted, because a
    version is complete before an alias moves.

    Args:
        config_path: YAML file of the night.
        overrides: Settings such as `replay.documents=16`.
        work_dir: Directory of the inbox, the nights and the embedded stores.
    """
    config, place = load(Path(config_path), NightConfig, overrides or ()), Path(work_dir)
    prefix = config.tracking.registry_prefix
    with embedded_flow(place, FLOW_NAME) as flow_run:
        result = run_night(config, place, flow_run, Console())
        payload = {"night": result.night, "version": result.version, "page": result.page, "run": result.mlflow_run_id}
        resource = {"prefect.resource.id": f"preceptor.student.{prefix}", "prefect.resource.name": f"{prefix}-student"}
        # Automations of a Prefect server can act on it.
        emit_event(f"preceptor.night.{result.outcome.replace(' ', '-')}", resource=resource, payload=payload)
        close_plan(place)  # last, so that a killed night comes back to whatever is missing
    return result


def run_night(config: NightConfig, work_dir: Path, flow_run: str, console: Console) -> NightResult:
    """Run one night in a work directory that this process holds; see `adapt_student`."""
    registry = Registry.open(config.tracking, work_dir)
    champion_number(registry, work_dir)  # before anything is computed
    write_missing_questions(config, work_dir, console)
    plan, parent = open_plan(config, work_dir, registry, console.print)
    if plan is None:
        return NightResult(night="", outcome="nothing new", parent=parent.number)
    config = with_answer_format(config)
    stages = plan_night(config, plan, parent.state)
    held = (document.task for document in parent.state.documents)
    tasks = {task.id: task for task in (*(planned.task for planned in plan.documents), *held)}
    probes = retention_probes(config.general, config.probes, config.seed_of("retention"))
    with (
        Reporter(console, len(steps_of(stages))) as reporter,
        Loop(config, work_dir, tasks.values(), probes, reporter) as loop,
    ):
        new = f"{counted(len(plan.documents), 'new document')}, {len(plan.to_weights)} for the weights"
        reporter.say(f"{plan.night}: {new} of {student_label(parent.number)}")
        key = content_key(config, "night", [config.digest, plan.model_dump(mode="json")])
        run_name = f"{config.name} {plan.night}"
        lineage = Lineage(config, work_dir, kind=FLOW_NAME, run_name=run_name, key=key, flow_run=flow_run)
        lineage.log_documents("train", [planned.task for planned in plan.documents])
        try:
            result = _adapt(Night(config, loop, plan, parent), lineage, {stage.name: stage for stage in stages})
        except BaseException:
            with suppress(LineageError):  # the first failure is the one to report
                lineage.finish("FAILED")
            raise
        lineage.finish("FINISHED")
    return result


def write_missing_questions(config: NightConfig, work_dir: Path, console: Console) -> int:
    """Generate questions for documents of the inbox that have none; return how many documents got some.

    The untrained teacher writes them, not the champion: the measure of rewards must not change with what earns them.
    They are stored with the document and never enter a prompt.
    """
    unasked = read_inbox(work_dir).unasked
    plan = plan_questions(config, len(unasked))
    if config.questions is None or not plan:
        return 0
    with Reporter(console, len(steps_of(plan))) as reporter, Loop(config, work_dir, (), (), reporter) as loop:
        settings, seed = config.questions, loop.seed("questions")
        if isinstance(config.teacher.sampling, OpenAISampling):
            sampler: Sampler = loop.endpoint(config.teacher.sampling, "teacher")
        else:
            loop.open_teacher.at(None)
            sampler = loop.open_teacher.sampler
        tokenizer = loop.open_teacher.policy.tokenizer if config.teacher.chat else None
        student, form = open_student(loop.student_ref), loop.settings.student.answer_format
        ((name, (sample, read), _),) = plan
        with reporter.step(sample, name), reporter.step(read, name):
            written = write_questions(unasked, sampler, student, form, settings, seed, tokenizer)
        kept = [(document, found) for document, found in zip(unasked, written, strict=True) if found]
        with InboxStore(work_dir / INBOX_FILE) as inbox:
            for document, found in kept:
                inbox.put_questions(document.id, found)
        questions = counted(sum(len(found) for _, found in kept), "question")
        reporter.say(f"{questions} written for {len(kept)} of {counted(len(unasked), 'document')}")
    return len(kept)


def _adapt(night: Night, lineage: Lineage, stages: Mapping[str, Stage]) -> NightResult:
    """Return the night's result; everything of it is logged."""
    config, loop, plan, started = night.config, night.loop, night.plan, time.perf_counter()
    state, teacher, number = champion_teacher(loop, lineage.registry)
    learned = learn(night, state, stages)
    took = {"learn": time.perf_counter() - started}
    measured = measure(night, learned.student, stages[SCORES])
    took["score"] = time.perf_counter() - started - took["learn"]
    report = ask_gate(night, learned, measured)
    result = NightResult(
        night=plan.night,
        outcome="promoted" if report is None else _OUTCOMES[report.decision],
        parent=plan.parent,
        new=tuple(
            NewDocument(
                id=(name := planned.task.id),
                title=planned.task.document.title,
                source=planned.task.document.source,
                place=planned.place,
                because=planned.because,
                questions=len(planned.task.comparison_questions),
                before=measured.before.accuracy(name),
                after=measured.after.accuracy(name),
                supersedes=tuple(old for old, new in plan.superseded.items() if new == name),
                not_learned=learned.missing.get(name, ""),
            )
            for planned in plan.documents
        ),
        waiting=plan.without_questions,
        superseded=plan.superseded,
        groups=tuple(
            GroupScore(
                night=name,
                documents=len(group),
                then=learned.student.state.scores.get(name),
                before=measured.before.accuracy(*(held.task.id for held in group)),
                after=measured.after.accuracy(*(held.task.id for held in group)),
            )
            for name, group in learned.student.state.groups().items()
            if name != plan.night
        ),
        probes=len(loop.probes),
        probes_base=measured.base.accuracy(PROBES),
        probes_before=measured.before.accuracy(PROBES),
        probes_after=measured.after.accuracy(PROBES),
        candidates=tuple(learned.candidates),
        replayed=learned.replayed,
        update=learned.update,
        gate=report,
        seconds=took,
        teacher=teacher,
        teacher_version=number,
        mlflow_run_id=lineage.run_id,
        config_digest=config.digest,
        code_digest=code_digest(),
    )
    return conclude(night, lineage, learned.student, measured, result)


def conclude(
    night: Night, lineage: Lineage, student: StudentVersion, measured: Measured, result: NightResult
) -> NightResult:
    """Register the student, promote it or not, quarantine documents, and write the page and the result.

    Each step happens at most once however often a killed night gets here again, and the alias moves after everything
    that belongs to the version is written.
    """
    assert student.directory is not None
    assert student.adapter is not None
    plan, work_dir = night.plan, night.loop.work_dir
    accuracy = measured.after.accuracy(*(document.id for document in result.new if not document.not_learned))
    state = student.state.model_copy(update={"scores": {**student.state.scores, plan.night: accuracy or 0.0}})
    tags = {
        NIGHT_TAG: plan.night,
        MEMORY_TAG: state.memory.digest,
        "preceptor.student": night.loop.student_digest,
        DECISION_TAG: "no gate" if result.gate is None else result.gate.decision,
        TEACHER_TAG: "untrained" if result.teacher_version is None else str(result.teacher_version),
        **score_tags({"new": accuracy, "probes_before": result.probes_before, "probes_after": result.probes_after}),
    }
    with tempfile.TemporaryDirectory(dir=work_dir) as scratch:
        files = version_directory(student.directory, state, answer_settings(night, student, measured), Path(scratch))
        version = lineage.registry.register(
            "student",
            files,
            digest=student.adapter.digest,
            run_id=lineage.run_id,
            tags=tags,
            metrics={} if accuracy is None else {"eval/new_accuracy": accuracy},
        )
    report = f"{plan.night}: promoted without a gate.\n" if result.gate is None else report_markdown(result.gate)
    if result.outcome == "promoted":
        record = {
            DECISION_TAG: tags[DECISION_TAG],  # a version of an earlier release has none yet
            DATA_TAG: state.digest,
            PARENT_TAG: NO_PARENT if plan.parent is None else str(plan.parent),
        }
        lineage.registry.promote("student", version, record=record, report=report)
    quarantined: tuple[str, ...] = ()
    if result.outcome == "rejected":
        quarantined = tuple(document.id for document in result.new)
    elif any(check.name == TOUCHED for check in result.trouble):
        quarantined = suspects(measured)
    if quarantined:
        with InboxStore(work_dir / INBOX_FILE) as inbox:
            worst = [check for check in result.trouble if check.verdict == "fail"] or result.trouble
            reason = " ".join(f"{check.name}: {check.sentence}" for check in worst)
            inbox.quarantine(quarantined, reason, plan.night)
    directory = work_dir / NIGHTS / plan.night
    page = directory / PAGE
    result = result.model_copy(update={"version": version, "quarantined": quarantined, "page": str(page)})
    write_atomically(page, page_of(result))
    lineage.log_night(result, report, page)
    write_atomically(directory / RESULT, result.model_dump_json(indent=2))
    return result
