"""What the parts of a night hand to one another."""

from __future__ import annotations

from typing import NamedTuple

from evaluation.gate import PairedScore
from pipelines.lineage import Lineage
from pipelines.nights import learning
from pipelines.nights.config import NightConfig
from pipelines.nights.opening import Champion
from pipelines.nights.plan import NightPlan
from pipelines.nights.scoring import StudentScores
from pipelines.nights.state import StudentState
from pipelines.nights.units import NightUnits
from pipelines.progress import Reporter
from pipelines.records import CandidateRecord
from pipelines.units import Units
from pipelines.workspace import Workspace
from student.adapters import Adapter


class Night(NamedTuple):
    """A night that is under way."""

    config: NightConfig
    ws: Workspace
    plan: NightPlan
    parent: Champion
    units: Units
    own: NightUnits
    lineage: Lineage
    reporter: Reporter


class NightStudent(NamedTuple):
    """The student that the night made."""

    adapter: Adapter
    state: StudentState
    candidates: list[CandidateRecord]
    update: learning.NightUpdateRecord | None
    replayed: int
    not_learned: dict[str, str]
    """By id of a document for the weights, why they could not take it in."""


class Measured(NamedTuple):
    """Scores on the same questions: probes are the retention probes alone."""

    after: StudentScores
    before: StudentScores
    base: StudentScores
    touched: tuple[PairedScore, ...]
    suspects: tuple[str, ...]
    """Ids of new documents about known subjects of which no more is known than before."""
