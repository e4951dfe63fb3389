"""Small documents, states and settings of nights."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterable
from datetime import date
from pathlib import Path

from evaluation.microworld.world import VALUES, Sheet, WorldDocument, draw_documents, write_document
from evaluation.tasks import Question
from pipelines.adapt_student.state import HeldDocument, StudentState, version_directory
from pipelines.ask.answers import AnswerSettings
from pipelines.inbox.documents import InboxDocument, Route
from pipelines.inbox.store import INBOX_FILE, InboxStore
from pipelines.lineage.run import Lineage
from student.adapters import save_adapter
from teacher.self_edit import Implication, SelfEdit
from tests.pipelines.factories import make_adapter

DEMO = Path(__file__).resolve().parents[3] / "configs" / "nights-demo.yaml"
SMALL = (
    "threads=1",
    "probes=24",
    "writing={edits: 2, learned: 1}",
    "replay={documents: 8, general: 48}",
    "update.epochs=6",
    "update.rank=8",
    # Margins that a handful of documents can show: what is tested here is the night, not the statistics.
    "gate={new_margin: 0.0, earlier_margin: 0.9, group_margin: 0.95, probe_margin: 0.9, most_collapsed: 0.5}",
)
"""Overrides that make a night of `DEMO` a matter of seconds."""


def document(
    name: str,
    *,
    text: str = "",
    effective: date | None = None,
    supersedes: tuple[str, ...] = (),
    route: Route | None = None,
    questions: int = 1,
) -> InboxDocument:
    return InboxDocument(
        title=name,
        text=text or f"{name} is a town in the north.",
        source=f"{name}.txt",
        name=name,
        effective=effective,
        supersedes=supersedes,
        questions=tuple(Question(question=f"Where is {name} ({i})?", answer="north") for i in range(questions)),
        route=route,
    )


def delivered(made: WorldDocument, effective: date | None = None, supersedes: tuple[str, ...] = ()) -> InboxDocument:
    task = made.task
    return InboxDocument(
        **task.document.model_dump(exclude={"id"}),
        name=task.id,
        effective=effective,
        supersedes=supersedes,
        questions=task.questions,
        held_out_questions=task.held_out_questions,
    )


def arrivals(count: int, seed: int = 0, *, skip: int = 0, dated: int = 1) -> list[InboxDocument]:
    """Documents of the micro-world, the last `dated` ones with a date; `skip` arrived earlier."""
    made = draw_documents("test", skip + count, seed)[skip:]
    return [delivered(each, date(2026, 1, 5) if i >= count - dated else None) for i, each in enumerate(made)]


def rewritten(rng: random.Random, sheet: Sheet, name: str) -> WorldDocument:
    """A document about the same entities and attributes with every value changed."""
    others = ([value for value in VALUES[fact.words.values] if value != fact.value] for fact in sheet.facts)
    facts = (fact._replace(value=rng.choice(values)) for fact, values in zip(sheet.facts, others, strict=True))
    new = Sheet(sheet.kind, tuple(facts))
    return write_document(rng, new, new.names, name, name)


def held(given: InboxDocument, night: str, place: Route = "weights") -> HeldDocument:
    edits = (SelfEdit(implications=(Implication(text=f"{given.title} is north."),)),) if place == "weights" else ()
    return HeldDocument(task=given.as_task(), night=night, place=place, edits=edits, effective=given.effective)


def state(*documents: HeldDocument) -> StudentState:
    return StudentState(documents=documents)


def deliver(work_dir: Path, documents: Iterable[InboxDocument]) -> None:
    with InboxStore(work_dir / INBOX_FILE) as inbox:
        inbox.add(documents)


def promoted(lineage: Lineage, whole: StudentState, scratch: Path, value: float = 0.5) -> int:
    """Register a student with a state as a night does, promote it, and return its version."""
    adapter = make_adapter(value)
    place = save_adapter(adapter, scratch / f"adapter-{value}")
    with tempfile.TemporaryDirectory() as files:
        made = version_directory(place, whole, AnswerSettings(), Path(files))
        version = lineage.registry.register("student", made, digest=adapter.digest, tags={}, run_id=lineage.run_id)
    lineage.registry.promote("student", version)
    return version
