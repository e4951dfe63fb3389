"""Students to compare: their words, what is refused before anything is scored, and their scores on suites.

A student is one word of check-regression's grammar (`parse_subject`). With several training seeds it is a label with
words (`LABEL=word,word`) or a word with a pattern (`adapter:runs/*/adapter`), and its scores are averaged over them.
"""

from __future__ import annotations

import glob
import re
import time
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

from evaluation.common.errors import ConfigError
from evaluation.engines.endpoint import check_key
from evaluation.statistics import known_mean
from pipelines.check_regression import suite as suites
from pipelines.check_regression.suite import STUDENTS, RegressionSuite, Subject, SuiteContent, parse_subject
from pipelines.checks import check, model_finding, require
from pipelines.compare_students.comparison import (
    ScoredStudent,
    StudentAnswer,
    StudentsComparison,
    SuiteComparison,
    compare_scored,
    with_accuracy,
)
from pipelines.lineage.store import require_store
from pipelines.settings import load

if TYPE_CHECKING:
    from pipelines.check_regression.students import StudentAnswers
    from pipelines.reports.console import Reporter

CONFIDENCE = 0.95
"""Level of all intervals."""
_LABEL = re.compile(r"\s*([^:=,\s][^:=,]*)=(.+)", re.DOTALL)
_NEXT_WORD = re.compile(r",(?=base(?:,|$)|(?:adapter|version|model|endpoint):)")
_PATTERN = frozenset("*?[")


class Student(NamedTuple):
    """A student with one subject for each training seed."""

    label: str
    seeds: tuple[Subject, ...]


class ComparisonPlan(NamedTuple):
    """What is compared, checked as far as that goes without opening a model."""

    suites: tuple[RegressionSuite, ...]
    students: tuple[Student, ...]
    reference: str
    """Label of one of them."""


def parse_student(text: str) -> Student:
    """Return the student that an argument names; raises ConfigError as `parse_subject`, and for other than students."""
    labelled = _LABEL.fullmatch(text)
    words = _NEXT_WORD.split(labelled[2]) if labelled else [text]
    seeds = tuple(map(parse_subject, chain.from_iterable(map(_matching, words))))
    if variants := [subject.text for subject in seeds if subject.is_variant]:
        raise ConfigError(
            f"student {text!r}: {variants[0]!r} is a variant, allowed are {STUDENTS}. For variants: preceptor "
            "check-regression."
        )
    return Student(labelled[1].strip() if labelled else text, seeds)


def _matching(word: str) -> list[str]:
    """Return the words that a word with a pattern stands for, or itself."""
    kind, _, path = word.partition(":")
    if kind != "adapter" or not _PATTERN & set(path) or Path(path).is_dir():
        return [word]
    found = sorted(each for each in glob.glob(str(Path(path).expanduser())) if Path(each).is_dir())
    if not found:
        raise ConfigError(
            f"subject {word!r}: no directory matches. Give a pattern in quotes, such as 'adapter:runs/*'."
        )
    return [f"{kind}:{each}" for each in found]


def make_plan(paths: Sequence[Path], words: Sequence[str], reference: str | None, work_dir: Path) -> ComparisonPlan:
    """Return a comparison that can begin: suites are pinned, subjects are there, and versions are registered.

    Raises:
        ConfigError: Something is invalid or missing.
        InputError: Data were refused, or are not what was pinned.
    """
    students, listed = tuple(map(parse_student, words)), [load(path, RegressionSuite) for path in paths]
    for what, names in {"student": [s.label for s in students], "suite": [s.name for s in listed]}.items():
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ConfigError(f"compare: the {what} {twice[0]!r} is there twice. Give each once, or LABEL=WORD.")
    if len(students) < 2 or not listed:
        raise ConfigError(
            "compare: give at least one suite and two students: SUITE.yaml --student base --student WORD."
        )
    chosen = reference or students[0].label
    if chosen not in [student.label for student in students]:
        raise ConfigError(f"compare: the reference {chosen!r} is none of {[student.label for student in students]}.")
    subjects = _subjects(students)
    for endpoint in (subject.endpoint for subject in subjects if subject.endpoint is not None):
        check_key(endpoint)
    require(model_finding("student", str(subject.model)) for subject in subjects if subject.model is not None)
    versions = [subject for subject in subjects if subject.version is not None]
    for suite in listed:
        if versions:
            require_store(suite.tracking, work_dir)
        pins = suites.pins_of(suite, suites.load_content(suite), suite.pins.student if suite.pins else "0" * 64)
        suites.check_pins(suite, pins)
        check(suite, work_dir, suites.suite_findings)
        suites.require_versions(versions, suite, work_dir)
    return ComparisonPlan(tuple(listed), students, chosen)


