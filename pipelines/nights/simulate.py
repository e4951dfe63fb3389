"""Nights in a row on the micro-world, and the same nights without what keeps a student from forgetting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field
from rich.console import Console

from evaluation.microworld.nights import NightDocument, draw_nights
from evaluation.statistics import known_mean
from pipelines.inbox.documents import InboxDocument
from pipelines.inbox.store import INBOX_FILE, InboxStore
from pipelines.nights.adapt_student import adapt_student
from pipelines.nights.opening import NIGHTS, RESULT
from pipelines.nights.results import NightResult
from pipelines.records import Record

ARMS: dict[str, tuple[str, ...]] = {
    "full": (),
    "no replay": ("replay={documents: 0, general: 0}", "gate=null"),
    "no gate": ("gate=null",),
    "no memory": ("routing={superseding: weights, dated: weights}", "memory.least_score=1000"),
    "joint": ("composition=joint",),
    "merged": ("composition=merged",),
}
"""What is compared, as settings of the night: everything, each of three things left out, and the other compositions.
Without replay the gate would hold every night, and nothing could be seen of what is forgotten; so it is left out there
too."""


class SimulationPlan(Record):
    """What arrives."""

    nights: int = Field(default=10, ge=1, le=30)
    documents: int = Field(default=4, ge=2, le=20)
    """Of each night."""
    superseding: tuple[int, ...] = (4, 8)
    """Nights, counted from 0, on which a document replaces an earlier one."""
    poisoned: int | None = 6
    """Night of wrong documents, counted from 0."""


class SimulatedNight(Record):
    """A night of an arm, and what the student in use knows after it."""

    outcome: str
    right_after: float | None
    """Accuracy of the night's student on the night's documents, in [0, 1]."""
    groups: dict[str, float]
    """By night whose documents the student in use holds: its accuracy on them after this night."""
    probes: float | None
    """Share of the retention probes that the student in use answers."""
    probes_base: float | None
    page: str
    seconds: float


class Arm(Record):
    """The nights of one arm."""

    name: str
    nights: tuple[SimulatedNight, ...]
    poisoned: int | None = None
    """Night of wrong documents, counted from 0; its documents count for nothing in what is kept."""

    @property
    def honest(self) -> dict[str, float]:
        """By night of true documents: accuracy of the student in use after the last night."""
        wrong = None if self.poisoned is None else night_name(self.poisoned)
        return {name: value for name, value in self.nights[-1].groups.items() if name != wrong}

    @property
    def kept(self) -> float | None:
        """Mean accuracy after the last night over all nights' documents, as a share of that right after each night."""
        then: dict[str, float] = {}
        for night in self.nights:
            then = {**night.groups, **then}  # the first score of a group is the one right after its night
        now = self.honest
        first = known_mean([then[name] for name in now])
        last = known_mean(list(now.values()))
        return None if not first or last is None else last / first

    @property
    def lost_probes(self) -> float | None:
        """Probes that the base student answers, less those of the student in use at the end, in [-1, 1]."""
        last = self.nights[-1]
        return None if last.probes is None or last.probes_base is None else last.probes_base - last.probes


def night_name(number: int) -> str:
    """Return the name of a night counted from 0."""
    return f"night-{number + 1:04d}"


def simulate(
    config: Path, overrides: Sequence[str], plan: SimulationPlan, work_dir: Path, seed: int, names: Sequence[str]
) -> list[Arm]:
    """Return the nights of all arms, each in a directory of its own; a killed simulation goes on where it was.

    Args:
        config: YAML file of the night.
        overrides: Of its settings, for all arms.
        plan: What arrives.
        work_dir: Gets a directory for each arm.
        seed: Of the world.
        names: Of the arms.
    """
    return [
        run_arm(name, config, (*overrides, *ARMS[name]), plan, work_dir / name.replace(" ", "-"), seed)
        for name in names
    ]


def run_arm(name: str, config: Path, overrides: Sequence[str], plan: SimulationPlan, work_dir: Path, seed: int) -> Arm:
    """Return the nights of one arm."""
    console = Console()
    drawn = draw_nights(plan.nights, plan.documents, seed, superseding=plan.superseding, poisoned=plan.poisoned)
    nights = []
    for number, documents in enumerate(drawn):
        done = work_dir / NIGHTS / night_name(number) / RESULT
        if done.is_file():
            result = NightResult.model_validate_json(done.read_bytes())
        else:
            console.rule(f"{name}, night {number + 1} of {plan.nights}", style="dim")
            with InboxStore(work_dir / INBOX_FILE) as inbox:
                inbox.add(as_delivered(document) for document in documents)
            result = adapt_student(str(config), list(overrides), str(work_dir))
        nights.append(_simulated(result))
    return Arm(name=name, nights=tuple(nights), poisoned=plan.poisoned)


def as_delivered(document: NightDocument) -> InboxDocument:
    """Return a document of the simulation as its sender delivers it."""
    task = document.task
    return InboxDocument(
        title=task.document.title,
        text=task.document.text,
        source=task.document.source,
        name=task.id,
        effective=document.effective,
        supersedes=document.supersedes,
        questions=task.questions,
        held_out_questions=task.held_out_questions,
        entities=task.document.entities,
    )


def _simulated(result: NightResult) -> SimulatedNight:
    """Return what the student in use knows after a night: the night's own, or the one that stayed."""
    promoted = result.outcome == "promoted"
    groups: Mapping[str, float | None] = {g.night: g.after if promoted else g.before for g in result.groups}
    if promoted:
        groups = {**groups, result.night: result.new_after}
    return SimulatedNight(
        outcome=result.outcome,
        right_after=result.new_after,
        groups={name: value for name, value in groups.items() if value is not None},
        probes=result.probes_after if promoted else result.probes_before,
        probes_base=result.probes_base,
        page=result.page,
        seconds=sum(result.seconds.values()),
    )
