"""The promotion gate: promote, hold or reject a candidate by paired scores, and its Markdown report."""

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
from evaluation.statistics import POWER

Decision = Literal["promote", "hold", "reject"]
"""`promote`: every check passes. `hold`: some check is undecided, none fails. `reject`: some check fails."""

TOUCHED = "contradiction check"
"""Name of the contradiction check."""

_MOST_GROUPS = 5
"""Maximum number of nights in a table, the worst ones."""
_GROUP = "night "
_MARKS = {"pass": "pass", "fail": "**FAIL**", "undecided": "**undecided**"}
_MEANINGS = {
    "promote": "Every check passes.",
    "hold": "Inconclusive: no check fails, but not every check passes. The champion is unchanged.",
    "reject": "A check fails. The champion is unchanged.",
}


class GateConfig(StatisticsConfig):
    """Margins of the gate. Scores are in [0, 1]: a margin of 0.05 is 5 points."""

    new_margin: float = Field(default=0.02, ge=0.0, lt=1.0)
    """Required gain over the champion on new documents, in [0, 1)."""
    earlier_margin: float = Field(default=0.05, gt=0.0, le=1.0)
    """Maximum loss against the champion on the documents of all earlier nights, in (0, 1]."""
    group_margin: float = Field(default=0.15, gt=0.0, le=1.0)
    """Maximum loss on the documents of a single earlier night, in (0, 1]; larger, since the worst of many small groups
    is some standard errors low by chance."""
    probe_margin: float = Field(default=0.05, gt=0.0, le=1.0)
    """Maximum loss on each set of retention probes against the frozen baseline, in (0, 1]."""
    touched_margin: float = Field(default=0.1, gt=0.0, le=1.0)
    """Maximum loss against the champion on known questions about the entities of new documents, in (0, 1]."""


class GateEvidence(Frozen):
    """All measurements of a candidate."""

    new: tuple[PairedScore, ...]
    """Documents of this night."""
    earlier: Mapping[str, tuple[PairedScore, ...]] = Field(default_factory=dict)
    """By earlier night; empty before the first promotion. A night without scores could not be scored."""
    probes: Mapping[str, tuple[PairedScore, ...]] = Field(default_factory=dict)
    """By set of retention probes."""
    touched: tuple[PairedScore, ...] = ()
    """Contradiction check: known questions about the entities of the new documents; empty if there are none."""
    collapsed: int = Field(default=0, ge=0)
    """Empty or degenerate answers of the candidate, in [0, answered]."""
    answered: int = Field(default=0, ge=0)
    """Answers of the candidate."""
    base_collapsed: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of empty answers of the frozen baseline to the probes: as many are no sign of collapse."""
    unasked: int = Field(default=0, ge=0)
    """Documents of this night that are only looked up, and without questions."""
    canaries: Mapping[str, str | None] = Field(default_factory=dict)
    """Reason of failure by canary; None if passed."""
    unscored: tuple[str, ...] = ()
    """Ids of documents without an expected score; they prevent promotion."""


class GateReport(Frozen):
    """The decision with its checks."""

    decision: Decision
    checks: tuple[GateCheck, ...] = Field(min_length=1)
    config: GateConfig


def _measured(evidence: GateEvidence, config: GateConfig) -> tuple[GateCheck, ...]:
    return (
        check_scored(evidence.unscored),
        check_canaries(evidence.canaries),
        check_collapse(evidence.collapsed, evidence.answered, max(config.most_collapsed, evidence.base_collapsed)),
    )


def _new(evidence: GateEvidence, config: GateConfig) -> tuple[GateCheck, ...]:
    name = "new documents"
    if evidence.unasked and not evidence.new:
        return (_not_applicable(name, f"{evidence.unasked} without questions, which are looked up and not learned."),)
    return (check_change(name, evidence.new, config.new_margin, config),)


def _touched(evidence: GateEvidence, config: GateConfig) -> tuple[GateCheck, ...]:
    if evidence.touched:
        return check_groups({TOUCHED: evidence.touched}, config.touched_margin, config)
    return (_not_applicable(TOUCHED, "Nothing was known about them."),)


def _earlier(evidence: GateEvidence, config: GateConfig) -> tuple[GateCheck, ...]:
    """Return the check of all earlier nights together, then one per night."""
    name = "earlier documents"
    if not evidence.earlier:
        return (_not_applicable(name, "There are none: the champion was taught nothing yet."),)
    # The same document in two nights counts twice: the questions differ.
    scores = tuple(
        score.model_copy(update={"document": f"{night}/{score.document}"})
        for night, scored in evidence.earlier.items()
        for score in scored
    )
    groups = {f"{_GROUP}{night}": scored for night, scored in evidence.earlier.items()}
    together = check_change(name, scores, -config.earlier_margin, config)
    return (together, *check_groups(groups, config.group_margin, config))


def _probes(evidence: GateEvidence, config: GateConfig) -> tuple[GateCheck, ...]:
    """Return one check per set of probes; without any nothing shows that nothing was forgotten, and the gate holds."""
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
"""In the order of reports."""


def decide(evidence: GateEvidence, config: GateConfig) -> GateReport:
    """Return the decision on a candidate with all checks.

    An intersection-union test: a candidate at the margin of any check is promoted with probability at most
    1 - confidence, without correction (Berger 1982, Technometrics 24). The decision is monotone in every score.
    """
    checks = tuple(found for check in CHECKS for found in check(evidence, config))
    verdicts = {check.verdict for check in checks}
    decision: Decision = "reject" if "fail" in verdicts else "hold" if "undecided" in verdicts else "promote"
    return GateReport(decision=decision, checks=checks, config=config)


def report_markdown(report: GateReport) -> str:
    """Return the decision, its reasons and a table of the checks in Markdown."""
    reasons = sorted((check for check in report.checks if check.verdict != "pass"), key=lambda c: c.verdict != "fail")
    settings = report.config
    lines = [f"# Gate: {report.decision.upper()}", "", _MEANINGS[report.decision], ""]
    lines += [f"- {_MARKS[check.verdict]} {escaped(check.name)}: {escaped(check.sentence)}" for check in reasons]
    lines += [""] if reasons else []
    lines += check_table(_shortened(report.checks))
    lines += [
        "",
        f"Changes are candidate minus reference in points, with one-sided {settings.confidence:.0%} bounds over "
        f"documents; `needed` documents would decide with {POWER:.0%} power. All checks must pass for a "
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
    """Escape text for a cell of a Markdown table."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _shortened(checks: Sequence[GateCheck]) -> list[GateCheck]:
    """Keep the worst nights and summarise the others in one row."""
    order = {"fail": 0, "undecided": 1, "pass": 2}
    groups = [check for check in checks if check.name.startswith(_GROUP)]
    rest = sorted(groups, key=lambda check: (order[check.verdict], check.estimate or 0.0))[_MOST_GROUPS:]
    if not rest:
        return list(checks)
    passed = sum(check.verdict == "pass" for check in rest)
    name = f"{len(rest)} more nights" + ("" if passed == len(rest) else f", {passed} of which pass")
    documents = sum(check.documents or 0 for check in rest)
    line = GateCheck(name=name, verdict=rest[0].verdict, sentence="", documents=documents)
    return [*(check for check in checks if check not in rest), line]


def _figure(check: GateCheck, value: float | None) -> str:
    """Format a difference in points, or a share in percent for checks without bounds."""
    if value is None:
        return ""
    return _signed(value) if check.low is not None or value < 0.0 else f"{value:.1%}"


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}"
