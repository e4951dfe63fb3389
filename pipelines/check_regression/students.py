"""Scores of any number of students on a suite: those on one model in one bank, in one pass over the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress, islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from evaluation.common.errors import ScoringError
from evaluation.exact_match import AnswerScore, begun_text, first_line
from evaluation.graders import ExactGrading, GradeItem, Grader
from evaluation.statistics import known_mean, known_means
from evaluation.tasks import Question
from pipelines.check_regression.suite import RegressionSuite, Subject, SuiteContent
from pipelines.check_regression.verdict import Reply, Scores
from pipelines.loop.update import write_answers
from pipelines.models import ModelRef, answer_format, open_endpoint, open_grader, open_student, student_digest
from pipelines.settings import GradingConfig
from student.adapters import load_adapter
from student.bank.bank import LoraBank
from student.bank.scoring import ScoringFailure
from teacher.samplers.openai import OpenAISampler, OpenAISampling
from teacher.samplers.sampler import FailedCompletion

_Part = TypeVar("_Part", AnswerScore, str)
_Found = tuple[list[AnswerScore] | None, list[str | None], str | None]
"""Scores, texts and the digest of the adapter, as far as a student has any."""
_BY_TEXT = GradingConfig(grader=ExactGrading())
"""How answers are written that no suite's `grading` is about."""


class StudentAnswers(NamedTuple):
    """A student's answers to the questions on a suite's documents, in their order."""

    scores: Scores
    right: tuple[bool | None, ...]
    """None without a verdict of the grader."""
    probability: tuple[float | None, ...]
    """Of the gold answer, in [0, 1]; None where an endpoint answers, which does not say."""
    texts: tuple[str, ...]
    """What it writes; where neither a grader nor the caller asked for it, how that begins (`Reply.text`)."""


def by_model(suite: RegressionSuite, subjects: Sequence[Subject]) -> dict[ModelRef | None, list[int]]:
    """Return the places of students by the model that they are adapters of; those at endpoints are under None."""
    found: dict[ModelRef | None, list[int]] = {}
    for place, subject in enumerate(subjects):
        ref = ModelRef.of(suite.student if subject.model is None else str(subject.model), suite)
        found.setdefault(None if subject.endpoint is not None else ref, []).append(place)
    return found


def check_students(suite: RegressionSuite, subjects: Sequence[Subject], work_dir: Path) -> None:
    """Refuse students that cannot be opened or reached, before anything is scored; errors as of `score_students`."""
    for ref, places in by_model(suite, subjects).items():
        mine = [subjects[place] for place in places]
        if ref is None:
            for subject in mine:
                _endpoint_of(suite, subject, work_dir).check()
        else:
            _ask_bank(suite, ref, mine, [], None, texts=False)


def score_students(
    suite: RegressionSuite, content: SuiteContent, subjects: Sequence[Subject], work_dir: Path, *, texts: bool = False
) -> list[StudentAnswers]:
    """Return the answers of students, those on one model in one bank, in one pass over the same questions.

    All are asked in the form of the suite's student. Where an endpoint is among them and the suite has no grader, all
    are graded by their text, so that the same rule holds for each. `texts` asks for texts although no grader needs any.

    Raises:
        ModelError: A model or adapter cannot be opened.
        ScoringError: An adapter does not fit the suite's student, or a student has no scores.
        BudgetError, EndpointError: An endpoint cannot be asked; its replies so far are stored.
    """
    asked = [*(question for task in content.tasks for question in task.comparison_questions), *content.probes]
    grading = grading_of(suite, subjects)
    found: dict[int, _Found] = {}
    for ref, places in by_model(suite, subjects).items():
        mine = [subjects[place] for place in places]
        if ref is None:
            answered = [_ask_endpoint(suite, subject, asked, work_dir) for subject in mine]
        else:
            answered = _ask_bank(suite, ref, mine, asked, grading, texts=texts)
        found |= zip(places, answered, strict=True)
    grader = open_grader(grading, work_dir, suite.name)
    return [_student_answers(content, asked, *found[place], grader) for place in range(len(subjects))]


def grading_of(suite: RegressionSuite, subjects: Sequence[Subject]) -> GradingConfig | None:
    """Return how the students' texts are graded; None where exact match decides without any."""
    remote = any(subject.endpoint is not None for subject in subjects)
    return suite.grading or (_BY_TEXT if remote else None)


