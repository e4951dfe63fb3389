"""Scores of a candidate and a baseline on a suite, side by side.

Students are scored in one bank, in one pass over the same questions. A variant is scored by the code of the comparison
of `train-teacher`, with the suite's documents, questions, student and seeds. A self-edit without a score counts only in
the number of those.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pydantic import Field

from evaluation.common.errors import ScoringError
from evaluation.gate.checks import PairedScore
from evaluation.statistics import known_mean
from pipelines.check_regression.reports import EditsRecord, RegressionReport, SubjectRecord
from pipelines.check_regression.subjects import Subject, download, resolve, settings_of, variant_digest
from pipelines.check_regression.suite import (
    Pins,
    RegressionSuite,
    SuiteContent,
    check_pins,
    load_content,
    pins_of,
)
from pipelines.check_regression.verdict import Compared, Unscored, find_verdict
from pipelines.models import ModelRef, answer_format, close_models, open_student, student_digest
from pipelines.plan import Step
from pipelines.records import Candidate, Record, ScoredUpdate, by_edit
from teacher.rewards import RewardConfig, RewardFailure

if TYPE_CHECKING:
    from evaluation.exact_match import AnswerScore
    from pipelines.loop.loop import Loop
    from pipelines.reports.console import Reporter


class Scores(Record):
    """Scores of a student, or of a variant whose documents each have adapters of their own."""

    documents: dict[str, tuple[float, ...]]
    """Document id -> for each question, the share of updates after which it is answered correctly, in [0, 1]; of a
    student 0 or 1. Documents without any score are missing."""
    probability: dict[str, float]
    """Document id -> mean probability of the gold answers, in [0, 1]."""
    probes: dict[str, float] = Field(default_factory=dict)
    """Of a student, probe -> 1 or 0; of a variant, document id -> share of the probes answered after its updates."""
    empty: int
    """Empty answers, a student's to probes included."""
    answered: int
    """Answers, a student's to probes included."""
    adapter_digest: str | None = None
    """SHA-256 of the student's adapter, or of the teacher's policy; None for a base."""
    edits: EditsRecord | None = None
    """None for a student."""

    def record(self, subject: Subject, documents: Sequence[str], probes: Sequence[str]) -> SubjectRecord:
        """Return the means over some documents and over some keys of `probes`."""
        right = {name: known_mean(shares) for name, shares in self.documents.items()}
        return SubjectRecord(
            subject=subject.text,
            adapter_digest=self.adapter_digest,
            version=subject.version if isinstance(subject.version, int) else None,
            accuracy=known_mean(right[name] for name in documents),
            probability=known_mean(self.probability[name] for name in documents),
            probes=known_mean(self.probes[name] for name in probes),
            edits=self.edits,
        )


def suite_student(suite: RegressionSuite) -> ModelRef:
    """Return the suite's student."""
    return ModelRef(suite.student, suite.device, suite.dtype, suite.threads)


def _score_students(
    suite: RegressionSuite, content: SuiteContent, subjects: Sequence[Subject], _: Path
) -> list[Scores]:
    """Return the scores of two students."""
    from student.adapters import load_adapter
    from student.bank.bank import LoraBank
    from student.bank.scoring import ScoringFailure

    adapters = [None if each.directory is None else load_adapter(each.directory) for each in subjects]
    asked = [*(question for task in content.tasks for question in task.comparison_questions), *content.probes]
    student = open_student(suite_student(suite))
    with LoraBank(student.model, base_digest=student_digest(suite_student(suite))) as bank:
        form = answer_format(suite, suite_student(suite))
        found = bank.score(adapters, [asked] * len(adapters), student.tokenizer, form)
    scores = []
    for subject, adapter, slot in zip(subjects, adapters, found, strict=True):
        if isinstance(slot, ScoringFailure):
            raise ScoringError(
                f"subject {subject.text!r} cannot be scored: {slot.reason}. Give an adapter that was trained on the "
                f"suite's student {suite.student!r}."
            )
        scores.append(_student_scores(content, slot, None if adapter is None else adapter.digest))
    return scores


