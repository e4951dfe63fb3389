"""The promotion gate: promote, hold or reject a candidate from paired scores, and the report as a page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from pydantic import Field

from evaluation.common.data import Frozen
from evaluation.gate.checks import (
    GateCheck,
    PairedScore,
    StatisticsConfig,
    check_canaries,
    check_change,
    check_collapse,
    check_groups,
    check_scored,
)

Decision = Literal["promote", "hold", "reject"]
"""`promote`: every check passes. `hold`: some check is undecided, none fails. `reject`: some check fails."""

TOUCHED = "what was known of the same subjects"
"""Name of the check of what was known about the subjects of the new documents."""

_MOST_GROUPS = 5
"""Nights that a table shows: the worst ones, since a student has hundreds in time."""
_GROUP = "night "
_MARKS = {"pass": "pass", "fail": "**FAIL**", "undecided": "**undecided**"}
_MEANINGS = {
    "promote": "Every check passes.",
    "hold": "Inconclusive: no check fails, but not every check passes. The champion is unchanged.",
    "reject": "A check fails. The champion is unchanged.",
}


class GateConfig(StatisticsConfig):
    """What a candidate must show. Scores are in [0, 1]: a margin of 0.05 is 5 points."""

    new_margin: float = Field(default=0.02, ge=0.0, lt=1.0)
    """Gain over the champion on new documents that must be shown, in [0, 1)."""
    earlier_margin: float = Field(default=0.05, gt=0.0, le=1.0)
    """Loss against the champion allowed on the documents of all earlier nights together, in (0, 1]."""
    group_margin: float = Field(default=0.15, gt=0.0, le=1.0)
    """Loss allowed on the documents of any one earlier night, in (0, 1]. Larger than `earlier_margin`, since a night
    has few documents: one of many nights lies some standard errors below the others by chance alone."""
    probe_margin: float = Field(default=0.05, gt=0.0, le=1.0)
    """Loss allowed on each set of retention probes against the frozen baseline, in (0, 1]."""
    touched_margin: float = Field(default=0.1, gt=0.0, le=1.0)
    """Loss against the champion allowed on what was known about the subjects of the new documents, in (0, 1]."""
    most_collapsed: float = Field(default=0.02, ge=0.0, le=1.0)
    """Share of empty or degenerate answers allowed, in [0, 1]."""
    probes_required: bool = True
    """Hold where no probe was asked; False promotes without, for students of which nothing else is expected."""


class GateEvidence(Frozen):
    """All measurements of a candidate."""

    new: tuple[PairedScore, ...]
    """Of the documents that the candidate was made for."""
    earlier: Mapping[str, tuple[PairedScore, ...]] = Field(default_factory=dict)
    """By earlier night; none: the champion was taught nothing yet. A night without scores could not be scored. A
    document that contradicts an earlier one shows here, as that night's loss."""
    probes: Mapping[str, tuple[PairedScore, ...]] = Field(default_factory=dict)
    """By set of probes: questions that no document is about."""
    touched: tuple[PairedScore, ...] = ()
    """Questions on earlier documents and general knowledge about the subjects of the new documents, where wrong
    documents show first. Empty: nothing was known about these."""
    collapsed: int = Field(default=0, ge=0)
    """Answers of the candidate that are empty or degenerate, in [0, answered]."""
    answered: int = Field(default=0, ge=0)
    """Answers of the candidate."""
    canaries: Mapping[str, str | None] = Field(default_factory=dict)
    """By canary: why it failed, or None where it passed."""
    unscored: tuple[str, ...] = ()
    """Ids of documents that should have a score and have none; nothing is promoted past them."""


class GateReport(Frozen):
    """The decision with its checks."""

    decision: Decision
    checks: tuple[GateCheck, ...] = Field(min_length=1)
    config: GateConfig


def _measured(evidence: GateEvidence, config: GateConfig) -> tuple[GateCheck, ...]:
    """Return the checks of whether the candidate works and was scored at all."""
    return (
        check_scored(evidence.unscored),
        check_canaries(evidence.canaries),
        check_collapse(evidence.collapsed, evidence.answered, config.most_collapsed),
    )


def _new(evidence: GateEvidence, config: GateConfig) -> tuple[GateCheck, ...]:
    return (check_change("new documents", evidence.new, config.new_margin, config),)


def _touched(evidence: GateEvidence, config: GateConfig) -> tuple[GateCheck, ...]:
    if evidence.touched:
        return check_groups({TOUCHED: evidence.touched}, config.touched_margin, config)
    return (_not_applicable(TOUCHED, "Nothing was known about them."),)


