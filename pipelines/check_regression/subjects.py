"""What a regression test compares: one word on the command line, resolved to an adapter or to settings of the loop.

A subject is a student, or a variant: a teacher's state or a run's configuration, whose self-edits update the student.
Students compare with students and variants with variants.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

from evaluation.common.data import digest_json
from evaluation.common.errors import ConfigError
from pipelines.check_regression.suite import WRITES, RegressionSuite
from pipelines.settings import LoopSettings, StudentConfig, TrackingConfig, load
from pipelines.train_teacher.config import TrainTeacherConfig
from teacher.config import TeacherConfig
from teacher.samplers.openai import OpenAISampling

if TYPE_CHECKING:
    from pipelines.lineage.registry import Role

_STUDENTS = "base, adapter:DIRECTORY, version:student/NUMBER, version:student@ALIAS"
_VARIANTS = "teacher:base, teacher:DIRECTORY, version:teacher/NUMBER, version:teacher@ALIAS, config:FILE"
FORMS = f"{_STUDENTS} for students, and {_VARIANTS} for variants"
"""How a subject is written."""

_VERSION = re.compile(r"(?P<role>student|teacher)(?:/(?P<number>[1-9]\d*)|@(?P<alias>[A-Za-z0-9_-]+))")


class Subject(NamedTuple):
    """A student or a variant, not opened yet."""

    text: str
    """As written."""
    kind: Literal["base", "adapter", "version", "config"]
    role: Role = "student"
    """Whose adapter it is: the student's, or that of a teacher that writes for it."""
    directory: Path | None = None
    """Of the adapter, as `save_adapter` or `TeacherPolicy.save` wrote it; None is the base, and a version that is not
    downloaded yet."""
    version: int | str | None = None
    """Number or alias of a registered version; a number once it is downloaded."""
    config: Path | None = None
    """YAML file of a run."""

    @property
    def is_variant(self) -> bool:
        """Whether it adapts the student, instead of being one."""
        return self.role == "teacher"


def parse_subject(text: str) -> Subject:
    """Return the subject that a word names.

    Raises:
        ConfigError: It has none of the forms in `FORMS`, or names a directory or a file that is not there.
    """
    kind, _, rest = text.partition(":")
    if text == "base":
        return Subject(text, "base")
    if text == "teacher:base":
        return Subject(text, "base", "teacher")
    if kind == "config" and rest:
        file = Path(rest).expanduser()
        if not file.is_file():
            raise ConfigError(f"subject {text!r}: there is no file {rest!r}. Give the YAML file of a run.")
        return Subject(text, "config", "teacher", config=file)
    if kind in ("adapter", "teacher") and rest:
        directory = Path(rest).expanduser()
        if not directory.is_dir():
            wrote = "PEFT" if kind == "adapter" else "`preceptor train-teacher`"
            raise ConfigError(f"subject {text!r}: there is no directory {rest!r}. Give one that {wrote} wrote.")
        return Subject(text, "adapter", "student" if kind == "adapter" else "teacher", directory=directory)
    found = _VERSION.fullmatch(rest) if kind == "version" else None
    if found is None:
        raise ConfigError(f"subject {text!r}: allowed are {FORMS}.")
    number, alias = found["number"], found["alias"]
    return Subject(text, "version", cast("Role", found["role"]), version=int(number) if number else alias)


def resolve(suite: RegressionSuite, candidate: str, baseline: str, work_dir: Path) -> tuple[Subject, Subject]:
    """Return the subjects that two words name, checked as far as that goes without opening anything.

    Raises:
        ConfigError: A word names no subject, or one that does not fit the suite; one is a student and the other a
            variant; or nothing has been run in the work directory of a version.
    """
    both = parse_subject(candidate), parse_subject(baseline)
    if both[0].is_variant is not both[1].is_variant:
        told = [f"{subject.text!r} is a {'variant' if subject.is_variant else 'student'}" for subject in both]
        raise ConfigError(
            f"subjects: {told[0]} and {told[1]}, whose scores are not comparable. Compare students ({_STUDENTS}) with "
            f"students, and variants ({_VARIANTS}) with variants."
        )
    for subject in both:
        if subject.is_variant:
            settings_of(suite, subject)
        if subject.kind == "version":
            from pipelines.lineage.store import require_store

            require_store(suite.tracking, work_dir)
    return both


def download(subject: Subject, tracking: TrackingConfig, work_dir: Path, scratch: Path) -> Subject:
    """Return a subject whose adapter is on disk: that of a registered version is downloaded into `scratch`.

    Raises:
        ConfigError: The registry has no such version.
        LineageError: The registry cannot be read.
    """
    if subject.version is None:
        return subject
    from pipelines.lineage.registry import Registry

    registry = Registry.open(tracking, work_dir)
    number = registry.number(subject.role, subject.version)
    directory = registry.fetch(subject.role, number, scratch / f"{subject.role}-{number}")
    return subject._replace(directory=directory, version=number)


def settings_of(suite: RegressionSuite, subject: Subject) -> LoopSettings:
    """Return the settings under which a variant is scored: documents, student and seeds are the suite's.

    Raises:
        ConfigError: The suite has no section `adaptation`; or the configuration is refused, or for another student.
    """
    adaptation = suite.adaptation
    if adaptation is None:
        raise ConfigError(
            f"suite {suite.name!r}: it has no section 'adaptation', which {subject.text!r} needs: it says how teachers "
            "write, by which recipe the student learns, and how many self-edits are scored. Add it "
            "(docs/regression.md) and pin the suite again."
        )
    if subject.config is None:
        teacher = adaptation.teacher
        student = StudentConfig(
            model=suite.student,
            update=adaptation.update,
            format=suite.format,
            answer_format=suite.answer_format,
        )
    else:
        teacher, student = _configured(suite, subject)
    if subject.kind in ("adapter", "version") and isinstance(teacher.sampling, OpenAISampling):
        raise ConfigError(
            f"subject {subject.text!r}: the suite's teacher {teacher.model!r} is behind an endpoint, which takes no "
            "adapter. Compare teacher:base and configurations, or name a local teacher in the suite."
        )
    return LoopSettings(
        name=suite.name,
        seed=suite.seed,
        device=suite.device,
        dtype=suite.dtype,
        threads=suite.threads,
        tracking=suite.tracking,
        teacher=teacher,
        student=student,
    )


def _configured(suite: RegressionSuite, subject: Subject) -> tuple[TeacherConfig, StudentConfig]:
    """Return teacher and student of a run's configuration, which must be for the suite's student."""
    assert subject.config is not None
    run = load(subject.config, TrainTeacherConfig)
    for name, got, allowed in (
        ("model", run.student.model, suite.student),
        ("format", run.student.format, suite.format),
        ("answer_format", run.student.answer_format, suite.answer_format),
    ):
        if got != allowed:
            raise ConfigError(
                f"subject {subject.text!r}: student.{name} is {got!r}, but that of the suite {suite.name!r} is "
                f"{allowed!r}. Give a configuration for the suite's student, or a suite for this one."
            )
    return run.teacher, run.student


def variant_digest(settings: LoopSettings, teacher: str | None) -> str:
    """Return the SHA-256 of everything that decides a variant's scores on a suite.

    Args:
        settings: See `settings_of`.
        teacher: SHA-256 of the teacher's weights; None behind an endpoint.
    """
    writes = settings.teacher.model_dump(mode="json", include=WRITES)
    update = settings.student.update.model_dump(mode="json")
    return digest_json({"teacher": teacher or settings.teacher.model, "writes": writes, "update": update})
