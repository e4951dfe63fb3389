"""What was known about the subjects of new documents: where documents with wrong facts show first.

A night of wrong facts about things that everybody knows moves few probes of general knowledge, which are about
everything. So the questions that are about the very same things are found and asked too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from evaluation.gate import PairedScore
from evaluation.tasks import KnowledgeTask, Question
from pipelines.nights.scoring import StudentScores
from student.external_memory import ExternalMemory, MemoryEntry

LEAST_SCORE = 1.5
"""From which on a document is about a question; see `student.external_memory.Hit.score`. Over nights of 2 to
12 micro-world documents, 95 % of the questions about their entities scored above 1.3 to 1.7, and 99.9 % of all others
below 1.36."""


class Touched(NamedTuple):
    """Questions about what the new documents are about."""

    earlier: tuple[tuple[str, int], ...]
    """Of earlier documents: id and place among the comparison's questions."""
    general: tuple[Question, ...]
    """On general knowledge."""
    owners: tuple[str, ...]
    """By question, those of `earlier` first: id of the new document that is about the same."""


def find_touched(
    new: Sequence[KnowledgeTask], earlier: Sequence[KnowledgeTask], general: Sequence[Question]
) -> Touched:
    """Return the questions that retrieval finds an answer to in the new documents.

    Args:
        new: Documents of the night.
        earlier: Documents of earlier nights whose questions still count.
        general: Questions on general knowledge, more than the probes.
    """
    memory = ExternalMemory(MemoryEntry(id=task.id, title=task.document.title, text=task.document.text) for task in new)

    def about(question: Question) -> str | None:
        hits = memory.search(question.question, 1, LEAST_SCORE)
        return hits[0].entry.id if hits else None

    told = [
        ((task.id, place), owner)
        for task in earlier
        for place, question in enumerate(task.comparison_questions)
        if (owner := about(question)) is not None
    ]
    known = [(question, owner) for question in general if (owner := about(question)) is not None]
    return Touched(
        tuple(place for place, _ in told),
        tuple(question for question, _ in known),
        tuple(owner for _, owner in (*told, *known)),
    )


def touched_scores(
    touched: Touched, candidate: StudentScores, champion: StudentScores, after: Sequence[bool], before: Sequence[bool]
) -> tuple[PairedScore, ...]:
    """Return what the gate sees of them.

    Args:
        touched: The questions.
        candidate: Scores of the night's student.
        champion: Of the one in use.
        after: Per question on general knowledge, whether the night's student answers it.
        before: The same of the student in use.
    """
    pairs = [
        (f"{name}/{place}", candidate.right[name][place], champion.right[name][place])
        for name, place in touched.earlier
    ]
    pairs += [(f"general {i}", mine, theirs) for i, (mine, theirs) in enumerate(zip(after, before, strict=True))]
    return tuple(
        PairedScore(document=name, candidate=float(mine), reference=float(theirs)) for name, mine, theirs in pairs
    )


def suspects(touched: Touched, scores: Sequence[PairedScore]) -> tuple[str, ...]:
    """Return the ids of the new documents that tell of known subjects of which the night's student knows no more.

    Who holds a night for what it made the student forget sets all of these aside: beside a wrong document that did
    harm there may be another one whose harm the next night would show.

    Args:
        touched: The questions.
        scores: What the gate saw of them, in their order.
    """
    change: dict[str, float] = {}
    for owner, score in zip(touched.owners, scores, strict=True):
        change[owner] = change.get(owner, 0.0) + score.candidate - score.reference
    return tuple(owner for owner, total in change.items() if total <= 0.0)
