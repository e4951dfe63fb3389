"""Scores of both students of a regression test, in one bank: the same pass over the same questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from evaluation.errors import ScoringError
from evaluation.gate import PairedScore
from pipelines.records import Record
from pipelines.regression.pins import Pins, pins_of
from pipelines.regression.suite import RegressionSuite, SuiteContent
from pipelines.regression.verdict import Compared

if TYPE_CHECKING:
    from evaluation.checkpoints import Checkpoint
    from student.adapters import Adapter
    from student.lora_bank import LoraBank


class QuestionScore(Record):
    """How a student answered one question."""

    exact: bool
    """Greedy decoding writes the gold answer."""
    probability: float
    """Of the gold answer, in [0, 1]."""
    empty: bool
    """It says nothing."""


class StudentScores(Record):
    """How a student answered the suite."""

    documents: dict[str, tuple[QuestionScore, ...]]
    """Document id -> one score for each question."""
    probes: tuple[QuestionScore, ...]

    @property
    def accuracy(self) -> float:
        """Mean over documents of the share of right answers, in [0, 1]."""
        shares = [sum(score.exact for score in scores) / len(scores) for scores in self.documents.values()]
        return sum(shares) / len(shares)

    @property
    def probability(self) -> float:
        """Mean over documents of the mean probability of the gold answers, in [0, 1]."""
        means = [sum(score.probability for score in scores) / len(scores) for scores in self.documents.values()]
        return sum(means) / len(means)

    @property
    def answers(self) -> tuple[QuestionScore, ...]:
        """All answers, those to probes last."""
        return (*(score for scores in self.documents.values() for score in scores), *self.probes)


class OpenStudent(NamedTuple):
    """The frozen base of a suite."""

    checkpoint: Checkpoint
    digest: str
    """`model_digest` of it."""

    def pins(self, content: SuiteContent, teacher: str | None = None) -> Pins:
        """Return the digests of what is asked, of this student and, where it is given, of the suite's teacher."""
        return pins_of(content, self.digest, teacher)


def open_student(suite: RegressionSuite) -> OpenStudent:
    """Return the suite's student, its digest computed.

    Raises:
        ModelError: The checkpoint cannot be opened.
    """
    from evaluation.checkpoints import model_digest

    checkpoint = _open(suite, suite.student)
    return OpenStudent(checkpoint, model_digest(checkpoint.model))


def teacher_digest(suite: RegressionSuite) -> str | None:
    """Return `model_digest` of the base of the suite's teachers; None without one, and for one behind an endpoint.

    Raises:
        ModelError: The checkpoint cannot be opened.
    """
    from evaluation.checkpoints import model_digest
    from teacher.config import OpenAISampling

    adaptation = suite.adaptation
    if adaptation is None or isinstance(adaptation.teacher.sampling, OpenAISampling):
        return None
    return model_digest(_open(suite, adaptation.teacher.model).model)


def _open(suite: RegressionSuite, name: str) -> Checkpoint:
    import torch

    from evaluation.checkpoints import load_checkpoint

    if suite.threads is not None:
        torch.set_num_threads(suite.threads)
    return load_checkpoint(name, device=suite.device, dtype=getattr(torch, suite.dtype))


@contextmanager
def open_bank(student: OpenStudent) -> Iterator[LoraBank]:
    """Yield a bank on the student, with all of its layers."""
    from student.lora_bank import LoraBank

    with LoraBank(student.checkpoint.model, base_digest=student.digest) as bank:
        yield bank


def score_students(
    suite: RegressionSuite,
    content: SuiteContent,
    student: OpenStudent,
    adapters: Sequence[Adapter | None],
    names: Sequence[str],
) -> list[StudentScores]:
    """Return the scores of K students.

    Args:
        suite: Gives the answer format.
        content: What is asked.
        student: The frozen base.
        adapters: K adapters; None asks the base.
        names: K names, for messages.

    Raises:
        ScoringError: A student cannot be scored.
    """
    from student.scoring import ScoringFailure

    asked = [*(question for task in content.tasks for question in content.questions[task.id]), *content.probes]
    with open_bank(student) as bank:
        found = bank.score(adapters, [asked] * len(adapters), student.checkpoint.tokenizer, suite.answer_format)
    scores = []
    for name, slot in zip(names, found, strict=True):
        if isinstance(slot, ScoringFailure):
            raise ScoringError(
                f"subject {name!r} cannot be scored: {slot.reason}. Give an adapter that was trained on the suite's "
                f"student {suite.student!r}."
            )
        answers = iter([QuestionScore(exact=s.exact, probability=s.probability, empty=s.empty) for s in slot])
        documents = {task.id: tuple(next(answers) for _ in content.questions[task.id]) for task in content.tasks}
        scores.append(StudentScores(documents=documents, probes=tuple(answers)))
    return scores


def paired(candidate: StudentScores, baseline: StudentScores) -> Compared:
    """Return the scores of two students on the same suite, side by side."""

    def pairs(name: str, of: Sequence[QuestionScore], than: Sequence[QuestionScore]) -> list[PairedScore]:
        return [PairedScore(document=name, candidate=a.exact, reference=b.exact) for a, b in zip(of, than, strict=True)]

    documents = [
        pair for name, answers in candidate.documents.items() for pair in pairs(name, answers, baseline.documents[name])
    ]
    probes = [
        pair
        for i, (a, b) in enumerate(zip(candidate.probes, baseline.probes, strict=True))
        for pair in pairs(f"probe {i}", [a], [b])
    ]
    collapsed = (sum(s.empty for s in candidate.answers), sum(s.empty for s in baseline.answers))
    return Compared(tuple(documents), tuple(probes), collapsed, (len(candidate.answers), len(baseline.answers)))
