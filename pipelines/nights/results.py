"""What a night ends with: for its page, for scripts and for the record."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from evaluation.gate import GateReport
from evaluation.statistics import known_mean
from pipelines.inbox.documents import Route
from pipelines.nights.learning import NightUpdateRecord
from pipelines.records import CandidateRecord, Record

Outcome = Literal["promoted", "held", "rejected", "nothing new"]


class NewDocument(Record):
    """A document of the night, and what became of it."""

    id: str
    title: str
    source: str
    place: Route
    because: str
    questions: int
    before: float | None
    """Share of its questions that the champion answers right, in [0, 1]."""
    after: float | None
    """The same of the night's student."""
    supersedes: tuple[str, ...] = ()
    """Ids of the documents that it replaces."""
    not_learned: str = ""
    """Why the weights could not take it in; it comes again next night. Empty where they did."""


class GroupScore(Record):
    """The documents of one earlier night."""

    night: str
    documents: int
    then: float | None
    """Accuracy right after that night, in [0, 1]."""
    before: float | None
    """Of the champion, tonight."""
    after: float | None
    """Of the night's student."""


class NightResult(Record):
    """A night."""

    night: str
    """Empty where there was nothing new."""
    outcome: Outcome
    parent: int | None = None
    """Version of the student that was adapted."""
    version: int | None = None
    """Version that the night made."""
    new: tuple[NewDocument, ...] = ()
    aside: tuple[str, ...] = ()
    """Ids of documents that are set aside until a person releases them."""
    waiting: tuple[str, ...] = ()
    """Ids of new documents without questions."""
    superseded: dict[str, str] = Field(default_factory=dict)
    """By id of a retired document, that of the one that replaces it."""
    groups: tuple[GroupScore, ...] = ()
    probes: int = 0
    """Retention probes asked."""
    probes_base: float | None = None
    """Share of them that the base student answers."""
    probes_before: float | None = None
    """The champion."""
    probes_after: float | None = None
    """The night's student."""
    candidates: tuple[CandidateRecord, ...] = ()
    """Self-edits of the night with their rewards."""
    replayed: int = 0
    """Earlier documents that were trained on again."""
    update: NightUpdateRecord | None = None
    """None where all new documents stay in memory."""
    gate: GateReport | None = None
    """None without a gate."""
    seconds: dict[str, float] = Field(default_factory=dict)
    """By stage."""
    teacher: str = ""
    """Which teacher wrote."""
    mlflow_run_id: str = ""
    config_digest: str = ""
    code_digest: str = ""
    page: str = ""
    """Path of the morning page."""

    @property
    def new_before(self) -> float | None:
        """Mean accuracy of the champion over the new documents."""
        return known_mean([document.before for document in self.new])

    @property
    def new_after(self) -> float | None:
        """Mean accuracy of the night's student over the new documents."""
        return known_mean([document.after for document in self.new])
