"""What `preceptor doctor` prints: a table for each area, a verdict, and the commands to type. Reads at 80 columns."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from pipelines.doctor.checks import Check, DoctorReport
from pipelines.report import WIDTH, counted, plain_table

_NAME_COLUMNS, _STATUS_COLUMNS = 15, 8
_MENDS = ("missing", "broken", "warning")


def print_doctor_report(console: Console, report: DoctorReport) -> None:
    """Print everything that was found, then the commands, each once and on a line of its own."""
    for area in dict.fromkeys(check.area for check in report.checks):
        console.print(_table(area, [check for check in report.checks if check.area == area]))
        console.print()
    console.print(_verdict(report), markup=False, highlight=False)
    mending = _commands(check for check in report.checks if check.status in _MENDS)
    adding = _commands(check for check in report.checks if check.status == "optional")
    for heading, commands in (("To mend it:", mending), ("To add what is optional:", adding)):
        new = [command for command in commands if heading == "To mend it:" or command not in mending]
        if new:
            console.print(heading, markup=False)
        for command in new:
            console.print(f"  {command}", markup=False, highlight=False, soft_wrap=True)


def _table(area: str, checks: list[Check]) -> object:
    table = plain_table(area, "")
    table.show_header = False
    table.width = WIDTH
    table.add_column(width=_NAME_COLUMNS, overflow="fold")
    table.add_column(width=_STATUS_COLUMNS, no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    for check in checks:
        shown = check.status if check.status in ("ok", "optional") else check.status.upper()
        table.add_row(Text(check.name), shown, Text(check.found))
    return table


def _verdict(report: DoctorReport) -> str:
    """Return how many checks are not well, in a sentence."""
    tally = {status: sum(check.status == status for check in report.checks) for status in _MENDS}
    told = ", ".join(
        counted(tally[status], "warning") if status == "warning" else f"{tally[status]} {status}"
        for status in _MENDS
        if tally[status]
    )
    if report.usable:
        return f"Usable: nothing that is needed is missing or broken{f' ({told})' if told else ''}."
    return f"Not usable as it is: {told}."


def _commands(checks: Iterable[Check]) -> list[str]:
    """Return the commands of some checks, each once, in their order."""
    return list(dict.fromkeys(check.fix for check in checks if check.fix))
