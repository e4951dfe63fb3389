"""What a night is about: the documents that the champion does not hold yet, and where each of them goes.

Weights are for what lasts: to take a fact out of them, all that came after it is learned again. What is volatile, dated
or replaces an earlier document therefore stays in external memory, where the next version takes its place.
"""

from __future__ import annotations

import datetime
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from pydantic import ConfigDict, Field

from evaluation.common.checkpoints import resolve_model
from evaluation.common.storage import checksum, write_atomically
from evaluation.tasks import KnowledgeTask, Question
from pipelines.adapt_student.config import NightConfig, RoutingConfig
from pipelines.adapt_student.state import (
    Erasure,
    HeldDocument,
    StudentState,
    StudentVersion,
    read_erasure,
    read_state,
    student_directory,
    student_label,
    student_version,
)
from pipelines.inbox.documents import InboxDocument, Route
from pipelines.inbox.store import INBOX_FILE, InboxStore
from pipelines.lineage.registry import Registry
from pipelines.lineage.store import has_store
from pipelines.plan import Plan, Stage, Step, UpdateSize
from pipelines.process import preceptor, prepare_process
from pipelines.records import Record
from pipelines.reports.costs import QUESTION_TOKENS, cost_table, estimate
from pipelines.reports.format import counted, plain_table
from pipelines.settings import to_yaml
from pipelines.terminal import open_console

NIGHTS = "nights"
"""Directory in the work directory: a directory for each night, and the plan of the one that is running."""
RESULT = "result.json"
"""File in a night's directory, written last."""
_CURRENT, _PLAN = "current.json", "plan.json"
_PLACEHOLDER = Question(question="(not written yet)", answer="(not written yet)")
"""For questions that the night will generate; routes do not depend on them."""
NOT_LEARNED = "not learned in "
"""Begins the part of a document's note about an earlier night."""


def route(document: InboxDocument, config: RoutingConfig, *, replaces: int = 0) -> tuple[Route, str]:
    """Return where a document goes that replaces so many earlier ones, and why."""
    if document.route is not None:
        return document.route, "requested by its sender"
    if replaces and config.changing == "memory":
        return "memory", f"replaces {counted(replaces, 'earlier document')}"
    if document.effective is not None and config.changing == "memory":
        return "memory", f"has an effective date ({document.effective.isoformat()})"
    matches = (re.search(pattern, document.text, re.IGNORECASE) for pattern in config.volatile_patterns)
    if (found := next(filter(None, matches), None)) is not None:
        return "memory", f"volatile ({found.group(0)!r})"
    if len(document.text) > config.longest:
        return "memory", f"long ({len(document.text)} characters, limit for the weights {config.longest})"
    return "weights", "no rule sends it to memory"


class NightPlan(Record):
    """What a night does; written before its first step, so that a killed night is finished as it began."""

    model_config = ConfigDict(frozen=True, extra="ignore")  # earlier releases wrote one more field

    night: str
    """Name, such as `night-0007`."""
    date: str = ""
    """Day on which it began, YYYY-MM-DD."""
    parent: int | None
    """Version of the student that is adapted; None is the base student."""
    config_digest: str
    documents: tuple[HeldDocument, ...]
    """New documents with their routes; self-edits come with the night."""
    superseded: dict[str, str]
    """Replaced document id (held, or of this night) -> id of its replacement."""
    without_questions: tuple[str, ...] = ()
    """Ids of new documents that wait: without questions nothing could tell whether they were learned."""
    removed: tuple[str, ...] = ()
    """Ids of documents that the student holds and the inbox does not any more: the night's version is without them. Or
    not for one client alone any more: they are among the new ones."""
    notes: dict[str, str] = Field(default_factory=dict)
    """By id of a new document: what is asked about it, or why nothing is."""
    erasing: str = ""
    """Why others were erased without which the documents are learned again; empty for an ordinary night."""

    @property
    def to_weights(self) -> tuple[KnowledgeTask, ...]:
        """Tasks of the documents routed to the weights, in the order of arrival."""
        return tuple(planned.task for planned in self.documents if planned.place == "weights")


