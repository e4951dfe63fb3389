"""A night in a few lines for the terminal. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from evaluation.statistics import known_mean
from pipelines.nights.results import NightResult


def night_lines(result: NightResult, work_dir: Path) -> Iterator[str]:
    """Yield what a person wants to know of a night, and the next command to type."""
    place = shlex.quote(str(work_dir))
    if result.outcome == "nothing new":
        yield "Nothing new: no student was changed."
        yield f"To add documents: preceptor inbox add FILE --work-dir {place}"
        return
    made = "the base student" if result.parent is None else f"version {result.parent}"
    yield f"{result.night}: {result.outcome} (version {result.version}, made from {made})"
    yield f"  new documents        {_change(result.new_before, result.new_after)}  ({len(result.new)})"
    before = known_mean([group.before for group in result.groups])
    after = known_mean([group.after for group in result.groups])
    yield f"  earlier documents    {_change(before, after)}  ({sum(group.documents for group in result.groups)})"
    base = _percent(result.probes_base)
    yield f"  general knowledge    {_change(result.probes_before, result.probes_after)}  ({result.probes}; base {base})"
    for check in () if result.gate is None else result.gate.checks:
        if check.verdict != "pass":
            yield f"  {check.name}: {check.sentence}"
    yield f"Page: {result.page}"
    if result.outcome == "promoted":
        yield f'To take it back: preceptor rollback --because "..." --work-dir {place}'
    else:
        yield "The student in use stays; what is not set aside comes again next night."
    if result.aside:
        told = f"{len(result.aside)} of its documents are set aside"
        yield f"{told}. To let one be learned again: preceptor inbox release {result.aside[0]} --work-dir {place}"


def _change(before: float | None, after: float | None) -> str:
    return f"{_percent(before):>5} -> {_percent(after):>5} % right"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
