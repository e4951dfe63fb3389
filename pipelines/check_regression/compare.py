"""Scores of a candidate and a baseline on a suite, side by side.

Students are scored in one bank, in one pass over the same questions. A variant is scored by the code of the comparison
of `train-teacher`, with the suite's documents, questions, student and seeds. A self-edit without a score counts only in
the number of those.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from evaluation.common.checkpoints import model_digest
from evaluation.common.errors import ScoringError
from evaluation.exact_match import AnswerScore, first_line
from evaluation.graders import GradeItem, Grader
from evaluation.statistics import known_mean
from evaluation.tasks import Question
from pipelines.check_regression.suite import (
    Pins,
    RegressionSuite,
    Subject,
    SuiteContent,
    check_pins,
    download,
    load_content,
    pins_of,
    resolve,
    settings_of,
    variant_digest,
)
from pipelines.check_regression.verdict import (
    MOST_LOST,
    EditsRecord,
    RegressionReport,
    Reply,
    Scores,
    SubjectRecord,
    compared_questions,
    find_verdict,
    lost_questions,
)
from pipelines.loop.loop import STATES, Loop
from pipelines.loop.reward import judge
from pipelines.loop.update import write_answers
from pipelines.models import ModelRef, answer_format, close_models, open_grader, open_student, student_digest
from pipelines.plan import Step
from pipelines.records import Candidate, ScoredUpdate
from pipelines.reports.console import Reporter
from pipelines.terminal import open_console
from student.adapters import load_adapter
from student.bank.bank import LoraBank
from student.bank.scoring import ScoringFailure
from teacher.policy import PolicyRecord
from teacher.rewards import RewardConfig, RewardFailure
from teacher.samplers.openai import OpenAISampling


def _score_students(
    suite: RegressionSuite, content: SuiteContent, subjects: Sequence[Subject], work_dir: Path
) -> list[Scores]:
    adapters = [None if each.directory is None else load_adapter(each.directory) for each in subjects]
    asked = [*(question for task in content.tasks for question in task.comparison_questions), *content.probes]
    ref = ModelRef.of(suite.student, suite)
    student, form = open_student(ref), answer_format(suite, ref)
    with LoraBank(student.model, base_digest=student_digest(ref)) as bank:
        found = bank.score(adapters, [asked] * len(adapters), student.tokenizer, form)
        texts: Sequence[list[str] | ScoringFailure] = [[]] * len(adapters)
        if suite.grading is not None:
            prompts, rank = [form.render(q.question) for q in asked], max((a.rank for a in adapters if a), default=1)
            texts = write_answers(ref, suite.grading, bank, adapters, [prompts] * len(adapters), rank)
    grader, scores = open_grader(suite.grading, work_dir, suite.name), []
    for subject, adapter, slot, written in zip(subjects, adapters, found, texts, strict=True):
        if isinstance(slot, ScoringFailure) or isinstance(written, ScoringFailure):
            reason = slot.reason if isinstance(slot, ScoringFailure) else getattr(written, "reason", "")
            raise ScoringError(
                f"subject {subject.text!r} cannot be scored: {reason}. Give an adapter that was trained on the "
                f"suite's student {suite.student!r}."
            )
        verdicts = iter([score.exact for score in slot] if grader is None else _graded(grader, asked, written))
        right = {task.id: [next(verdicts) for _ in task.comparison_questions] for task in content.tasks}
        answers, replies = iter(slot), _replies(slot, written, student.tokenizer)
        documents = {task.id: [next(answers) for _ in task.comparison_questions] for task in content.tasks}
        scores.append(
            Scores(
                documents={name: tuple(known_mean([each]) for each in mine) for name, mine in right.items()},
                probability={name: sum(s.probability for s in mine) / len(mine) for name, mine in documents.items()},
                probes={f"probe {i}": float(each) for i, each in enumerate(verdicts) if each is not None},
                empty=sum(score.empty for score in slot),
                answered=len(slot),
                replies={task.id: tuple(islice(replies, len(task.comparison_questions))) for task in content.tasks},
                adapter_digest=None if adapter is None else adapter.digest,
            )
        )
    return scores


def _replies(scores: Sequence[AnswerScore], texts: Sequence[str], tokenizer: Any) -> Iterator[Reply]:
    """Yield a student's replies; `texts` are its answers, and empty where exact match needs none."""
    said = tokenizer.batch_decode([score.written for score in scores], skip_special_tokens=True)
    begun = (text.strip() if score.exact else f"{text.strip()} ..." for score, text in zip(scores, said, strict=True))
    for score, text in zip(scores, map(first_line, texts) if texts else begun, strict=True):
        yield Reply(text, score.probability)


