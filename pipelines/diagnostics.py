"""What can be said about self-edits without training on them: length, and in the micro-world the worth of each line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from evaluation.microworld.lines import LineKind, classify_line
from evaluation.microworld.world import Sheet
from evaluation.statistics import known_mean
from pipelines.config import QuestionSet
from pipelines.records import EditRecord
from pipelines.work import questions_of
from pipelines.workspace import Workspace
from teacher.diversity import mean_distinct
from teacher.gates import edit_facts
from teacher.self_edit import SelfEdit

_SETS: tuple[QuestionSet, ...] = ("rewards", "comparison")


def edit_notes(ws: Workspace, edits: Sequence[EditRecord]) -> dict[str, float]:
    """Return what can be said about self-edits: length, validity, diversity, answers and questions that they hold.

    `distinct_1` and `distinct_2` are over the self-edits of a document (`teacher.diversity`); `answers` is the share of
    the gold answers that occur, `leaked_<set>` the share of the questions of that set that occur word by word, and
    `overlap_<set>` the share of their n-grams. In the micro-world `share_<kind>` is the share of each kind of line
    (`LineKind`), and `coverage` the share of a document's facts that some true line states, name first.
    """
    if not edits:
        return {}
    parsed = [edit for edit in edits if edit.edit is not None]
    lines = sum(len(edit.edit.implications) for edit in parsed if edit.edit is not None)
    notes = {
        "parsed": len(parsed) / len(edits),
        "lines": lines / len(edits),
        "tokens": sum(edit.tokens for edit in edits) / len(edits),
        **_diversity(parsed),
        **_leakage(ws, parsed),
    }
    if ws.sheets is not None and parsed:
        notes |= _line_shares(ws.sheets, parsed)
    return notes


def _diversity(edits: Sequence[EditRecord]) -> dict[str, float]:
    texts: dict[str, list[str]] = {}
    for edit in edits:
        texts.setdefault(edit.document_id, []).append(edit.text)
    found = {f"distinct_{n}": mean_distinct(texts, n) for n in (1, 2)}
    return {name: value for name, value in found.items() if value is not None}


def _leakage(ws: Workspace, edits: Sequence[EditRecord]) -> dict[str, float]:
    """Return the shares of gold answers, and of questions by set, that self-edits hold."""
    ngram = ws.config.teacher.gates.ngram
    found: dict[str, list[float | None]] = {}
    for edit in edits:
        task = ws.tasks[edit.document_id]
        for name in _SETS:
            asked = questions_of(task, name)
            facts = edit_facts(edit.edit or SelfEdit(), edit.tokens, task.document.text, asked, ngram=ngram)
            found.setdefault(f"leaked_{name}", []).append(facts.leaked_questions)
            found.setdefault(f"overlap_{name}", []).append(facts.ngram_overlap)
            if name == "rewards":
                found.setdefault("answers", []).append(facts.coverage)
    means = {name: known_mean(values) for name, values in found.items()}
    return {name: mean for name, mean in means.items() if mean is not None}


def _line_shares(sheets: dict[str, Sheet], edits: Sequence[EditRecord]) -> dict[str, float]:
    counts: Counter[LineKind] = Counter()
    coverage = []
    for edit in edits:
        sheet = sheets[edit.document_id]
        lines = [implication.line for implication in (edit.edit.implications if edit.edit else ())]
        classified = [classify_line(line, sheet) for line in lines]
        counts.update(line.kind for line in classified)
        told = {(c.name, c.attribute) for c in classified if c.kind in (LineKind.STATEMENT, LineKind.QUESTION)}
        coverage.append(len(told) / len(sheet.facts))
    total = max(1, counts.total())
    shares = {f"share_{kind.value}": counts[kind] / total for kind in LineKind}
    return {**shares, "coverage": sum(coverage) / len(coverage)}
