"""Small documents, states and settings of nights."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from datetime import date
from pathlib import Path

from evaluation.microworld.world import NightDocument
from evaluation.tasks import Question
from pipelines.adapt_student.state import HeldDocument, StudentState, version_directory
from pipelines.ask.answers import AnswerSettings
from pipelines.experiments.nights import as_delivered
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


def held(given: InboxDocument, night: str, place: Route = "weights") -> HeldDocument:
    edits = (SelfEdit(implications=(Implication(text=f"{given.title} is north."),)),) if place == "weights" else ()
    return HeldDocument(task=given.as_task(), night=night, place=place, edits=edits, effective=given.effective)


def state(*documents: HeldDocument) -> StudentState:
    return StudentState(documents=documents)


def deliver(work_dir: Path, documents: Iterable[InboxDocument | NightDocument]) -> None:
    with InboxStore(work_dir / INBOX_FILE) as inbox:
        inbox.add(as_delivered(each) if isinstance(each, NightDocument) else each for each in documents)


def promoted(lineage: Lineage, whole: StudentState, scratch: Path, value: float = 0.5) -> int:
    """Register a student with a state as a night does, promote it, and return its version."""
    adapter = make_adapter(value)
    place = save_adapter(adapter, scratch / f"adapter-{value}")
    with tempfile.TemporaryDirectory() as files:
        made = version_directory(place, whole, AnswerSettings(), Path(files))
        version = lineage.registry.register("student", made, digest=adapter.digest, tags={}, run_id=lineage.run_id)
    lineage.registry.promote("student", version)
    return version
