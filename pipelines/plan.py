"""A run as a plan: stages of steps, made from the configuration before anything is opened.

Execution runs the stages, progress counts their steps, and `--dry-run` sums them: there is one arithmetic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from student.config import UpdateRecipe

StepKind = Literal["sample", "update", "score", "read", "learn"]
"""A teacher writes self-edits; a student is updated with them and scored; a student is scored without an update; a
student reads self-edits or passages in its context; the teacher learns."""

TrainsOn = Literal["edit", "passage", "line", "specification", "night"]
"""What an update trains on, which decides its length: a sampled self-edit, the passage, a line or two, any
specification of a space, or everything that a night learns (`UpdateSize`, the subject of its stage)."""


class UpdateSize(NamedTuple):
    """Training data of one update whose length is known."""

    recipe: UpdateRecipe
    lines: int
    tokens: int
    """Tokens of all lines together."""


class Step(NamedTuple):
    """A part of a stage; its counts are upper bounds where self-edits can be refused or recur."""

    kind: StepKind
    documents: int
    each: int = 1
    """Per document: self-edits written, updates made, or completions learned from."""
    trains_on: TrainsOn = "edit"
    """For updates."""
    questions: Literal["rewards", "comparison"] = "rewards"
    """For updates, scores and reads: the questions asked."""
    writer: Literal["teacher", "external", "student"] = "teacher"
    """For samples."""

    @property
    def total(self) -> int:
        """Self-edits, updates, documents scored, or completions learned from."""
        return self.documents * self.each


class Stage(NamedTuple):
    """Steps that belong together, such as a round or a variant."""

    name: str
    """For people and as a key, such as `round 3` or `variant trained_teacher`."""
    steps: tuple[Step, ...]
    subject: Any = None
    """What it is about: the number of a round, a variant, or the algorithm of a warm start."""


Plan = tuple[Stage, ...]


def totals(steps: Iterable[Step]) -> Counter[StepKind]:
    """Return the counts of some steps by kind."""
    found: Counter[StepKind] = Counter()
    for step in steps:
        found[step.kind] += step.total
    return found


def steps_of(plan: Plan) -> tuple[Step, ...]:
    """Return all steps of a plan, in order."""
    return tuple(step for stage in plan for step in stage.steps)
