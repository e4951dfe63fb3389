"""Scores of a candidate and a baseline on a suite, side by side.

Students are scored by `score_students`. A variant is scored by the code of the comparison of `train-teacher`, with the
suite's documents, questions, student and seeds. A self-edit without a score counts only in the number of those.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from evaluation.common.checkpoints import model_digest
from evaluation.statistics import known_mean
from pipelines.check_regression.students import score_students
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
from pipelines.models import ModelRef, close_models, student_digest
from pipelines.plan import Step
from pipelines.records import Candidate, ScoredUpdate
from pipelines.reports.console import Reporter
from pipelines.terminal import open_console
from teacher.policy import PolicyRecord
from teacher.rewards import RewardConfig, RewardFailure
from teacher.samplers.openai import OpenAISampling


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
                mine, theirs = (each.scores for each in score_students(suite, content, both, work_dir))
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
        probability=known_mean(scores.probability.get(name) for name in documents),
        probes=known_mean(share for name, share in scores.probes.items() if name in probes),
        edits=scores.edits,
    )
