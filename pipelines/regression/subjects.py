"""What a regression test compares: written as one word on the command line, resolved to an adapter of the student."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from evaluation.errors import ConfigError
from pipelines.config import TrackingConfig

if TYPE_CHECKING:
    from student.adapters import Adapter

FORMS = "base, adapter:DIRECTORY, version:student/NUMBER, version:student@ALIAS"
"""How a subject is written."""

_VERSION = re.compile(r"student(?:/(?P<number>[1-9]\d*)|@(?P<alias>[A-Za-z0-9_-]+))")


class Subject(NamedTuple):
    """A student to be tested, not opened yet."""

    text: str
    """As written."""
    kind: Literal["base", "adapter", "version"]
    directory: Path | None = None
    """Of an adapter, in PEFT's format."""
    version: int | str | None = None
    """Number or alias of a registered version."""


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
        ConfigError: It has none of the forms in `FORMS`, or names a directory that is not there.
    """
    kind, _, rest = text.partition(":")
    if text == "base":
        return Subject(text, "base")
    if kind == "adapter" and rest:
        directory = Path(rest).expanduser()
        if not directory.is_dir():
            raise ConfigError(f"subject {text!r}: there is no directory {rest!r}. Give one that PEFT wrote.")
        return Subject(text, "adapter", directory=directory)
    found = _VERSION.fullmatch(rest) if kind == "version" else None
    if found is None:
        raise ConfigError(f"subject {text!r}: allowed are {FORMS}.")
    number, alias = found["number"], found["alias"]
    return Subject(text, "version", version=int(number) if number else alias)


def check_store(subjects: Sequence[Subject], tracking: TrackingConfig, work_dir: Path) -> None:
    """Refuse versions where there is no registry.

    Raises:
        ConfigError: Nothing has been run in the work directory.
    """
    if any(subject.kind == "version" for subject in subjects):
        from pipelines.lineage_store import require_store

        require_store(tracking, work_dir)


def open_subject(subject: Subject, tracking: TrackingConfig, work_dir: Path, scratch: Path) -> OpenedSubject:
    """Return the subject with its adapter.

    Args:
        subject: What to open.
        tracking: Where the registry is.
        work_dir: Of the runs.
        scratch: Directory for downloaded files.

    Raises:
        ConfigError: The registry has no such alias.
        LineageError: The registry cannot be read, or has no such version.
        ModelError: The adapter's files are missing, damaged or of a kind that the student cannot hold.
    """
    from student.adapters import load_adapter

    if subject.kind == "base":
        return OpenedSubject(subject.text, None, None)
    if subject.directory is not None:
        return OpenedSubject(subject.text, load_adapter(subject.directory), None)
    from pipelines.registry import Registry

    registry = Registry.open(tracking, work_dir)
    number = subject.version
    if isinstance(number, str):
        aliases = registry.aliases("student")
        if number not in aliases:
            raise ConfigError(
                f"subject {subject.text!r}: the registered model {registry.name('student')!r} has no alias {number!r}, "
                f"only {sorted(aliases)}. Promote a version first (`preceptor promote student NUMBER`)."
            )
        number = aliases[number]
    assert number is not None
    return OpenedSubject(subject.text, load_adapter(registry.download("student", number, scratch)), number)
