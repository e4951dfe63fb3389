"""The flow `adapt-student`: everything new is routed, learned, scored against the champion, and promoted or not."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from rich.console import Console

from evaluation.common.storage import write_atomically
from evaluation.gate.decisions import TOUCHED, report_markdown
from evaluation.retention import retention_probes
from pipelines.adapt_student import evaluate
from pipelines.adapt_student.base import WEAK_BASE, ask_base
from pipelines.adapt_student.config import NightConfig
from pipelines.adapt_student.learn import Learned, Night, champion_teacher, learn
from pipelines.adapt_student.page import (
    PAGE,
    GroupScore,
    NewDocument,
    NightResult,
    Outcome,
    night_lines,
    night_markdown,
    page_of,
)
from pipelines.adapt_student.plan import (
    NIGHTS,
    NOT_LEARNED,
    RESULT,
    SCORES,
    WITHOUT_QUESTIONS,
    close_plan,
    new_plan,
    open_plan,
    plan_night,
    plan_questions,
    read_inbox,
    waits,
)
from pipelines.adapt_student.queue import night_results
from pipelines.adapt_student.state import (
    HeldDocument,
    StudentVersion,
    student_label,
    student_version,
    version_directory,
)
from pipelines.checks import check, findings_of
from pipelines.execution import code_digest, content_key
from pipelines.flow_run import Ending, ended, entered, name_run, page_of_run, result_of, show_report
from pipelines.inbox.interactions import reports, tend
from pipelines.inbox.questions import write_questions
from pipelines.inbox.store import INBOX_FILE, InboxStore
from pipelines.lineage import versions
from pipelines.lineage.registry import Registry
from pipelines.lineage.run import Lineage
from pipelines.loop.loop import Loop
from pipelines.models import close_models, open_student, prove_student, with_answer_format
from pipelines.plan import Stage, steps_of
from pipelines.reports.console import Reporter
from pipelines.reports.format import counted
from pipelines.settings import load
from pipelines.terminal import LOG, open_console, printable
from teacher.samplers.openai import OpenAISampling
from teacher.samplers.sampler import Sampler

FLOW_NAME = "adapt-student"
_OUTCOMES: dict[str, Outcome] = {"promote": "promoted", "hold": "held", "reject": "rejected"}
_ENDINGS: dict[Outcome, tuple[Ending, str | None]] = {
    "promoted": ("COMPLETED", None),
    "held": ("CANCELLED", "Held"),
    "rejected": ("FAILED", "Rejected"),
    "nothing new": ("COMPLETED", None),
}


@flow(name=FLOW_NAME, persist_result=False)
def adapt_student(
    config_path: str, overrides: list[str] | None = None, work_dir: str = ".preceptor"
) -> State[NightResult]:
    """Adapt the champion student to everything new in the inbox, and promote the result if it passes the gate.

    The next start finishes a night that was killed, with the same result; no student is ever half promoted, because a
    version is complete before an alias moves. The run ends green, or as Held or Rejected, with the reason.

    Args:
        config_path: YAML file of the night.
        overrides: Settings such as `replay.documents=16`.
        work_dir: Directory of the inbox, the nights and the embedded stores.
    """
    config, place = load(Path(config_path), NightConfig, overrides or ()), Path(work_dir)
    prefix = config.tracking.registry_prefix
    check(config, place, findings_of)
    with entered(place, config.name) as flow_run:
        result = run_night(config, place, flow_run, open_console())
        for line in night_lines(result, place):
            LOG.info(line)
        show_report(FLOW_NAME, night_markdown(result, place), f"{result.night or config.name}: {result.outcome}")
        payload = {"night": result.night, "version": result.version, "run": result.mlflow_run_id, "why": result.why}
        page = Path(result.page).resolve().as_uri() if result.page else ""
        payload |= {"page": page, "mlflow": result.mlflow, "flow_run": page_of_run(flow_run)}
        resource = {"prefect.resource.id": f"preceptor.student.{prefix}", "prefect.resource.name": f"{prefix}-student"}
        # Automations of a Prefect server can act on it.
        emit_event(f"preceptor.night.{result.outcome.replace(' ', '-')}", resource=resource, payload=payload)
        if result.waits or result.refused:
            told = {**payload, "documents": result.waits, "refused": result.refused}
            emit_event("preceptor.night.documents-waiting", resource=resource, payload=told)
        close_plan(place)  # last, so that a killed night comes back to whatever is missing
    ending, name = _ENDINGS[result.outcome]
    return ended(result, ending, "Waiting" if not result.night and result.waiting else name, result.why)


def adapted(config_path: str, overrides: list[str], work_dir: str) -> NightResult:
    """Run the flow here and return its night, whatever state it ends in."""
    result: NightResult = result_of(adapt_student, config_path, overrides, work_dir)
    return result


@contextmanager
def awaited(work_dir: Path) -> Iterator[Callable[[NightResult], NightResult]]:
    """Note that a command waits for a night, until it has told the result to its caller.

    Yields a function that takes the flow's result and returns the one to tell: of nothing new, that of a night which
    ended after a command that was killed had begun to wait for it.
    """
    results = night_results(work_dir)
    file, last = work_dir / "awaited-night", results[-1]["night"] if results else ""
    before = file.read_text(encoding="utf-8") if file.is_file() else write_atomically(file, last).read_text("utf-8")

    def to_tell(result: NightResult) -> NightResult:
        ended = night_results(work_dir)[-1:]
        return result if result.night or not ended or ended[0]["night"] == before else NightResult(**ended[0])

    yield to_tell
    file.unlink()


def run_night(config: NightConfig, work_dir: Path, flow_run: str, console: Console) -> NightResult:
    """Run one night in a work directory that this process holds; see `adapt_student`."""
    tend(work_dir)
    registry, inbox = Registry.open(config.tracking, work_dir), read_inbox(work_dir)
    champion = student_version(registry, registry.champion("student"), work_dir)
    if champion.number is None and any(inbox.arrivals((), config.routing)):
        for line in ask_base(config):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
            LOG.info(line)
    unaskable = write_missing_questions(config, work_dir, console, champion.state.ids)
    plan, parent = open_plan(config, work_dir, registry, champion, console.print, unaskable)
    inbox = read_inbox(work_dir)
    left = new_plan(config, work_dir, inbox, parent.number, parent.state, unaskable) if plan is None else plan
    waiting = waits(inbox, parent.state.ids, left)
    if left.without_questions:
        with InboxStore(work_dir / INBOX_FILE) as store:
            store.note(dict.fromkeys(left.without_questions, WITHOUT_QUESTIONS))
    if plan is None:
        close_models()  # those that were to write questions
        refused = dict(inbox.refused)
        return NightResult(night="", outcome="nothing new", parent=parent.number, waiting=waiting, refused=refused)
    name_run(plan.night)
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
        loop.check_endpoints()
        key = content_key(config, "night", [config.digest, plan.model_dump(mode="json")])
        lineage = Lineage(config, work_dir, kind=FLOW_NAME, run_name=plan.night, key=key, flow_run=flow_run)
        lineage.log_documents("train", [planned.task for planned in plan.documents])
        with lineage.failing():
            night = Night(config, loop, plan, parent, waiting)
            result = _adapt(night, lineage, {stage.name: stage for stage in stages})
        lineage.finish("FINISHED")
    return result


def write_missing_questions(
    config: NightConfig, work_dir: Path, console: Console, held: Collection[str] = ()
) -> tuple[str, ...]:
    """Generate questions for documents for the weights that have none, and note in the inbox what came of it.

    The untrained teacher writes them, not the champion: the measure of rewards must not change with what earns them.
    They are stored with the document and never enter a prompt. `held` has ids of documents that the student holds.
    Returns the ids of documents that nothing can be asked about.
    """
    unasked = read_inbox(work_dir).unasked(held, config)
    plan = plan_questions(config, len(unasked))
    if config.questions is None or not plan:
        return ()
    with Reporter(console, len(steps_of(plan))) as reporter, ExitStack() as stack:
        loop = Loop(config, work_dir, (), (), reporter)  # not closed as a whole: the night goes on with its models
        stack.callback(loop.execution.updates.close)
        prompt, seed = config.questions.prompt_for(config.teacher.model), loop.seed("questions")
        if isinstance(config.teacher.sampling, OpenAISampling):
            sampler: Sampler = loop.endpoint(config.teacher.sampling, "teacher")
        else:
            loop.open_teacher.at(None)
            sampler = loop.open_teacher.sampler
        tokenizer = loop.open_teacher.policy.tokenizer if config.teacher.chat else None
        student, form = open_student(loop.student_ref), loop.settings.student.answer_format
        ((name, (sample, read), _),) = plan
        with reporter.step(sample, name), reporter.step(read, name):
            samples = config.questions.samples
            found = write_questions(unasked, sampler, student, form, prompt, samples, seed, tokenizer)
        written = list(zip(unasked, found, strict=True))
        with InboxStore(work_dir / INBOX_FILE) as inbox:
            for document, its in written:
                inbox.put_questions(document.id, its.questions)
            inbox.note({document.id: its.note for document, its in written})
        for document, its in written:
            reporter.say(f"{document.title or document.id}: {its.note}")
    return tuple(document.id for document, its in written if not its.questions)


def _adapt(night: Night, lineage: Lineage, stages: Mapping[str, Stage]) -> NightResult:
    """Return the night's result; everything of it is logged."""
    config, loop, plan, started = night.config, night.loop, night.plan, time.perf_counter()
    state, teacher, number = champion_teacher(loop, lineage.registry)
    learned = learn(night, state, stages)
    took = {"learn": time.perf_counter() - started}
    measured = evaluate.measure(night, learned.student, stages[SCORES])
    took["score"] = time.perf_counter() - started - took["learn"]
    report = evaluate.ask_gate(night, learned, measured)
    doubted = report is not None and report.decision != "promote"
    otherwise = evaluate.contradictions(night, learned.student, measured) if doubted else {}
    result = NightResult(
        night=plan.night,
        date=plan.date,
        student=config.student.model,
        erasing=plan.erasing,
        outcome="promoted" if report is None else _OUTCOMES[report.decision],
        parent=plan.parent,
        new=tuple(_new_document(night, measured, learned, planned, otherwise) for planned in plan.documents),
        waiting=dict(night.waiting),
        refused=dict(read_inbox(loop.work_dir).refused),
        conversations=reports(loop.work_dir),
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
        probes_base=measured.base.accuracy(evaluate.PROBES),
        probes_before=measured.before.accuracy(evaluate.PROBES),
        probes_after=measured.after.accuracy(evaluate.PROBES),
        candidates=tuple(learned.candidates),
        learned=learned.edits,
        replayed=learned.replayed,
        update=learned.update,
        gate=report,
        seconds=took,
        teacher=teacher,
        teacher_version=number,
        warning=WEAK_BASE if measured.is_weak else "",
        mlflow_run_id=lineage.run_id,
        config_digest=config.digest,
        code_digest=code_digest(),
    )
    return conclude(night, lineage, learned.student, measured, result)


