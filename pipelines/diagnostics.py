"""What can be said about self-edits without training on them: length, and in the micro-world the worth of each line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from evaluation.data_config import MicroworldData
from evaluation.microworld.lines import LineKind, classify_line
from evaluation.microworld.splits import microworld_sheets
from evaluation.microworld.world import Sheet
from pipelines.records import EditRecord
from pipelines.workspace import Workspace


@lru_cache(maxsize=4)
def _sheets(config: MicroworldData) -> dict[str, Sheet]:
    return microworld_sheets(config)


def edit_notes(ws: Workspace, edits: Sequence[EditRecord]) -> dict[str, float]:
    """Return mean lines and tokens of the self-edits, the share that could be parsed and, in the micro-world, more.

    There, `share_<kind>` is the share of each kind of line (`LineKind`), and `coverage` the share of a document's facts
    that some true line states, name first.
    """
    if not edits:
        return {}
    parsed = [edit for edit in edits if edit.edit is not None]
    lines = sum(len(edit.edit.implications) for edit in parsed if edit.edit is not None)
    notes = {
        "parsed": len(parsed) / len(edits),
        "lines": lines / len(edits),
        "tokens": sum(edit.tokens for edit in edits) / len(edits),
    }
    if isinstance(ws.config.data, MicroworldData) and parsed:
        notes |= _line_shares(_sheets(ws.config.data), parsed)
    return notes


def _line_shares(sheets: dict[str, Sheet], edits: Sequence[EditRecord]) -> dict[str, float]:
    counts: Counter[LineKind] = Counter()
    coverage = []
    for edit in edits:
        sheet = sheets[edit.document_id]
        lines = [
            line.text if line.answer is None else f"Question: {line.text} Answer: {line.answer}"
            for line in (edit.edit.implications if edit.edit else ())
        ]
        classified = [classify_line(line, sheet) for line in lines]
        counts.update(line.kind for line in classified)
        told = {(c.name, c.attribute) for c in classified if c.kind in (LineKind.STATEMENT, LineKind.QUESTION)}
        coverage.append(len(told) / len(sheet.facts))
    total = max(1, counts.total())
    shares = {f"share_{kind.value}": counts[kind] / total for kind in LineKind}
    return {**shares, "coverage": sum(coverage) / len(coverage)}