class InboxContent(NamedTuple):
    """The inbox at one moment."""

    documents: tuple[InboxDocument, ...]
    """In the order of arrival."""
    quarantined: frozenset[str]
    """Ids of documents that a person has to release first."""
    superseded: dict[str, str]
    """Replaced document id -> id of its replacement."""
    removed: frozenset[str] = frozenset()
    """Ids of removed documents."""
    notes: Mapping[str, str] = MappingProxyType({})
    """See `InboxStore.note`."""
    refused: Mapping[str, str] = MappingProxyType({})
    """See `InboxStore.refused`."""

    def arrivals(self, held: Collection[str], routing: RoutingConfig) -> Iterator[tuple[InboxDocument, Route, str]]:
        """Yield every new document with its route and the reason for it.

        New is what a student that holds the ids `held` does not hold, is not quarantined, and was not superseded before
        it was ever learned.
        """
        # A quarantined document replaces nothing.
        replacing = {old: new for old, new in self.superseded.items() if new not in self.quarantined}
        replaced = Counter(replacing.values())
        for document in self.documents:
            if document.id not in held and document.id not in self.quarantined and document.id not in replacing:
                yield document, *route(document, routing, replaces=replaced[document.id])

    def unasked(self, held: Collection[str], config: NightConfig) -> tuple[InboxDocument, ...]:
        """Return the new documents for the weights whose questions a night generates."""
        if config.questions is None:
            return ()
        arrived = self.arrivals(held, config.routing)
        return tuple(each for each, place, _ in arrived if place == "weights" and not each.questions)


def read_inbox(work_dir: Path) -> InboxContent:
    """Return the content of a work directory's inbox; one that does not exist is empty, and is not created."""
    if not (work_dir / INBOX_FILE).is_file():
        return InboxContent((), frozenset(), {})
    with InboxStore(work_dir / INBOX_FILE) as inbox:
        quarantined, removed = frozenset(inbox.quarantined()), frozenset(inbox.removed())
        changes = inbox.superseded(), removed, inbox.notes(), inbox.refused()
        return InboxContent(inbox.documents(), quarantined, *changes)


def new_plan(
    config: NightConfig,
    work_dir: Path,
    inbox: InboxContent,
    parent: int | None,
    state: StudentState,
    unaskable: Collection[str] = (),
    erasure: Erasure | None = None,
) -> NightPlan:
    """Return the plan of a new night for a version with a state; it may have no documents.

    A document without questions waits, unless it goes to memory. `unaskable` has ids of those that nothing can be asked
    about: they are looked up instead. A night for an open erasure (by default that of the work directory) learns again
    what has to be, and nothing else.
    """
    erasure = erasure or read_erasure(work_dir)
    again = erasure if erasure is not None and erasure.is_open else None
    planned = (int(path.name.rpartition("-")[2]) for path in (work_dir / NIGHTS).glob("night-*"))
    night = f"night-{max(planned, default=0) + 1:04d}"
    chosen: list[HeldDocument] = []
    waiting: list[str] = []
    opened = state.private.keys() & {each.id for each in inbox.documents if not each.client}
    for document, place, because in inbox.arrivals(state.ids - opened, config.routing):
        if again is not None and document.id not in again.again:
            continue
        if place == "weights" and document.id in unaskable:
            place, because = "memory", inbox.notes.get(document.id, "nothing can be asked about it")
        if place == "weights" and not document.questions:
            waiting.append(document.id)
            continue
        task, effective, client = document.as_task(), document.effective, document.client
        chosen.append(
            HeldDocument(task=task, night=night, place=place, because=because, effective=effective, client=client)
        )
    holding = state.ids | {held.task.id for held in chosen}
    return NightPlan(
        night=night,
        date=datetime.datetime.now().astimezone().date().isoformat(),
        parent=parent,
        config_digest=config.digest,
        documents=tuple(chosen),
        superseded={old: new for old, new in inbox.superseded.items() if old in holding and new in holding},
        without_questions=tuple(waiting),
        removed=tuple(sorted(state.ids & inbox.removed | opened)),
        notes={
            name: inbox.notes[name].partition(NOT_LEARNED)[0].rstrip("; ")
            for held in chosen
            if (name := held.task.id) in inbox.notes
        },
        erasing="" if again is None else again.reason,
    )


WITHOUT_QUESTIONS = "without questions, and the night generates none (questions: null)"
QUARANTINED = "quarantined, see `preceptor inbox list`"
"""Why documents wait."""


def waits(inbox: InboxContent, held: Collection[str], plan: NightPlan) -> dict[str, str]:
    """Return why documents that the student does not hold are not in a night's plan, by id."""
    excluded = {*held, *inbox.superseded}
    quarantined = [each.id for each in inbox.documents if each.id in inbox.quarantined and each.id not in excluded]
    return dict.fromkeys(plan.without_questions, WITHOUT_QUESTIONS) | dict.fromkeys(quarantined, QUARANTINED)


def waiting_lines(waiting: Mapping[str, str], work_dir: Path) -> Iterator[str]:
    """Yield for people how many documents wait, why, and what to do."""
    if not waiting:
        return
    reasons = Counter(waiting.values())
    verb = "waits" if len(waiting) == 1 else "wait"
    yield f"{counted(len(waiting), 'document')} {verb}: " + "; ".join(f"{n} {why}" for why, n in reasons.items())
    for name, reason in waiting.items():
        if reason == QUARANTINED:
            yield f"To return one to the queue: {preceptor('inbox', 'release', name, '--work-dir', work_dir)}"
            break
    if WITHOUT_QUESTIONS in reasons:
        yield "To have them learned: set questions to {}, or deliver them with questions."


