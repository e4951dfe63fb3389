"""A night's result, the morning page about it, and a few lines for the terminal.

The page is one self-contained HTML file, readable on a phone: no script, nothing is fetched.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import AliasChoices, Field, field_validator

from evaluation.gate.checks import GateCheck
from evaluation.gate.decisions import GateReport, escaped, report_markdown
from evaluation.statistics import known_mean
from evaluation.tasks import Question
from pipelines.adapt_student.evaluate import Contradiction
from pipelines.adapt_student.learn import NightUpdate
from pipelines.adapt_student.plan import waiting_lines
from pipelines.inbox.documents import Route
from pipelines.inbox.intake import listing
from pipelines.process import preceptor
from pipelines.records import Candidate, Record, by_document
from pipelines.reports.format import counted, duration, percent, points
from pipelines.terminal import printable

PAGE = "morning.html"
Outcome = Literal["promoted", "held", "rejected", "nothing new"]
_HEADLINES = {
    "promoted": "The new student is the champion.",
    "held": "Inconclusive: no regression, but no significant improvement. The champion is unchanged.",
    "rejected": "Regression: the champion is unchanged, and the documents are quarantined.",
}


class NewDocument(Record):
    """A document of the night."""

    id: str
    title: str
    source: str
    place: Route
    because: str
    """Reason for the route."""
    questions: int
    before: float | None
    after: float | None
    """Shares of its questions that the champion and the night's student answer correctly, in [0, 1]."""
    supersedes: tuple[str, ...] = ()
    """Ids of the documents that it replaces."""
    not_learned: str = ""
    """Why the weights could not learn it; the next night tries again. Empty if they did."""
    evidence: str = ""
    """What the night asks about it, and which candidates it dropped; empty for questions that were delivered."""
    unknown: tuple[Question, ...] = ()
    """Questions that the night's student does not answer."""
    contradictions: tuple[Contradiction, ...] = ()
    """Known questions about its entities that the night's student answers otherwise than the champion."""


class GroupScore(Record):
    """The documents of one earlier night."""

    night: str
    documents: int
    then: float | None
    before: float | None
    after: float | None
    """Accuracy right after that night, and of the champion and the night's student tonight, in [0, 1]."""


class NightResult(Record):
    """A night."""

    night: str
    """Empty if there was nothing new."""
    date: str = ""
    """Day on which it began, YYYY-MM-DD."""
    student: str = ""
    """Model of the frozen base."""
    erasing: str = ""
    """See `NightPlan`."""
    outcome: Outcome
    parent: int | None = None
    version: int | None = None
    """Versions of the student that was adapted, and that the night made."""
    new: tuple[NewDocument, ...] = ()
    quarantined: tuple[str, ...] = Field(default=(), validation_alias=AliasChoices("quarantined", "aside"))
    """Ids of documents that wait until a person releases them."""
    waiting: dict[str, str] = Field(default_factory=dict)
    """Id of a document that the night left out -> why it waits."""
    refused: dict[str, str] = Field(default_factory=dict)
    """Refused file, or row of one (`FILE: line 3`) -> why it is no document."""
    conversations: dict[str, str] = Field(default_factory=dict)
    """Chat that teaches nothing, or document of clients that waits for a person -> why."""
    superseded: dict[str, str] = Field(default_factory=dict)
    """Replaced document id -> id of its replacement."""
    groups: tuple[GroupScore, ...] = ()
    probes: int = 0
    """Retention probes asked."""
    probes_base: float | None = None
    probes_before: float | None = None
    probes_after: float | None = None
    """Shares of them that the base student, the champion and the night's student answer correctly."""
    candidates: tuple[Candidate, ...] = ()
    learned: tuple[str, ...] = ()
    """`Edit.id` of the self-edits that the night's student was trained on."""
    replayed: int = 0
    """Earlier documents that were trained on again."""
    update: NightUpdate | None = None
    """None if all new documents went to memory."""
    gate: GateReport | None = None
    """None without a gate."""
    seconds: dict[str, float] = Field(default_factory=dict)
    """By stage."""
    teacher: str = ""
    teacher_version: int | None = None
    """Of the teacher that wrote the self-edits; None is the untrained one."""
    mlflow_run_id: str = ""
    mlflow: str = ""
    """Address of that run in MLflow."""
    config_digest: str = ""
    code_digest: str = ""
    page: str = ""
    """Path of the morning page."""
    warning: str = ""
    """What is to be changed in the configuration."""

    @field_validator("waiting", mode="before")
    @classmethod
    def _of_earlier_releases(cls, value: Any) -> Any:
        """Read the ids of documents without questions, without reasons."""
        return dict.fromkeys(value, "it has no questions") if isinstance(value, list | tuple) else value

    @property
    def waits(self) -> dict[str, str]:
        """By id: why a document that arrived is in no version yet, whether or not the night tried."""
        tried = {each.id: f"not learned: {each.not_learned}" for each in self.new if each.not_learned}
        return {**self.waiting, **tried, **dict.fromkeys(self.quarantined, "quarantined tonight")}

    @property
    def arrived(self) -> dict[str, int]:
        """Numbers of documents by where they are now."""
        tried = [each for each in self.new if each.id not in self.waits]
        places = {"for the weights": "weights", "for memory": "memory"}
        found = {where: sum(each.place == place for each in tried) for where, place in places.items()}
        found |= {"not learned": sum(bool(each.not_learned) for each in self.new if each.id not in self.quarantined)}
        found |= {"quarantined tonight": len(self.quarantined), "waiting": len(self.waiting)}
        return {where: count for where, count in found.items() if count}

    @property
    def trouble(self) -> list[GateCheck]:
        """The gate's checks that do not pass."""
        return [check for check in (self.gate.checks if self.gate else ()) if check.verdict != "pass"]

    @property
    def why(self) -> str:
        """Why it ended as it did, in one paragraph."""
        if not self.night:
            waits = [f"{name} waits: {reason}." for name, reason in self.waiting.items()]
            return " ".join(waits) or "Nothing new in the inbox."
        reasons = [f"{check.name}: {check.sentence}" for check in self.trouble]
        return " ".join([_HEADLINES[self.outcome], *reasons])

    @property
    def new_before(self) -> float | None:
        """Mean accuracy of the champion on the new documents."""
        return known_mean([document.before for document in self.new])

    @property
    def new_after(self) -> float | None:
        """Mean accuracy of the night's student on the new documents."""
        return known_mean([document.after for document in self.new])

    @property
    def earlier_before(self) -> float | None:
        """Mean over earlier nights of the champion's accuracy."""
        return known_mean([group.before for group in self.groups])

    @property
    def earlier_after(self) -> float | None:
        """Mean over earlier nights of the accuracy of the night's student."""
        return known_mean([group.after for group in self.groups])


