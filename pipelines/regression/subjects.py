"""What a regression test compares: written as one word on the command line, resolved to an adapter or a configuration.

A subject is a student, or a way of adapting one: a teacher, or what a run's configuration says. Students compare with
students and ways with ways.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

from evaluation.errors import ConfigError
from pipelines.config import TrackingConfig

if TYPE_CHECKING:
    from pipelines.registry import Role
    from student.adapters import Adapter

_STUDENTS = "base, adapter:DIRECTORY, version:student/NUMBER, version:student@ALIAS"
_WAYS = "teacher:base, teacher:DIRECTORY, version:teacher/NUMBER, version:teacher@ALIAS, config:FILE"
FORMS = f"{_STUDENTS} for students, and {_WAYS} for ways of adapting"
"""How a subject is written."""

_VERSION = re.compile(r"(?P<role>student|teacher)(?:/(?P<number>[1-9]\d*)|@(?P<alias>[A-Za-z0-9_-]+))")


class Subject(NamedTuple):
    """A student or a way of adapting one, not opened yet."""

    text: str
    """As written."""
    kind: Literal["base", "adapter", "version", "config"]
    role: Role = "student"
    """Whose adapter it is: that of the student, or of a teacher that writes for it."""
    directory: Path | None = None
    """Of an adapter: in PEFT's format for students, what `TeacherPolicy.save` wrote for teachers."""
    version: int | str | None = None
    """Number or alias of a registered version."""
    config: Path | None = None
    """YAML file of a run."""

    @property
    def adapts(self) -> bool:
        """Whether it is a way of adapting the student, not a student."""
        return self.role == "teacher"


class Located(NamedTuple):
    """Where the adapter of a subject is."""

    directory: Path | None
    """None is the base."""
    version: int | None = None
    """Number of the registered version; None for others."""


class OpenedSubject(NamedTuple):
    """A student whose adapter is at hand."""

    text: str
    adapter: Adapter | None
    """None is the base."""
    version: int | None
    """Number of the registered version; None for others."""


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


def parse_subjects(candidate: str, baseline: str) -> tuple[Subject, Subject]:
    """Return the subjects that two words name.

    Raises:
        ConfigError: A word names none, or one is a student and the other a way of adapting one.
    """
    both = parse_subject(candidate), parse_subject(baseline)
    if both[0].adapts is not both[1].adapts:
        told = [f"{subject.text!r} is {'a way of adapting' if subject.adapts else 'a student'}" for subject in both]
        raise ConfigError(
            f"subjects: {told[0]}, and {told[1]}: their scores say different things. Compare students ({_STUDENTS}) "
            f"with students, and ways of adapting ({_WAYS}) with ways of adapting."
        )
    return both


def check_store(subjects: Sequence[Subject], tracking: TrackingConfig, work_dir: Path) -> None:
    """Refuse versions where there is no registry.

    Raises:
        ConfigError: Nothing has been run in the work directory.
    """
    if any(subject.kind == "version" for subject in subjects):
        from pipelines.lineage_store import require_store

        require_store(tracking, work_dir)


def locate_subject(subject: Subject, tracking: TrackingConfig, work_dir: Path, scratch: Path) -> Located:
    """Return where the adapter of a subject is, that of a version downloaded.

    Args:
        subject: What to look for.
        tracking: Where the registry is.
        work_dir: Of the runs.
        scratch: Directory for downloaded files.

    Raises:
        ConfigError: The registry has no such alias.
        LineageError: The registry cannot be read, or has no such version.
    """
    number, role = subject.version, subject.role
    if number is None:
        return Located(subject.directory)
    from pipelines.registry import Registry

    registry = Registry.open(tracking, work_dir)
    if isinstance(number, str):
        aliases = registry.aliases(role)
        if number not in aliases:
            raise ConfigError(
                f"subject {subject.text!r}: the registered model {registry.name(role)!r} has no alias {number!r}, "
                f"only {sorted(aliases)}. Promote a version first (`preceptor promote {role} NUMBER`)."
            )
        number = aliases[number]
    return Located(registry.download(role, number, scratch), number)


def open_subject(subject: Subject, tracking: TrackingConfig, work_dir: Path, scratch: Path) -> OpenedSubject:
    """Return a student with its adapter; see `locate_subject`.

    Raises:
        ConfigError: The registry has no such alias.
        LineageError: The registry cannot be read, or has no such version.
        ModelError: The adapter's files are missing, damaged or of a kind that the student cannot hold.
    """
    from student.adapters import load_adapter

    found = locate_subject(subject, tracking, work_dir, scratch)
    return OpenedSubject(
        subject.text, None if found.directory is None else load_adapter(found.directory), found.version
    )