def open_plan(
    config: NightConfig,
    work_dir: Path,
    registry: Registry,
    champion: StudentVersion,
    say: Callable[[str], None],
    unaskable: Collection[str] = (),
) -> tuple[NightPlan | None, StudentVersion]:
    """Return the plan of tonight, or of an interrupted night, and the student that it adapts.

    The plan is on disk before this returns; it is None if there is nothing new. `say` receives messages. For
    `unaskable` see `new_plan`.
    """
    left, inbox = read_plan(work_dir), read_inbox(work_dir)
    if left is not None:
        if _resumes(left, config, champion.number, champion.state, inbox):
            say(f"finishing {left.night}, which was interrupted")
            return left, student_version(registry, left.parent, work_dir).without(left.removed)
        say(f"{left.night} was interrupted and is dropped: champion, configuration or its documents have changed")
    elif (work_dir / NIGHTS / _CURRENT).exists():
        say("the plan of the interrupted night was changed or damaged; a new night begins")
    plan = new_plan(config, work_dir, inbox, champion.number, champion.state, unaskable)
    if not plan.documents:
        close_plan(work_dir)
        return None, champion
    content = plan.model_dump(mode="json")
    text = json.dumps({"checksum": checksum(content), **content})
    for file in (f"{plan.night}/{_PLAN}", _CURRENT):
        write_atomically(work_dir / NIGHTS / file, text)
    return plan, champion.without(plan.removed)


def close_plan(work_dir: Path) -> None:
    """Record that no night is running."""
    (work_dir / NIGHTS / _CURRENT).unlink(missing_ok=True)


def read_plan(work_dir: Path) -> NightPlan | None:
    """Return the plan of the night that is running or was interrupted; None without one.

    A plan that does not match its checksum is read from its second copy, that of the latest night.
    """
    copies = sorted((work_dir / NIGHTS).glob(f"night-*/{_PLAN}"))[-1:]
    for file in (work_dir / NIGHTS / _CURRENT, *copies) if (work_dir / NIGHTS / _CURRENT).exists() else ():
        with suppress(OSError, ValueError, AttributeError):
            content = json.loads(file.read_bytes())
            if content.pop("checksum", None) == checksum(content):
                return NightPlan.model_validate(content)
    return None


def _resumes(
    left: NightPlan, config: NightConfig, champion: int | None, state: StudentState, inbox: InboxContent
) -> bool:
    """Return whether an interrupted night is finished first: the champion is its parent, or the version it made.

    Not if one of its documents was removed since.
    """
    if any(planned.task.id in inbox.removed for planned in left.documents):
        return False
    return (champion == left.parent or left.night in state.groups()) and left.config_digest == config.digest


SELF_EDITS, UPDATE, SCORES = "self-edits", "night's update", "scores"
"""Stages of a night: self-edits with their rewards, the one update, and the scores of the three students."""


def plan_questions(config: NightConfig, unasked: int) -> Plan:
    """Return the stage in which questions are generated for so many documents, sampled and then proved."""
    if config.questions is None or not unasked:
        return ()
    return (Stage("questions", (Step("sample", unasked, config.questions.samples), Step("read", unasked))),)


def plan_night(config: NightConfig, plan: NightPlan, state: StudentState) -> Plan:
    """Return the stages of a night that adapts a student with a state; none without new documents."""
    if not plan.documents:
        return ()
    edits, weights = config.writing.edits, len(plan.to_weights)
    scores = Step("score", len(state.after(plan.documents, plan.superseded).active), questions="comparison")
    learning = (
        Stage(SELF_EDITS, (Step("sample", weights, edits), Step("update", weights, edits))),
        Stage(UPDATE, (Step("update", 1, trains_on="night"),), _update_size(config, weights, state)),
    )
    # The base student answers the retention probes alone.
    return (*(learning if weights else ()), Stage(SCORES, (scores, scores, scores._replace(documents=0))))