def _new_document(
    night: Night,
    measured: evaluate.Measured,
    learned: Learned,
    planned: HeldDocument,
    otherwise: Mapping[str, tuple[evaluate.Contradiction, ...]],
) -> NewDocument:
    """Return what became of a document of the plan; `otherwise` has the contradictions by its id."""
    plan, name, after = night.plan, planned.task.id, measured.after.right
    asked = zip(measured.questions.get(name, ()), after.get(name, ()), strict=True)
    return NewDocument(
        id=name,
        title=planned.task.document.title,
        source=planned.task.document.source,
        place=planned.place,
        because=planned.because,
        questions=len(planned.task.comparison_questions),
        before=measured.before.accuracy(name),
        after=measured.after.accuracy(name),
        supersedes=tuple(old for old, new in plan.superseded.items() if new == name),
        not_learned=learned.missing.get(name, ""),
        evidence=plan.notes.get(name, ""),
        unknown=tuple(question for question, score in asked if score == 0.0 and not question.is_continuation),
        contradictions=otherwise.get(name, ()),
    )


def _note(document: NewDocument, night: str) -> str:
    failed = f"{NOT_LEARNED}{night}: {document.not_learned}" if document.not_learned else ""
    return "; ".join(filter(None, (document.evidence, failed)))


def conclude(
    night: Night, lineage: Lineage, student: StudentVersion, measured: evaluate.Measured, result: NightResult
) -> NightResult:
    """Register the student, promote it or not, quarantine documents, and write the page and the result.

    Each step happens at most once however often a killed night gets here again, and the alias moves after everything
    that belongs to the version is written.
    """
    plan, work_dir = night.plan, night.loop.work_dir
    accuracy = measured.after.accuracy(*(document.id for document in result.new if not document.not_learned))
    state = student.state.model_copy(update={"scores": {**student.state.scores, plan.night: accuracy or 0.0}})
    report = f"{plan.night}: promoted without a gate.\n" if result.gate is None else report_markdown(result.gate)
    report = printable(report, "\n")
    version = _register(night, lineage, student._replace(state=state), measured, result, accuracy, report)
    if result.outcome == "promoted":
        record = {
            versions.DECISION_TAG: _decision(result),  # a version of an earlier release has none yet
            versions.DATA_TAG: state.digest,
            versions.PARENT_TAG: versions.NO_PARENT if plan.parent is None else str(plan.parent),
        }
        lineage.registry.promote("student", version, record=record, report=report)
    quarantined: tuple[str, ...] = ()
    if result.outcome == "rejected":
        quarantined = tuple(document.id for document in result.new)
    elif any(check.name == TOUCHED for check in result.trouble):
        quarantined = evaluate.suspects(measured)
    with InboxStore(work_dir / INBOX_FILE) as inbox:
        inbox.note({each.id: note for each in result.new if (note := _note(each, plan.night))})
        if quarantined:
            worst = [check for check in result.trouble if check.verdict == "fail"] or result.trouble
            reason = " ".join(f"{check.name}: {check.sentence}" for check in worst)
            inbox.quarantine(quarantined, reason, plan.night)
    directory = work_dir / NIGHTS / plan.night
    page = directory / PAGE
    update = {"version": version, "quarantined": quarantined, "page": str(page), "mlflow": lineage.link}
    result = result.model_copy(update=update)
    write_atomically(page, page_of(result, work_dir))
    lineage.log_night(result, report, page, evaluate.answered(measured))
    write_atomically(directory / RESULT, result.model_dump_json(indent=2))
    return result


