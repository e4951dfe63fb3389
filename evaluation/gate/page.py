"""The gate's report as a page that a person reads in a minute."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.gate.records import GateCheck, GateReport

_MOST_GROUPS = 5
"""Groups of documents that a table shows; the lowest ones, since a student has hundreds of nights in time."""

_GROUP = "night "
_MARKS = {"pass": "pass", "fail": "**FAIL**", "undecided": "**undecided**"}
_MEANINGS = {
    "promote": "Everything asked for is shown.",
    "hold": "Nothing is shown to be wrong, but not everything asked for is shown. The champion stays.",
    "reject": "Something is shown to be wrong. The champion stays.",
}


def report_markdown(report: GateReport) -> str:
    """Return the page: the decision, why, and a table of the checks, in Markdown."""
    reasons = [check for check in report.checks if check.verdict != "pass"]
    reasons.sort(key=lambda check: check.verdict != "fail")
    settings = report.config
    lines = [f"# Gate: {report.decision.upper()}", "", _MEANINGS[report.decision], ""]
    lines += [f"- {_MARKS[check.verdict]} {escaped(check.name)}: {escaped(check.sentence)}" for check in reasons]
    lines += [""] if reasons else []
    lines += check_table(_shortened(report.checks))
    lines += [
        "",
        f"Changes are candidate minus reference in points, with one-sided {settings.confidence:.0%} bounds over "
        f"documents; `needed` is for a chance of {settings.power:.0%} to decide. Everything must pass for a promotion; "
        "anything that fails rejects; anything undecided holds.",
    ]
    return "\n".join(lines) + "\n"


def check_table(checks: Sequence[GateCheck]) -> list[str]:
    """Return the lines of a Markdown table of checks."""
    rows = ["| check | verdict | measured | bounds | limit | size | needed |", "|---|---|---:|---:|---:|---:|---:|"]
    for check in checks:
        bounds = "" if check.low is None or check.high is None else f"{_signed(check.low)} … {_signed(check.high)}"
        cells = [
            escaped(check.name),
            _MARKS[check.verdict],
            _figure(check, check.estimate),
            bounds,
            _figure(check, check.limit),
            "" if check.documents is None else str(check.documents),
            "" if check.needed is None else str(check.needed),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def escaped(text: str) -> str:
    """Return text that stays within a cell of a table and shows as it is."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _shortened(checks: Sequence[GateCheck]) -> list[GateCheck]:
    """Return the checks with the lowest groups alone, and a line that says how many more there are."""
    groups = [check for check in checks if check.name.startswith(_GROUP)]
    if len(groups) <= _MOST_GROUPS:
        return list(checks)
    order = {"fail": 0, "undecided": 1, "pass": 2}
    groups.sort(key=lambda check: (order[check.verdict], 0.0 if check.estimate is None else check.estimate))
    kept, rest = groups[:_MOST_GROUPS], groups[_MOST_GROUPS:]
    passed = sum(check.verdict == "pass" for check in rest)
    line = GateCheck(
        name=f"{len(rest)} more nights" if passed == len(rest) else f"{len(rest)} more nights, {passed} of which pass",
        verdict=rest[0].verdict,
        sentence="",
        documents=sum(check.documents or 0 for check in rest),
    )
    shown: list[GateCheck] = []
    for check in checks:
        if not check.name.startswith(_GROUP):
            shown.append(check)
        elif check is next(c for c in checks if c.name.startswith(_GROUP)):
            shown += [*kept, line]
    return shown


def _figure(check: GateCheck, value: float | None) -> str:
    """Return a difference in points, or a share in percent where the check has no bounds."""
    if value is None:
        return ""
    return _signed(value) if check.low is not None or value < 0.0 else f"{value:.1%}"


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}"
