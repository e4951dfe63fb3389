"""What a night will cost, for the terminal."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.costs import common_rows, quantity_table, told_parameters
from pipelines.nights.ahead import Ahead
from pipelines.nights.config import NightConfig
from pipelines.nights.costs import NightCost

if TYPE_CHECKING:
    from rich.table import Table


def night_cost_table(cost: NightCost, config: NightConfig, ahead: Ahead) -> Table:
    """Return the estimate as a table."""
    caption = (
        "Four characters of a text count as a token; edits that end early cost less. Questions on general knowledge "
        "about the very subjects of new documents are scored as well. Bytes are those of adapters and documents."
    )
    rows = {
        **_beginning(ahead),
        "Teacher": f"{config.teacher.model}, {told_parameters(cost.teacher_parameters)}",
        "Student": f"{config.student.model}, {told_parameters(cost.student_parameters)}",
        **_inbox_rows(cost),
        "Self-edits written": f"{cost.self_edits:,}",
        "Student updates": f"{cost.self_edits + cost.night_updates:,}",
        "  tries": f"{cost.self_edits:,}",
        "  the night's": f"{cost.night_updates}, on {cost.lines:,} lines",
        "Student optimizer steps": f"{cost.try_steps + cost.night_steps:,}",
        "  of tries": f"{cost.try_steps:,}",
        "  of the night's": f"{cost.night_steps:,}",
        "Student training tokens": f"{cost.training_tokens:,}",
        "Answers scored": f"{cost.question_answers + cost.try_answers + cost.night_answers:,}",
        **common_rows(cost.endpoints, cost.flops, cost.minutes),
        "Bytes on disk": "unknown" if cost.bytes_on_disk is None else f"{cost.bytes_on_disk / 2**20:,.1f} MiB",
    }
    return quantity_table(f"Cost of a night of {config.name}", caption, rows)


def next_command(cost: NightCost, config: Path, overrides: Sequence[str], work_dir: Path) -> str:
    """Return what to type next, in a line."""
    place = ["--work-dir", str(work_dir)]
    if not (cost.to_weights or cost.to_memory or cost.unasked):
        return f"Nothing new is in the inbox. To add documents: preceptor inbox add FILE {shlex.join(place)}"
    told = [part for override in overrides for part in ("--set", override)]
    return f"To start it: {shlex.join(['preceptor', 'adapt-student', str(config), *told, *place])}"


def _beginning(ahead: Ahead) -> dict[str, str]:
    student = "the base student" if ahead.parent is None else f"version {ahead.parent} of the student"
    finished = {"Finishes": f"{ahead.cut_off}, which was cut off"} if ahead.cut_off else {}
    return {"Begins with": student, **finished}


def _inbox_rows(cost: NightCost) -> dict[str, str]:
    """Return what waits in the inbox; rows without anything in them are left out, but for the new documents."""
    rows = {
        "New documents": f"{cost.to_weights + cost.to_memory:,}",
        "  to weights": f"{cost.to_weights:,}",
        "  to memory": f"{cost.to_memory:,}",
    }
    if cost.waiting:
        rows["Left without questions"] = f"{cost.waiting:,}"
    if cost.aside:
        rows["Set aside"] = f"{cost.aside:,}"
    if cost.unasked:
        rows["Questions written"] = f"{cost.questions:,} for {cost.unasked:,} documents"
    return rows
