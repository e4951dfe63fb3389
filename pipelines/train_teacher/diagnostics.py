"""Measures of self-edits without training on them: length, diversity, leakage, and the kinds of lines where known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from evaluation.microworld.texts import LineKind, classify_line
from evaluation.microworld.world import Sheet
from evaluation.statistics import known_mean
from evaluation.tasks import KnowledgeTask
from pipelines.loop.update import questions_of
from pipelines.records import Edit
from pipelines.settings import QuestionSet
from teacher.filters import EditFacts, edit_facts, mean_distinct
from teacher.self_edit import SelfEdit

_SETS: tuple[QuestionSet, ...] = ("rewards", "comparison")


class Diagnostics(NamedTuple):
    """What self-edits are measured against."""

    tasks: Mapping[str, KnowledgeTask]
    """By id."""
    sheets: Mapping[str, Sheet] | None
    """The fact tables behind the documents, by id; None outside the micro-world."""

    def facts(self, edit: Edit, questions: QuestionSet) -> EditFacts:
        """Return the measures of one self-edit against a set of questions."""
        task = self.tasks[edit.document_id]
        asked = questions_of(task, questions)
        return edit_facts(edit.edit or SelfEdit(), edit.tokens, task.document.text, asked)

    def of(self, edits: Sequence[Edit]) -> dict[str, float]:
        """Return the mean measures of some self-edits.

        `distinct_1` and `distinct_2` are over the self-edits of a document; `answers` is the share of the gold answers
        that occur, `leaked_<set>` the share of the questions of that set that occur word by word, and `overlap_<set>`
        the share of their n-grams. In the micro-world `share_<kind>` is the share of each kind of line (`LineKind`),
        and `coverage` the share of a document's facts that some true line states, name first.
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
            **self._leakage(parsed),
        }
        return notes | (_line_shares(self.sheets, parsed) if self.sheets is not None and parsed else {})

    def _leakage(self, edits: Sequence[Edit]) -> dict[str, float]:
        """Return the shares of gold answers, and of questions by set, that self-edits contain."""
        found: dict[str, list[float | None]] = {}
        for edit in edits:
            for name in _SETS:
                facts = self.facts(edit, name)
                found.setdefault(f"leaked_{name}", []).append(facts.leaked_questions)
                found.setdefault(f"overlap_{name}", []).append(facts.ngram_overlap)
                if name == "rewards":
                    found.setdefault("answers", []).append(facts.coverage)
        means = {name: known_mean(values) for name, values in found.items()}
        return {name: mean for name, mean in means.items() if mean is not None}


def _diversity(edits: Sequence[Edit]) -> dict[str, float]:
    texts: dict[str, list[str]] = {}
    for edit in edits:
        texts.setdefault(edit.document_id, []).append(edit.text)
    found = {f"distinct_{n}": mean_distinct(texts, n) for n in (1, 2)}
    return {name: value for name, value in found.items() if value is not None}


def _line_shares(sheets: Mapping[str, Sheet], edits: Sequence[Edit]) -> dict[str, float]:
    counts: Counter[LineKind] = Counter()
    coverage = []
    for edit in edits:
        sheet = sheets[edit.document_id]
        lines = [implication.line for implication in (edit.edit.implications if edit.edit else ())]
        classified = [classify_line(line, sheet) for line in lines]
        counts.update(line.kind for line in classified)
        stated = {(c.name, c.attribute) for c in classified if c.kind in (LineKind.STATEMENT, LineKind.QUESTION)}
        coverage.append(len(stated) / len(sheet.facts))
    total = max(1, counts.total())
    shares = {f"share_{kind.value}": counts[kind] / total for kind in LineKind}
    return {**shares, "coverage": sum(coverage) / len(coverage)}
