"""Scores of a student as it answers in use: from its weights, and where its memory has something, from that."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from evaluation.answers import AnswerFormat
from evaluation.errors import ScoringError
from evaluation.gate import GateEvidence, PairedScore
from evaluation.tasks import KnowledgeTask, Question
from pipelines.asking import Answerer
from pipelines.nights.config import NightConfig
from pipelines.records import Record
from pipelines.work import bank_of
from pipelines.workspace import Workspace
from student.adapters import Adapter
from student.external_memory import ExternalMemory
from student.scoring import ScoringFailure

GENERAL = "general knowledge"
"""Name of the one set of retention probes."""


class StudentScores(Record):
    """What a student answers right."""

    right: dict[str, tuple[bool, ...]]
    """By document id: each of the comparison's questions."""
    from_memory: dict[str, int]
    """By document id: questions that were answered with passages."""
    probes: tuple[bool, ...]
    """Retention probes, in their order."""
    empty: int
    """Answers that say nothing, probes included."""
    answered: int
    """Answers that were looked at."""
    seconds: float = 0.0

    def with_probes(self, count: int) -> StudentScores:
        """Return the scores with the first probes alone."""
        return self.model_copy(update={"probes": self.probes[:count]})

    def accuracy(self, ids: Sequence[str]) -> float | None:
        """Return the share of right answers over some documents, each counting the same; None without any."""
        known = [sum(self.right[name]) / len(self.right[name]) for name in ids if self.right.get(name)]
        return sum(known) / len(known) if known else None


class _Asked(NamedTuple):
    owner: str
    question: Question
    """With the passages in front, ready to be read as it is."""
    adapted: bool
    looked_up: bool


def score_student(
    ws: Workspace,
    adapter: Adapter | None,
    memory: ExternalMemory,
    tasks: Sequence[KnowledgeTask],
    probes: Sequence[Question],
    config: NightConfig,
) -> StudentScores:
    """Return what a student answers right, asked as `preceptor ask` asks it; exact match by one forced pass.

    Args:
        ws: The night's workspace.
        adapter: Of the student; None is the base.
        memory: Of the student.
        tasks: Whose comparison questions are asked.
        probes: Retention probes, asked of the same student in the same way.
        config: Of the night.

    Raises:
        ScoringError: The student cannot be scored.
    """
    started = time.perf_counter()
    answerer = Answerer(ws.student, adapter, memory, config.asking())
    known = [(task.id, question) for task in tasks for question in task.comparison_questions]
    asked = [_asked(answerer, owner, question) for owner, question in (*known, *(("", probe) for probe in probes))]
    # The wrapper is around each question already.
    plain = AnswerFormat(prompt="{question}", joiner=config.student.answer_format.joiner)
    exact: dict[int, bool] = {}
    empty = 0
    with bank_of(ws, config.update) as bank:
        for adapted in (False, True):
            mine = [i for i, each in enumerate(asked) if each.adapted is adapted]
            questions = [asked[i].question for i in mine]
            found = bank.score([adapter if adapted else None], [questions], ws.student.tokenizer, plain)[0]
            if isinstance(found, ScoringFailure):
                raise ScoringError(f"night: the student cannot be scored: {found.reason}")
            exact |= {i: score.exact for i, score in zip(mine, found, strict=True)}
            empty += sum(score.empty for score in found)
    right: dict[str, list[bool]] = {task.id: [] for task in tasks}
    looked_up = dict.fromkeys(right, 0)
    for i, each in enumerate(asked[: len(known)]):
        right[each.owner].append(exact[i])
        looked_up[each.owner] += each.looked_up
    return StudentScores(
        right={name: tuple(values) for name, values in right.items()},
        from_memory=looked_up,
        probes=tuple(exact[i] for i in range(len(known), len(asked))),
        empty=empty,
        answered=len(asked),
        seconds=time.perf_counter() - started,
    )


def _asked(answerer: Answerer, owner: str, question: Question) -> _Asked:
    prompt = answerer.prompt_for(question.question)
    whole = question.model_copy(update={"question": prompt.text})
    return _Asked(owner, whole, prompt.adapted, bool(prompt.sources))


def evidence_of(
    candidate: StudentScores,
    champion: StudentScores,
    baseline: Sequence[bool],
    new: Sequence[str],
    earlier: Mapping[str, Sequence[str]],
    canaries: Mapping[str, str | None],
    touched: tuple[PairedScore, ...] = (),
) -> GateEvidence:
    """Return what the gate looks at.

    New and earlier documents are all there are, no sample of others: what a student knows of them is uncertain by the
    choice of questions alone, so that each question counts on its own. Probes stand for more than themselves.

    Args:
        candidate: Scores of the night's student.
        champion: Of the one that it was made from, on the same questions.
        baseline: Per probe, whether the base student answers it: frozen, whoever is champion.
        new: Ids of the night's documents.
        earlier: By night, ids of earlier documents whose questions still count.
        canaries: By name, why one failed, or None.
        touched: Questions on what was known about the subjects of the new documents.
    """
    names = [*new, *(name for group in earlier.values() for name in group)]
    return GateEvidence(
        new=tuple(score for name in new for score in _pairs(name, candidate, champion)),
        earlier={
            night: tuple(score for name in group for score in _pairs(name, candidate, champion))
            for night, group in earlier.items()
        },
        probes={
            GENERAL: tuple(
                PairedScore(document=f"probe {i}", candidate=float(mine), reference=float(base))
                for i, (mine, base) in enumerate(zip(candidate.probes, baseline, strict=True))
            )
        }
        if baseline
        else {},
        touched=touched,
        collapsed=candidate.empty,
        answered=candidate.answered,
        canaries=dict(canaries),
        unscored=tuple(name for name in names if not candidate.right.get(name) or not champion.right.get(name)),
    )


def _pairs(name: str, candidate: StudentScores, champion: StudentScores) -> list[PairedScore]:
    pairs = zip(candidate.right.get(name, ()), champion.right.get(name, ()), strict=True)
    return [
        PairedScore(document=f"{name}/{i}", candidate=float(mine), reference=float(theirs))
        for i, (mine, theirs) in enumerate(pairs)
    ]