def _student_scores(content: SuiteContent, slot: Sequence[AnswerScore], adapter_digest: str | None) -> Scores:
    """Return a student's scores from its answers to all questions, then to all probes."""
    answers = iter(slot)
    documents = {task.id: [next(answers) for _ in task.comparison_questions] for task in content.tasks}
    return Scores(
        documents={name: tuple(float(score.exact) for score in mine) for name, mine in documents.items()},
        probability={name: sum(s.probability for s in mine) / len(mine) for name, mine in documents.items()},
        probes={f"probe {i}": float(score.exact) for i, score in enumerate(answers)},
        empty=sum(score.empty for score in slot),
        answered=len(slot),
        adapter_digest=adapter_digest,
    )


def score_variant(
    suite: RegressionSuite, content: SuiteContent, subject: Subject, work_dir: Path, reporter: Reporter
) -> Scores:
    """Return the scores of a variant.

    The work is stored by content in `work_dir`: a killed test resumes, and a baseline that was scored before with the
    same code is not scored again.
    """
    from pipelines.loop.loop import Loop
    from pipelines.loop.reward import judge
    from teacher.policy import PolicyRecord

    settings, text, steps = settings_of(suite, subject), subject.text, _steps(suite, content)
    if subject.directory is not None:
        teacher_config = settings.teacher.model_copy(update={"policy": PolicyRecord.read(subject.directory).config})
        settings = settings.model_copy(update={"teacher": teacher_config})
    with Loop(settings, work_dir, content.tasks, content.probes, reporter) as loop:
        loop.check_endpoints()
        state, teacher = _open_teacher(suite, subject, loop)
        with reporter.step(steps[0], text):
            seed = loop.seed("sample", "comparison")
            sampling = loop.sample(state, settings.teacher.prompt, content.tasks, n=steps[0].each, seed=seed)
        with reporter.step(steps[1], text):
            updates = loop.update(loop.trials(sampling.edits, "comparison"), "comparison")
    candidates = judge(sampling, RewardConfig(metric="probability"), updates=by_edit(updates.replicates))
    reasons = Counter(c.reason.value for c in candidates if c.reason is not None)
    reasons[RewardFailure.PROMPT_TOO_LONG.value] += steps[0].total - len(candidates)  # those that were not sampled
    edits = EditsRecord(
        digest=variant_digest(settings, teacher), written=steps[0].total, unscored=dict(sorted((+reasons).items()))
    )
    return variant_scores(candidates, edits, None if state is None else teacher)


def _steps(suite: RegressionSuite, content: SuiteContent) -> tuple[Step, Step]:
    """Return the plan of scoring one variant."""
    assert suite.adaptation is not None
    documents, edits = len(content.tasks), suite.adaptation.edits
    return Step("sample", documents, edits), Step("update", documents, edits, questions="comparison")


def _open_teacher(suite: RegressionSuite, subject: Subject, loop: Loop) -> tuple[str | None, str | None]:
    """Return the name of the teacher's state, and the SHA-256 of its weights; None is the base, and an endpoint."""
    from pipelines.loop.loop import STATES

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
            name: tuple(sum(right) / len(updates) for right in zip(*(u.exact for u in updates), strict=True))
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
        adapter_digest=adapter_digest,
        edits=edits,
    )


