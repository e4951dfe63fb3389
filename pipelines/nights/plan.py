"""What a night is about: the documents that the champion does not hold yet, and where each of them goes. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import date

from evaluation.tasks import KnowledgeTask
from pipelines.inbox.documents import InboxDocument, Route
from pipelines.nights.router import RoutingConfig, route
from pipelines.nights.state import StudentState
from pipelines.records import Record


class PlannedDocument(Record):
    """A document of the night."""

    task: KnowledgeTask
    place: Route
    because: str
    """Why there."""
    effective: date | None = None
    """From when on it holds."""


class NightPlan(Record):
    """What a night does; written before its first unit of work, so that a killed night is finished as it began."""

    night: str
    """Name, such as `night-0007`."""
    parent: int | None
    """Version of the student that is adapted; None is the base student."""
    parent_digest: str
    """Of what that version holds (`StudentState.digest`) and of its adapter; of the base where there is none."""
    config_digest: str
    """Of the configuration."""
    documents: tuple[PlannedDocument, ...]
    superseded: dict[str, str]
    """By id of a document that is held, or that is of this very night, that of the one that replaces it."""
    without_questions: tuple[str, ...] = ()
    """Ids of new documents that wait, because nothing could tell whether they were learned."""

    @property
    def to_weights(self) -> tuple[KnowledgeTask, ...]:
        """Tasks of the documents that the weights take, in the order of arrival."""
        return tuple(planned.task for planned in self.documents if planned.place == "weights")


def unasked(arrived: Sequence[InboxDocument], over: Collection[str]) -> tuple[InboxDocument, ...]:
    """Return the documents that questions are to be written for.

    Args:
        arrived: All documents of the inbox.
        over: Ids of those that no night is about: set aside, or replaced.
    """
    return tuple(document for document in arrived if not document.questions and document.id not in over)


def choose_documents(
    arrived: Sequence[InboxDocument],
    state: StudentState,
    *,
    aside: Collection[str],
    superseded: Mapping[str, str],
    routing: RoutingConfig,
) -> tuple[tuple[PlannedDocument, ...], tuple[str, ...]]:
    """Return the documents of a night with where they go, and the ids of those that wait for questions.

    New is what the student does not hold, is not set aside, and is not superseded before it was ever learned. A
    document for memory needs no questions: what it says can be found without any training.

    Args:
        arrived: The inbox, in the order of arrival.
        state: Of the student that is adapted.
        aside: Ids of documents that a person has to release first.
        superseded: By id of a document, that of the one that replaces it.
        routing: The rules.
    """
    # A document that is set aside replaces nothing.
    replacing = {old: new for old, new in superseded.items() if new not in aside}
    replaced = Counter(replacing.values())
    planned, waiting = [], []
    for document in arrived:
        if document.id in state.ids or document.id in aside or document.id in replacing:
            continue
        chosen = route(document, routing, replaces=replaced[document.id])
        if not document.questions:
            waiting.append(document.id)
            continue
        task, effective = document.as_task(), document.effective
        planned.append(PlannedDocument(task=task, place=chosen.place, because=chosen.because, effective=effective))
    return tuple(planned), tuple(waiting)