def _update_size(config: NightConfig, documents: int, state: StudentState) -> UpdateSize:
    """Return what the night's update trains on, at most: a line of a self-edit has at least two tokens.

    Replayed documents are drawn in the night; no draw has more lines than the longest ones.
    """
    written, learned = config.teacher.sampling.max_new_tokens, min(config.writing.learned, config.writing.edits)
    known = sorted((sum(len(edit.implications) for edit in held.edits) for held in state.active), reverse=True)
    repeated = sum(known[: config.replay.documents]) + config.replay.general
    lines = learned * documents * max(1, written // 2) + repeated
    return UpdateSize(config.update, lines, learned * documents * written + repeated * QUESTION_TOKENS)


class DryRun(NamedTuple):
    """What a night would do if it began now."""

    plan: NightPlan
    """With a placeholder for questions that are still to be generated."""
    interrupted: bool
    """The plan is of an interrupted night, which is finished first."""
    unasked: int
    """Documents for which questions are generated first."""
    waiting: dict[str, str]
    """By id of a document that waits: the reason."""
    stages: Plan
    """Empty if there is nothing new."""


def dry_run(config: NightConfig, work_dir: Path, erasure: Erasure | None = None) -> DryRun:
    """Return what the next night in a work directory, which need not exist, would do; changes nothing.

    With an erasure it is the night after that has begun.
    """
    prepare_process()
    registry = Registry.open(config.tracking, work_dir) if has_store(config.tracking, work_dir) else None
    parent = None if registry is None else registry.champion("student")
    parent, inbox = parent if erasure is None else erasure.clean, read_inbox(work_dir)
    if erasure is not None:
        kept = tuple(document for document in inbox.documents if document.id not in erasure.documents)
        inbox = inbox._replace(documents=kept, removed=inbox.removed.union(erasure.documents))
    state = _held(registry, parent, work_dir)
    unasked = {document.id for document in inbox.unasked(state.ids, config)}
    plan = read_plan(work_dir)
    interrupted = plan is not None and _resumes(plan, config, parent, state, inbox)
    if plan is None or not interrupted:
        asked = tuple(
            document.model_copy(update={"questions": (_PLACEHOLDER,)}) if document.id in unasked else document
            for document in inbox.documents
        )
        plan = new_plan(config, work_dir, inbox._replace(documents=asked), parent, state, erasure=erasure)
    elif plan.parent != parent:
        state = _held(registry, plan.parent, work_dir)
    stages = plan_questions(config, len(unasked)) + plan_night(config, plan, state.without(plan.removed))
    return DryRun(plan, interrupted, len(unasked), waits(inbox, state.ids, plan), stages)


def _held(registry: Registry | None, version: int | None, work_dir: Path) -> StudentState:
    """Return the state of a version; it is downloaded into a scratch directory unless it is in the work directory."""
    if registry is None or version is None:
        return StudentState()
    if (directory := student_directory(work_dir, version)).is_dir():
        return read_state(registry.fetch("student", version, directory))
    with tempfile.TemporaryDirectory() as scratch:
        return read_state(registry.fetch("student", version, Path(scratch, "student")))


def print_dry_run(config: NightConfig, file: Path, overrides: Sequence[str], work_dir: Path) -> None:
    """Print the resolved configuration, what the next night would do, and the next command."""
    sys.stdout.write(to_yaml(config))
    found = dry_run(config, work_dir)
    plan, waiting = found.plan, Counter(found.waiting.values())
    rows = {
        "Starts from": student_label(plan.parent),
        "Finishes": f"{plan.night}, which was interrupted" if found.interrupted else "",
        "New documents": f"{len(plan.documents):,}",
        "  to weights": f"{len(plan.to_weights):,}",
        "  to memory": f"{len(plan.documents) - len(plan.to_weights):,}",
        "Questions generated": f"for {counted(found.unasked, 'document')}" if found.unasked else "",
        "Waiting for questions": f"{waiting[WITHOUT_QUESTIONS]:,}" if waiting[WITHOUT_QUESTIONS] else "",
        "Quarantined": f"{waiting[QUARANTINED]:,}" if waiting[QUARANTINED] else "",
    }
    table = plain_table(title=f"The next night of {config.name}")
    table.add_column("Inbox", no_wrap=True)
    table.add_column("", justify="right")
    for quantity, value in rows.items():
        if value:
            table.add_row(quantity, value)
    console, place = open_console(), ["--work-dir", str(work_dir)]
    console.print(table)
    for line in waiting_lines(found.waiting, work_dir):
        sys.stdout.write(f"{line}\n")
    if found.stages:
        if plan.parent is None and Path(resolve_model(config.student.model)).is_dir():
            from pipelines.adapt_student.base import ask_base

            sys.stdout.write("".join(f"{line}\n" for line in ask_base(config)))
        console.print(cost_table(estimate(found.stages, config), config))
        given = [part for override in overrides for part in ("--set", override)]
        sys.stdout.write(f"To start it: {preceptor('adapt-student', file, *given, *place)}\n")
    elif not found.waiting:
        sys.stdout.write(f"Nothing new in the inbox. To add documents: {preceptor('inbox', 'add', 'FILE', *place)}\n")