def _graded(grader: Grader, asked: Sequence[Question], texts: Sequence[str]) -> list[bool | None]:
    """Return a grader's verdicts on a student's answers; None where it gives none."""
    items = [GradeItem(q.question, q.answer, first_line(text)) for q, text in zip(asked, texts, strict=True)]
    return [grade.correct for grade in grader.grade(items)]


def score_variant(
    suite: RegressionSuite, content: SuiteContent, subject: Subject, work_dir: Path, reporter: Reporter
) -> Scores:
    """Return the scores of a variant.

    The work is stored by content in `work_dir`: a killed test resumes, and a baseline that was scored before with the
    same code is not scored again.
    """
    assert suite.adaptation is not None
    settings, text, each = settings_of(suite, subject), subject.text, suite.adaptation.edits
    sample = Step("sample", len(content.tasks), each)
    update = Step("update", len(content.tasks), each, questions="comparison")
    if subject.directory is not None:
        teacher_config = settings.teacher.model_copy(update={"policy": PolicyRecord.read(subject.directory).config})
        settings = settings.model_copy(update={"teacher": teacher_config})
    with Loop(settings, work_dir, content.tasks, content.probes, reporter) as loop:
        loop.check_endpoints()
        state, teacher = _open_teacher(suite, subject, loop)
        with reporter.step(sample, text):
            seed = loop.seed("sample", "comparison")
            sampling = loop.sample(state, settings.teacher.prompt, content.tasks, n=each, seed=seed)
        with reporter.step(update, text):
            updates = loop.update(loop.trials(sampling.edits, "comparison"), "comparison")
    candidates = judge(sampling.edits, RewardConfig(metric="probability"), updates=updates)
    reasons = Counter(c.reason.value for c in candidates if c.reason is not None)
    reasons[RewardFailure.PROMPT_TOO_LONG.value] += sample.total - len(candidates)  # those that were not sampled
    edits = EditsRecord(
        digest=variant_digest(settings, teacher), written=sample.total, unscored=dict(sorted((+reasons).items()))
    )
    return variant_scores(candidates, edits, None if state is None else teacher)


def _open_teacher(suite: RegressionSuite, subject: Subject, loop: Loop) -> tuple[str | None, str | None]:
    """Return the name of the teacher's state, and the SHA-256 of its weights; None is the base, and an endpoint."""
    if not loop.learns_here:
        return None, None
    policy = loop.open_teacher.policy
    if subject.config is None and suite.pins is not None:
        check_pins(suite, suite.pins.model_copy(update={"teacher": policy.base_digest}))
    if subject.directory is None:
        return None, policy.base_digest
    loop.open_teacher.at(subject.directory)
    return loop.open_teacher.keep(loop.work_dir / STATES).name, policy.digest


