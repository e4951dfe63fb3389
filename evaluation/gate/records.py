"""What the gate is told, what it is asked to show, and what it says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Decision = Literal["promote", "hold", "reject"]
"""`promote`: everything asked for is shown. `hold`: something is not shown either way, nothing is shown to be wrong.
`reject`: something is wrong."""

Verdict = Literal["pass", "fail", "undecided"]
"""Of one check."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StatisticsConfig(_Frozen):
    """How sure a check must be."""

    confidence: float = Field(default=0.95, gt=0.5, lt=1.0)
    """Of each one-sided bound, in (0.5, 1): a candidate at the margin passes in at most 1 - confidence of cases."""
    power: float = Field(default=0.8, gt=0.0, lt=1.0)
    """Chance to decide at the sample size that a report calls needed, in (0, 1)."""
    resamples: int = Field(default=10_000, ge=1000, le=1_000_000)
    """Draws of weights behind each bound, in [1000, 1000000]."""
    seed: int = Field(default=0, ge=0)
    """Of the draws, at least 0."""


class GateConfig(StatisticsConfig):
    """What a candidate must show. Scores are in [0, 1]: a margin of 0.05 is 5 points."""

    new_margin: float = Field(default=0.02, ge=0.0, lt=1.0)
    """Gain over the champion on new documents that must be shown, in [0, 1)."""
    earlier_margin: float = Field(default=0.05, gt=0.0, le=1.0)
    """Loss against the champion allowed on the documents of all earlier nights together, in (0, 1]."""
    group_margin: float = Field(default=0.15, gt=0.0, le=1.0)
    """Loss allowed on the documents of any one earlier night,
    in (0, 1]. Larger than `earlier_margin`, since a night has few documents: with many nights, one of them lies some
    standard errors below the others by chance alone."""
    probe_margin: float = Field(default=0.05, gt=0.0, le=1.0)
    """Loss allowed on each set of retention probes against the frozen baseline, in (0, 1]."""
    touched_margin: float = Field(default=0.1, gt=0.0, le=1.0)
    """Loss against the champion allowed on what was known about the very subjects of the new documents, in (0, 1]."""
    most_collapsed: float = Field(default=0.02, ge=0.0, le=1.0)
    """Share of empty or degenerate answers allowed, in [0, 1]."""
    probes_required: bool = True
    """Hold where no probe was asked; False promotes without, for students of which nothing else is expected."""


class PairedScore(_Frozen):
    """What two students score on the same question, or on the same document."""

    document: str = Field(min_length=1)
    """Id of the document, or of the probe, that the question belongs to; scores with the same id are averaged, because
    the questions of a document are not independent."""
    candidate: float = Field(ge=0.0, le=1.0)
    """In [0, 1]; right or wrong is 1 or 0."""
    reference: float = Field(ge=0.0, le=1.0)
    """The champion's score in [0, 1]; for probes that of the frozen baseline."""


class GateEvidence(_Frozen):
    """Everything that is measured about a candidate."""

    new: tuple[PairedScore, ...]
    """Of the documents that the candidate was made for."""
    earlier: Mapping[str, tuple[PairedScore, ...]] = Field(default_factory=dict)
    """By earlier night. No night at all means that the champion was taught nothing yet; a night without scores is one
    that could not be scored. A document that contradicts an earlier one shows here, as that night's loss."""
    probes: Mapping[str, tuple[PairedScore, ...]] = Field(default_factory=dict)
    """By set of probes: questions on what no document is about."""
    touched: tuple[PairedScore, ...] = ()
    """Questions, on earlier documents and on general knowledge, about what the new documents are about. Wrong documents
    about a known subject show here first: they are few among all probes. Empty: nothing was known about it."""
    collapsed: int = Field(default=0, ge=0)
    """Answers of the candidate that are empty or degenerate, in [0, answered]."""
    answered: int = Field(default=0, ge=0)
    """Answers of the candidate that were looked at."""
    canaries: Mapping[str, str | None] = Field(default_factory=dict)
    """By canary: why it failed, or None where it is well."""
    unscored: tuple[str, ...] = ()
    """Ids of documents that should have a score and have none; nothing is promoted past them."""

    @model_validator(mode="after")
    def _counted(self) -> Self:
        if self.collapsed > self.answered:
            raise ValueError(f"collapsed: got {self.collapsed}, but only {self.answered} answers were looked at")
        return self


class GateCheck(_Frozen):
    """One thing that was looked at."""

    name: str
    verdict: Verdict
    sentence: str
    """What was found, in one plain sentence."""
    estimate: float | None = None
    """Mean paired difference in [-1, 1], or a share in [0, 1]; None where nothing was measured."""
    low: float | None = None
    """One-sided lower bound of the estimate; None where it has none."""
    high: float | None = None
    """One-sided upper bound of the estimate; None where it has none."""
    limit: float | None = None
    """What the estimate is held against, on its scale: a gain to reach, a (negative) loss not to pass, a share."""
    documents: int | None = None
    """Documents, probes or answers behind the estimate."""
    needed: int | None = None
    """How many would decide an undecided check, if what was seen is the truth; None where it is decided or no number
    would do."""


class GateReport(_Frozen):
    """The decision with all that it rests on."""

    decision: Decision
    checks: tuple[GateCheck, ...] = Field(min_length=1)
    """In the order in which a person would ask."""
    config: GateConfig

    @model_validator(mode="after")
    def _follows(self) -> Self:
        wanted = decision_of(self.checks)
        if self.decision != wanted:
            raise ValueError(f"decision: got {self.decision!r}, but the checks say {wanted!r}")
        return self

    @property
    def needed(self) -> int | None:
        """The largest number that an undecided check needs; None where no check names one."""
        return max((check.needed for check in self.checks if check.needed is not None), default=None)


def decision_of(checks: tuple[GateCheck, ...]) -> Decision:
    """Return what follows from checks: any that failed rejects, else any that is undecided holds."""
    verdicts = {check.verdict for check in checks}
    return "reject" if "fail" in verdicts else "hold" if "undecided" in verdicts else "promote"