def _earlier(evidence: GateEvidence, config: GateConfig) -> tuple[GateCheck, ...]:
    """Return the check of all earlier nights together and one of each."""
    name = "earlier documents"
    if not evidence.earlier:
        return (_not_applicable(name, "There are none: the champion was taught nothing yet."),)
    # The same document in two nights stays two: each night's questions are its own.
    scores = tuple(
        score.model_copy(update={"document": f"{night}/{score.document}"})
        for night, scored in evidence.earlier.items()
        for score in scored
    )
    groups = {f"{_GROUP}{night}": scored for night, scored in evidence.earlier.items()}
    together = check_change(name, scores, -config.earlier_margin, config)
    return (together, *check_groups(groups, config.group_margin, config))


def _probes(evidence: GateEvidence, config: GateConfig) -> tuple[GateCheck, ...]:
    """Return one check for each set of probes."""
    if not evidence.probes and not config.probes_required:
        return (_not_applicable("probes", "None were asked, and none are required."),)
    sets = {f"probes {name}": scores for name, scores in evidence.probes.items()} or {"probes": ()}
    return tuple(check_change(name, scores, -config.probe_margin, config) for name, scores in sets.items())


def _not_applicable(name: str, sentence: str) -> GateCheck:
    return GateCheck(name=name, verdict="pass", sentence=sentence, documents=0)


CHECKS: tuple[Callable[[GateEvidence, GateConfig], Iterable[GateCheck]], ...] = (
    _measured,
    _new,
    _touched,
    _earlier,
    _probes,
)
"""What a promotion needs, in the order of reports."""


def decide(evidence: GateEvidence, config: GateConfig) -> GateReport:
    """Return whether a candidate is promoted, held or rejected, with every check behind it.

    All checks must pass for a promotion, so a candidate that is truly at the margin of any of them is promoted in at
    most 1 - confidence of cases, without a correction for their number (Berger 1982, Technometrics 24). If any score of
    the candidate rises, the decision does not become worse.
    """
    checks = tuple(found for check in CHECKS for found in check(evidence, config))
    verdicts = {check.verdict for check in checks}
    decision: Decision = "reject" if "fail" in verdicts else "hold" if "undecided" in verdicts else "promote"
    return GateReport(decision=decision, checks=checks, config=config)


def report_markdown(report: GateReport) -> str:
    """Return the decision, its reasons, and a table of the checks, in Markdown."""
    reasons = sorted((check for check in report.checks if check.verdict != "pass"), key=lambda c: c.verdict != "fail")
    settings = report.config
    lines = [f"# Gate: {report.decision.upper()}", "", _MEANINGS[report.decision], ""]
    lines += [f"- {_MARKS[check.verdict]} {escaped(check.name)}: {escaped(check.sentence)}" for check in reasons]
    lines += [""] if reasons else []
    lines += check_table(_shortened(report.checks))
    lines += [
        "",
        f"Changes are candidate minus reference in points, with one-sided {settings.confidence:.0%} bounds over "
        f"documents; `needed` documents would decide with {settings.power:.0%} power. All checks must pass for a "
        "promotion; any failure rejects; anything undecided holds.",
    ]
    return "\n".join(lines) + "\n"


def check_table(checks: Sequence[GateCheck]) -> list[str]:
    """Return the lines of a Markdown table of checks."""
    rows = ["| check | verdict | measured | bounds | limit | size | needed |", "|---|---|---:|---:|---:|---:|---:|"]
    for check in checks:
        bounds = "" if check.low is None or check.high is None else f"{_signed(check.low)} … {_signed(check.high)}"
        figures = (_figure(check, check.estimate), bounds, _figure(check, check.limit))
        counts = ("" if count is None else str(count) for count in (check.documents, check.needed))
        rows.append(f"| {' | '.join((escaped(check.name), _MARKS[check.verdict], *figures, *counts))} |")
    return rows


def escaped(text: str) -> str:
    """Return text for one cell of a Markdown table, shown literally."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _shortened(checks: Sequence[GateCheck]) -> list[GateCheck]:
    """Return the checks with the worst nights alone, and a line that counts the others."""
    order = {"fail": 0, "undecided": 1, "pass": 2}
    groups = [check for check in checks if check.name.startswith(_GROUP)]
    rest = sorted(groups, key=lambda check: (order[check.verdict], check.estimate or 0.0))[_MOST_GROUPS:]
    if not rest:
        return list(checks)
    passed = sum(check.verdict == "pass" for check in rest)
    line = GateCheck(
        name=f"{len(rest)} more nights" + ("" if passed == len(rest) else f", {passed} of which pass"),
        verdict=rest[0].verdict,
        sentence="",
        documents=sum(check.documents or 0 for check in rest),
    )
    hidden = {check.name for check in rest}
    return [*(check for check in checks if check.name not in hidden), line]


def _figure(check: GateCheck, value: float | None) -> str:
    """Return a difference in points, or a share in percent where the check has no bounds."""
    if value is None:
        return ""
    return _signed(value) if check.low is not None or value < 0.0 else f"{value:.1%}"


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}"