def _decision(result: NightResult) -> str:
    return "no gate" if result.gate is None else result.gate.decision


def _register(
    night: Night,
    lineage: Lineage,
    student: StudentVersion,
    measured: evaluate.Measured,
    result: NightResult,
    accuracy: float | None,
    report: str,
) -> int:
    """Return the number of the version that the night's student is registered as, proved to answer from its files."""
    assert student.directory is not None
    assert student.adapter is not None
    scores = {"new": accuracy, "probes_before": result.probes_before, "probes_after": result.probes_after}
    tags = {
        versions.NIGHT_TAG: night.plan.night,
        versions.MEMORY_TAG: student.state.memory.digest,
        "preceptor.student": night.loop.student_digest,
        versions.DECISION_TAG: _decision(result),
        versions.TEACHER_TAG: "untrained" if result.teacher_version is None else str(result.teacher_version),
        **versions.score_tags(scores),
        **({versions.AGAIN_TAG: night.plan.erasing} if night.plan.erasing else {}),
    }
    settings = evaluate.answer_settings(night, student, measured)
    with tempfile.TemporaryDirectory(dir=night.loop.work_dir) as scratch:
        files = version_directory(student.directory, student.state, settings, Path(scratch))
        prove_student(night.loop.student_ref, files)
        return lineage.registry.register(
            "student",
            files,
            digest=student.adapter.digest,
            run_id=lineage.run_id,
            tags=tags,
            metrics={} if accuracy is None else {"eval/new_accuracy": accuracy},
            title=f"student-{night.plan.night}",
            description=report,
        )
