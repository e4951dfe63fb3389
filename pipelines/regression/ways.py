"""Ways of adapting a student: what a teacher or a run's configuration says of it, as far as a suite measures it.

A way is a teacher that writes (base, adapter, prompt, sampling) and the recipe by which a student takes in what it
wrote. Documents, questions, the student and all seeds are the suite's.
"""

from __future__ import annotations

from typing import NamedTuple

from pydantic import ValidationError

from evaluation.digests import digest_json
from evaluation.errors import ConfigError
from pipelines.config import ComparisonConfig, LoopConfig, RunConfig, StudentConfig, load_config
from pipelines.regression.subjects import Subject
from pipelines.regression.suite import WRITES, AdaptationConfig, RegressionSuite
from teacher.config import OpenAISampling, TeacherConfig


class Way(NamedTuple):
    """A way of adapting, nothing of it opened yet."""

    subject: Subject
    run: RunConfig
    """A run without a round on the suite's documents: its comparison is the measurement."""

    @property
    def local(self) -> bool:
        """Whether the teacher is a model of this process, not one behind an endpoint."""
        return not isinstance(self.run.teacher.sampling, OpenAISampling)

    @property
    def pinned(self) -> bool:
        """Whether its teacher's base is the one that the suite names."""
        return self.local and self.subject.config is None

    def digest(self, teacher: str | None) -> str:
        """Return the SHA-256 of all that decides its scores on a suite.

        Args:
            teacher: SHA-256 of the teacher's weights; None behind an endpoint.
        """
        writes = self.run.teacher.model_dump(mode="json", include=WRITES)
        update = self.run.student.update.model_dump(mode="json")
        return digest_json({"teacher": teacher or self.run.teacher.model, "writes": writes, "update": update})


def way_of(suite: RegressionSuite, subject: Subject) -> Way:
    """Return the way of adapting that a subject means on a suite.

    Args:
        suite: With a section `adaptation`.
        subject: A teacher or a configuration.

    Raises:
        ConfigError: The suite has no such section; or the configuration is refused, or made for another student.
    """
    adaptation = suite.adaptation
    if adaptation is None:
        raise ConfigError(
            f"suite {suite.name!r}: it has no section 'adaptation', which {subject.text!r} needs: it says how teachers "
            "write, how the student learns from that, and how many self-edits are tried. Add it (docs/regression.md) "
            "and pin the suite again."
        )
    if subject.config is None:
        teacher = adaptation.teacher
        student = StudentConfig(model=suite.student, update=adaptation.update, answer_format=suite.answer_format)
    else:
        said = load_config(subject.config)
        _check_student(suite, subject, said.student)
        teacher, student = said.teacher, said.student
    way = Way(subject, _run_of(suite, adaptation, subject, teacher, student))
    if subject.kind in ("adapter", "version") and not way.local:
        raise ConfigError(
            f"subject {subject.text!r}: the suite's teacher {teacher.model!r} is behind an endpoint, which takes no "
            "adapter. Compare teacher:base and configurations, or name a local teacher in the suite."
        )
    return way


def _check_student(suite: RegressionSuite, subject: Subject, said: StudentConfig) -> None:
    """Refuse a configuration whose recipe was made for another student, or for one that is asked otherwise."""
    for name, got, allowed in (
        ("model", said.model, suite.student),
        ("answer_format", said.answer_format, suite.answer_format),
    ):
        if got != allowed:
            raise ConfigError(
                f"subject {subject.text!r}: student.{name} is {got!r}, but that of the suite {suite.name!r} is "
                f"{allowed!r}. Give a configuration for the suite's student, or a suite for this one."
            )


def _run_of(
    suite: RegressionSuite,
    adaptation: AdaptationConfig,
    subject: Subject,
    teacher: TeacherConfig,
    student: StudentConfig,
) -> RunConfig:
    """Return the run without a round whose comparison measures a way."""
    try:
        return RunConfig(
            name=suite.name,
            seed=adaptation.seed,
            device=suite.device,
            dtype=suite.dtype,
            threads=suite.threads,
            data=suite.data,
            teacher=teacher,
            student=student,
            loop=LoopConfig(rounds=0),
            comparison=ComparisonConfig(edits=adaptation.edits, retention_probes=suite.probes),
            tracking=suite.tracking,
        )
    except ValidationError as error:
        told = "; ".join(mistake["msg"] for mistake in error.errors())
        raise ConfigError(f"subject {subject.text!r}: it does not fit the suite {suite.name!r}: {told}") from error