def page_of(result: NightResult, work_dir: Path = Path(".preceptor")) -> str:
    """Return the page of a night as HTML, with commands for its work directory; what models wrote is escaped."""
    loader = PackageLoader("pipelines.adapt_student", ".")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    page = environment.get_template("page.html.j2").render(
        pc=lambda share: percent(share, 0),
        points=lambda value: "" if value is None else points(value),
        way=_way,
        width=lambda share: f"{100 * min(1.0, max(0.0, share or 0.0)):.1f}",
        r=result,
        place=shlex.join(["--work-dir", str(work_dir)]),
        headline=_HEADLINES.get(result.outcome, ""),
        refused=listing(result.refused),
        trouble=result.trouble,
        time=duration(sum(result.seconds.values())),
        tokens=f"{0 if result.update is None else result.update.tokens:,}",
        edits=by_document(result.candidates),
        unknown=[document for document in result.new if document.unknown],
        titles={document.id: document.title for document in result.new},
    )
    return printable(page, "\n\t")


def night_markdown(result: NightResult, work_dir: Path) -> str:
    """Return a night for people who watch runs: the outcome, its reasons, where all of it is, and the gate's table."""
    page = f"\n\n- Morning page: {Path(result.page).resolve().as_uri()}\n" if result.page else ""
    links = page + (f"- MLflow: {result.mlflow}\n" if result.mlflow else "")
    lines = "\n".join(night_lines(result, work_dir))
    gate = "" if result.gate is None else report_markdown(result.gate)
    title = f"# {result.night}: {result.outcome}" if result.night else "# Nothing new"
    return printable(f"{title}\n\n{escaped(result.why)}{links}\n```\n{lines}\n```\n\n{gate}", "\n")


def _way(before: float | None, after: float | None) -> str:
    """Return the CSS class of a change; less than half a point is none."""
    if before is None or after is None or abs(after - before) < 0.005:
        return ""
    return "up" if after > before else "down"


def night_lines(result: NightResult, work_dir: Path, config: Path | None = None) -> Iterator[str]:
    """Yield a summary of a night for the terminal, and the next command; `config` names a store of its own."""
    place, store = ("--work-dir", work_dir), () if config is None else ("--config", config)
    refused = listing(result.refused)
    waiting = [*waiting_lines(result.waiting, work_dir), *(f"Refused by the inbox: {line}" for line in refused)]
    if result.outcome == "nothing new":
        yield from waiting
        if not result.waiting:
            yield "Nothing new in the inbox: the champion is unchanged."
        yield f"To add documents: {preceptor('inbox', 'add', 'FILE', *place)}"
        return
    parent = "the base student" if result.parent is None else f"version {result.parent}"
    yield f"{result.night}: {result.outcome} (version {result.version}, trained from {parent})"
    if result.erasing:
        yield f"  learned again after an erasure: {result.erasing}"
    yield f"  new documents        {_change(result.new_before, result.new_after)}  ({len(result.new)})"
    documents = sum(group.documents for group in result.groups)
    yield f"  earlier documents    {_change(result.earlier_before, result.earlier_after)}  ({documents})"
    probes = f"({result.probes}; base {percent(result.probes_base)})"
    yield f"  general knowledge    {_change(result.probes_before, result.probes_after)}  {probes}"
    for check in result.trouble:
        yield f"  {check.name}: {check.sentence}"
    if result.warning:
        yield f"Warning: {result.warning}"
    yield from waiting
    yield f"Page: {result.page}"
    if result.mlflow:
        yield f"MLflow: {result.mlflow}"
    if result.outcome == "promoted":
        yield f"To roll back: {preceptor('rollback', '--because', 'YOUR REASON', *store, *place)}"
    else:
        yield "The champion is unchanged; documents that are not quarantined come again next night."
    if result.quarantined:
        release = preceptor("inbox", "release", result.quarantined[0], *place)
        yield f"Quarantined: {counted(len(result.quarantined), 'document')}. To return one to the queue: {release}"


def _change(before: float | None, after: float | None) -> str:
    return f"{percent(before):>5} -> {percent(after):>5} % correct"