def variant_scores(candidates: Sequence[Candidate], edits: EditsRecord, adapter_digest: str | None = None) -> Scores:
    """Return the scores of a variant from its self-edits, averaged over the updates of a document."""
    scored: dict[str, list[ScoredUpdate]] = {}
    for candidate in candidates:
        if candidate.reward is not None:
            scored.setdefault(candidate.edit.document_id, []).extend(candidate.replicates)
    every = [update for updates in scored.values() for update in updates]
    return Scores(
        documents={
            name: tuple(known_mean(right) for right in zip(*(u.verdicts for u in updates), strict=True))
            for name, updates in scored.items()
        },
        probability={
            name: sum(sum(u.probability) / len(u.probability) for u in updates) / len(updates)
            for name, updates in scored.items()
        },
        probes={
            name: sum(sum(u.retained) / len(u.retained) for u in updates) / len(updates)
            for name, updates in scored.items()
            if updates[0].retained
        },
        empty=sum(update.empty for update in every),
        answered=sum(len(update.exact) for update in every),
        replies={
            name: tuple(
                Reply("", sum(each) / len(each)) for each in zip(*(u.probability for u in updates), strict=True)
            )
            for name, updates in scored.items()
        },
        adapter_digest=adapter_digest,
        edits=edits,
    )


def current_pins(suite: RegressionSuite, content: SuiteContent) -> Pins:
    """Return the pins of a suite as it is now, its teacher's base opened too."""
    teacher, adaptation = None, suite.adaptation
    if adaptation is not None and not isinstance(adaptation.teacher.sampling, OpenAISampling):
        teacher = model_digest(ModelRef.of(adaptation.teacher.model, suite).load().model)
    return pins_of(suite, content, student_digest(ModelRef.of(suite.student, suite)), teacher)


def compare_subjects(suite: RegressionSuite, candidate: str, baseline: str, work_dir: Path) -> RegressionReport:
    """Return the report on two subjects (`parse_subject`); nothing is written to files or logged yet.

    The work on variants is stored in `work_dir`.

    Raises:
        ConfigError: A subject is invalid, the two are not comparable, or the suite is not pinned.
        InputError: The data were refused, or are not what was pinned.
    """
    started = time.perf_counter()
    subjects = resolve(suite, candidate, baseline, work_dir)
    content = load_content(suite)
    try:
        check_pins(suite, pins_of(suite, content, student_digest(ModelRef.of(suite.student, suite))))
        with TemporaryDirectory(prefix="preceptor-regression-") as scratch:
            both = [download(subject, suite.tracking, work_dir, Path(scratch)) for subject in subjects]
            if both[0].is_variant:
                with Reporter(open_console(stderr=True), 4) as reporter:  # each samples, then updates the student
                    mine, theirs = (score_variant(suite, content, each, work_dir, reporter) for each in both)
            else:
                mine, theirs = _score_students(suite, content, both, work_dir)
    finally:
        close_models()
    names = [task.id for task in content.tasks]
    found = find_verdict(names, mine, theirs, suite.groups, suite.limits)
    answers = compared_questions([task for task in content.tasks if task.id in found.compared], mine, theirs)
    lost = lost_questions(answers)
    return RegressionReport(
        suite=suite.name,
        suite_digest=suite.digest,
        outcome=found.outcome,
        candidate=_record(both[0], mine, found.compared, theirs.probes),
        baseline=_record(both[1], theirs, found.compared, mine.probes),
        checks=found.checks,
        limits=suite.limits,
        minimum_detectable=found.minimum_detectable,
        documents=len(names),
        left_out=tuple(name for name in names if name not in found.compared),
        questions=sum(len(mine.documents[name]) for name in found.compared),
        answers=answers,
        lost=lost[:MOST_LOST],
        lost_count=len(lost),
        seconds=time.perf_counter() - started,
    )


def _record(subject: Subject, scores: Scores, documents: Sequence[str], probes: Collection[str]) -> SubjectRecord:
    """Return the means over the documents, and over the probes that the other subject was asked too."""
    return SubjectRecord(
        subject=subject.text,
        adapter_digest=scores.adapter_digest,
        version=subject.version if isinstance(subject.version, int) else None,
        accuracy=known_mean(known_mean(scores.documents[name]) for name in documents),
        probability=known_mean(scores.probability[name] for name in documents),
        probes=known_mean(share for name, share in scores.probes.items() if name in probes),
        edits=scores.edits,
    )