def run_plan(plan: ComparisonPlan, work_dir: Path, reporter: Reporter) -> StudentsComparison:
    """Return the comparison; nothing is written to files or logged yet, and nothing is scored before all can be.

    Raises:
        PreceptorError: A student cannot be opened or scored; see `score_students`.
    """
    from pipelines.check_regression.students import check_students, score_students
    from pipelines.models import ModelRef, close_models, student_digest

    started, subjects, ready, found = time.perf_counter(), _subjects(plan.students), [], []
    try:
        with TemporaryDirectory(prefix="preceptor-compare-") as scratch:
            for suite in plan.suites:
                content, place = suites.load_content(suite), Path(scratch) / suite.name
                pins = suites.pins_of(suite, content, student_digest(ModelRef.of(suite.student, suite)))
                suites.check_pins(suite, pins)
                opened = [suites.download(subject, suite.tracking, work_dir, place) for subject in subjects]
                check_students(suite, opened, work_dir)
                ready.append((suite, content, opened))
            for suite, content, opened in ready:
                reporter.say(f"{suite.name}: scoring {len(opened)} students on {len(content.tasks)} documents")
                answers = iter(zip(opened, score_students(suite, content, opened, work_dir, texts=True), strict=True))
                scored = [_scored(suite, content, s.label, [next(answers) for _ in s.seeds]) for s in plan.students]
                found.append(_compared(plan, suite, with_accuracy(scored), work_dir))
    finally:
        close_models()
    return StudentsComparison(suites=tuple(found), seconds=time.perf_counter() - started)


def _compared(
    plan: ComparisonPlan, suite: RegressionSuite, students: Sequence[ScoredStudent], work_dir: Path
) -> SuiteComparison:
    from pipelines.check_regression.students import grading_of
    from pipelines.lineage.registry import Registry
    from pipelines.lineage.versions import NIGHT_TAG

    if any(student.version for student in students):
        registry = Registry.open(suite.tracking, work_dir)
        tags = [{} if s.version is None else registry.tags("student", s.version) for s in students]
        each = zip(students, tags, strict=True)
        students = [student.model_copy(update={"night": its.get(NIGHT_TAG, "")}) for student, its in each]
    intervals = {"confidence": CONFIDENCE, "resamples": suite.limits.resamples, "seed": suite.seed}
    asked = dict.fromkeys(answer.document for answer in students[0].answers)
    return SuiteComparison(
        suite=suite.name,
        suite_digest=suite.digest,
        by_text=grading_of(suite, _subjects(plan.students)) is not None,
        students=tuple(students),
        reference=plan.reference,
        found=compare_scored(students, plan.reference, intervals),
        left_out=tuple(name for name in asked if not all(name in student.accuracy for student in students)),
    )


def _scored(
    suite: RegressionSuite, content: SuiteContent, label: str, seeds: Sequence[tuple[Subject, StudentAnswers]]
) -> ScoredStudent:
    """Return a student without its accuracy, which depends on the others."""
    groups = {name: group for group, ids in suite.groups.items() for name in ids}
    asked = [(task, question) for task in content.tasks for question in task.comparison_questions]
    answers = [
        StudentAnswer(
            document=task.id,
            title=task.document.title,
            group=groups.get(task.id, task.group),
            edit=seed,
            question=question.question,
            gold=question.answer,
            answer=text,
            right=right,
            probability=chance,
        )
        for seed, (_, its) in enumerate(seeds)
        for (task, question), right, chance, text in zip(asked, its.right, its.probability, its.texts, strict=True)
    ]
    version = seeds[0][0].version if len(seeds) == 1 else None
    probes = known_mean(known_mean(its.scores.probes.values()) for _, its in seeds)
    notes = {"probability": known_mean(answer.probability for answer in answers), "probes": probes}
    return ScoredStudent(
        name=label,
        label=label if len(seeds) == 1 else f"{label} ({len(seeds)} seeds)",
        words=tuple(subject.text for subject, _ in seeds),
        digests=tuple(its.scores.adapter_digest for _, its in seeds),
        version=version if isinstance(version, int) else None,
        accuracy={},
        answers=tuple(answers),
        notes={name: value for name, value in notes.items() if value is not None},
    )


def _subjects(students: Sequence[Student]) -> list[Subject]:
    return [subject for student in students for subject in student.seeds]