def _ask_bank(
    suite: RegressionSuite,
    ref: ModelRef,
    subjects: Sequence[Subject],
    asked: Sequence[Question],
    grading: GradingConfig | None,
    *,
    texts: bool,
) -> list[_Found]:
    """Return the scores of the students on one model; of texts that nobody grades, gold answers are not written."""
    adapters = [None if each.directory is None else load_adapter(each.directory) for each in subjects]
    student, form = open_student(ref), answer_format(suite, ModelRef.of(suite.student, suite))
    with LoraBank(student.model, base_digest=student_digest(ref)) as bank:
        scores = _whole(suite, subjects, bank.score(adapters, [asked] * len(adapters), student.tokenizer, form))
        needed = [[grading is not None or (texts and not each.exact) for each in mine] for mine in scores]
        prompts = [[form.render(q.question) for q in compress(asked, mine)] for mine in needed]
        written: Sequence[list[str] | ScoringFailure] = [[] for _ in adapters]
        if any(prompts):
            rank = max((a.rank for a in adapters if a), default=1)
            written = write_answers(ref, grading or _BY_TEXT, bank, adapters, prompts, rank)
    answered: list[_Found] = []
    each = zip(subjects, adapters, scores, needed, _whole(suite, subjects, written), strict=True)
    for subject, adapter, mine, asked_for, its in each:
        rest = iter(its)
        said: list[str | None] = [next(rest) if new else q.answer for q, new in zip(asked, asked_for, strict=True)]
        begun: list[str | None] = [begun_text(student.tokenizer, score) for score in mine]
        digest = student_digest(ref) if subject.model is not None else None if adapter is None else adapter.digest
        answered.append((mine, said if texts or grading is not None else begun, digest))
    return answered


def _whole(
    suite: RegressionSuite, subjects: Sequence[Subject], slots: Sequence[list[_Part] | ScoringFailure]
) -> list[list[_Part]]:
    """Return what was found for each student; raises ScoringError for the first failure."""
    found = []
    for subject, slot in zip(subjects, slots, strict=True):
        if isinstance(slot, ScoringFailure):
            raise ScoringError(
                f"subject {subject.text!r} cannot be scored: {slot.reason}. Give an adapter that was trained on the "
                f"suite's student {suite.student!r}."
            )
        found.append(slot)
    return found


def _endpoint_of(suite: RegressionSuite, subject: Subject, work_dir: Path) -> OpenAISampler:
    assert subject.endpoint is not None
    most = (suite.grading or _BY_TEXT).max_new_tokens
    sampling = OpenAISampling(type="openai", endpoint=subject.endpoint, temperature=0.0, max_new_tokens=most)
    return open_endpoint(sampling, work_dir, f"{suite.name}/student")


def _ask_endpoint(suite: RegressionSuite, subject: Subject, asked: Sequence[Question], work_dir: Path) -> _Found:
    """Return an endpoint's texts, None where it failed; a chat gets the question alone, for a form of its own."""
    chat = subject.endpoint is not None and subject.endpoint.api == "chat"
    form = answer_format(suite, ModelRef.of(suite.student, suite))
    prompts = [question.question if chat else form.render(question.question) for question in asked]
    replies = [mine[0] for mine in _endpoint_of(suite, subject, work_dir).sample(prompts, n=1, seed=suite.seed)]
    failed = [reply for reply in replies if isinstance(reply, FailedCompletion)]
    if len(failed) == len(replies):
        raise ScoringError(f"subject {subject.text!r} answers no question: {failed[0].detail}. Ask it by hand first.")
    return None, [None if isinstance(reply, FailedCompletion) else reply.text for reply in replies], None


def _student_answers(
    content: SuiteContent,
    asked: Sequence[Question],
    scored: list[AnswerScore] | None,
    texts: list[str | None],
    digest: str | None,
    grader: Grader | None,
) -> StudentAnswers:
    if grader is None:
        verdicts: list[bool | None] = [score.exact for score in scored or ()]
    else:
        given = [(q, text) for q, text in zip(asked, texts, strict=True) if text is not None]
        grades = iter(grader.grade([GradeItem(q.question, q.answer, first_line(text)) for q, text in given]))
        verdicts = [None if text is None else next(grades).correct for text in texts]
    chances: list[float | None] = [score.probability for score in scored] if scored else [None] * len(asked)
    empty = [score.empty for score in scored] if scored else [not text for text in texts]
    counts = {task.id: len(task.comparison_questions) for task in content.tasks}
    right, chance, about = iter(verdicts), iter(chances), slice(sum(counts.values()))  # the others are probes
    said = tuple("(no answer)" if text is None else first_line(text) for text in texts[about])
    replies = map(Reply, said, chances)
    scores = Scores(
        documents={name: tuple(known_mean([next(right)]) for _ in range(count)) for name, count in counts.items()},
        probability=known_means({name: [next(chance) for _ in range(count)] for name, count in counts.items()}),
        probes={f"probe {i}": float(each) for i, each in enumerate(right) if each is not None},
        empty=sum(empty),
        answered=len(empty),
        replies={name: tuple(islice(replies, count)) for name, count in counts.items()},
        adapter_digest=digest,
    )
    return StudentAnswers(scores, tuple(verdicts[about]), tuple(chances[about]), said)
