"""Small documents, states and results of nights."""

from __future__ import annotations

from datetime import date

from evaluation.tasks import Question
from pipelines.inbox.documents import InboxDocument, Route
from pipelines.nights.state import HeldDocument, StudentState
from teacher.self_edit import Implication, SelfEdit


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