def paired(content: SuiteContent, candidate: Scores, baseline: Scores) -> Compared:
    """Return the scores of two subjects side by side.

    A variant's unit is the document, for the probes too: they are the same few after every update, and what varies is
    what was written and learned. A document without a score on one side has no pair.
    """
    names = [task.id for task in content.tasks]
    shared = [name for name in names if name in candidate.documents and name in baseline.documents]
    documents = [
        PairedScore(document=name, candidate=mine, reference=theirs)
        for name in shared
        for mine, theirs in zip(candidate.documents[name], baseline.documents[name], strict=True)
    ]
    probes = [
        PairedScore(document=name, candidate=mine, reference=baseline.probes[name])
        for name, mine in candidate.probes.items()
        if name in baseline.probes
    ]
    unscored = None
    if candidate.edits is not None and baseline.edits is not None:
        left_out = tuple(name for name in names if name not in shared)
        edits = candidate.edits.missing, baseline.edits.missing
        unscored = Unscored(edits, candidate.edits.written, left_out, len(names))
    collapsed, answered = (candidate.empty, baseline.empty), (candidate.answered, baseline.answered)
    return Compared(tuple(documents), tuple(probes), collapsed, answered, unscored)


def current_pins(suite: RegressionSuite, content: SuiteContent) -> Pins:
    """Return the pins of a suite as it is now, its teacher's base opened too."""
    from evaluation.common.checkpoints import model_digest
    from teacher.samplers.openai import OpenAISampling

    teacher, adaptation = None, suite.adaptation
    if adaptation is not None and not isinstance(adaptation.teacher.sampling, OpenAISampling):
        base = suite_student(suite)._replace(name=adaptation.teacher.model)
        teacher = model_digest(base.load().model)
    return pins_of(suite, content, student_digest(suite_student(suite)), teacher)


def compare_subjects(
    suite: RegressionSuite, candidate: str, baseline: str, work_dir: Path, seed: int | None = None
) -> RegressionReport:
    """Return the report on two subjects; nothing is written to files or logged yet.

    Args:
        suite: Pinned.
        candidate: See `pipelines.check_regression.subjects.FORMS`.
        baseline: The same.
        work_dir: Of the registry; the work on variants is stored there.
        seed: Of the bounds; None is the suite's.

    Raises:
        ConfigError: A subject is invalid, the two are not comparable, or the suite is not pinned.
        InputError: The data were refused, or are not what was pinned.
        PreceptorError: Anything else that failed.
    """
    started = time.perf_counter()
    limits = suite.limits if seed is None else suite.limits.model_copy(update={"seed": seed})
    subjects = resolve(suite, candidate, baseline, work_dir)
    content = load_content(suite)
    try:
        check_pins(suite, pins_of(suite, content, student_digest(suite_student(suite))))
        with TemporaryDirectory(prefix="preceptor-regression-") as scratch:
            both = [download(subject, suite.tracking, work_dir, Path(scratch)) for subject in subjects]
            score = _score_variants if both[0].is_variant else _score_students
            mine, theirs = score(suite, content, both, work_dir)
    finally:
        close_models()
    compared = paired(content, mine, theirs)
    found = find_verdict(compared, suite.groups, limits)
    documents = list(dict.fromkeys(score.document for score in compared.documents))
    probes = [name for name in mine.probes if name in theirs.probes]
    return RegressionReport(
        suite=suite.name,
        suite_digest=suite.digest,
        outcome=found.outcome,
        candidate=mine.record(both[0], documents, probes),
        baseline=theirs.record(both[1], documents, probes),
        checks=found.checks,
        limits=limits,
        minimum_detectable=found.minimum_detectable,
        documents=len(content.tasks),
        left_out=() if compared.unscored is None else compared.unscored.left_out,
        questions=len(compared.documents),
        seconds=time.perf_counter() - started,
    )


def _score_variants(
    suite: RegressionSuite, content: SuiteContent, subjects: Sequence[Subject], work_dir: Path
) -> list[Scores]:
    """Return the scores of two variants, one after another."""
    from rich.console import Console

    from pipelines.reports.console import Reporter

    with Reporter(Console(stderr=True), len(subjects) * len(_steps(suite, content))) as reporter:
        return [score_variant(suite, content, each, work_dir, reporter) for each in subjects]
