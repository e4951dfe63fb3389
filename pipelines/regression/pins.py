"""Pins: digests of all that a suite asks, and of whom.

A document or a question that has changed would make today's verdict about something else than yesterday's, so it is
refused, by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from pydantic import BaseModel, ConfigDict, Field

from evaluation.digests import digest_json
from evaluation.errors import ConfigError, InputError
from evaluation.files import write_atomically
from evaluation.tasks import Question

if TYPE_CHECKING:
    from pipelines.regression.suite import RegressionSuite, SuiteContent

_PINS = "\npins:"
_SHOWN = 5
"""Changed documents that a message names at most."""
_SHA = r"^[0-9a-f]{64}$"


class Pins(BaseModel):
    """What the suite's contents were when it was pinned."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    student: str = Field(pattern=_SHA)
    """SHA-256 of the student's weights (`model_digest`)."""
    adaptation: str | None = Field(default=None, pattern=_SHA)
    """`AdaptationConfig.digest`; None for a suite without that section."""
    teacher: str | None = Field(default=None, pattern=_SHA)
    """SHA-256 of the weights of its teacher's base; None without the section, and for a teacher behind an endpoint."""
    probes: str = Field(pattern=_SHA)
    """SHA-256 of all probes with their answers."""
    documents: dict[str, str] = Field(min_length=1)
    """Document id -> SHA-256 of its text and of the questions asked about it, with their answers."""


def pins_of(content: SuiteContent, student_digest: str, teacher_digest: str | None = None) -> Pins:
    """Return the digests of what is asked, and of whom.

    Args:
        content: Of the suite.
        student_digest: `model_digest` of the suite's student.
        teacher_digest: The same of its teacher's base; None where it was not opened, or there is none.
    """
    documents = {
        task.id: digest_json([task.document.digest, _asked(content.questions[task.id])]) for task in content.tasks
    }
    return Pins(
        student=student_digest,
        adaptation=content.adaptation,
        teacher=teacher_digest,
        probes=digest_json(_asked(content.probes)),
        documents=documents,
    )


def check_pins(suite: RegressionSuite, found: Pins) -> None:
    """Refuse a suite whose contents are not what was pinned.

    Args:
        suite: With its pins.
        found: Of its contents now; a teacher that was not opened is not looked at (`check_teacher`).

    Raises:
        ConfigError: It was never pinned.
        InputError: Something has changed; the message names it.
    """
    pinned = suite.pins
    if pinned is None:
        raise ConfigError(
            f"suite {suite.name!r} is not pinned, so that nobody would notice if its questions changed. Run `preceptor "
            "check-regression SUITE --pin` once, and commit the file."
        )
    changes = {
        "changed": sorted(i for i, d in found.documents.items() if i in pinned.documents and pinned.documents[i] != d),
        "new": sorted(found.documents.keys() - pinned.documents.keys()),
        "missing": sorted(pinned.documents.keys() - found.documents.keys()),
    }
    told = [f"{len(ids)} documents or their questions are {what}: {_few(ids)}" for what, ids in changes.items() if ids]
    told += ["the retention probes are changed"] if found.probes != pinned.probes else []
    told += ["the section 'adaptation' is changed"] if found.adaptation != pinned.adaptation else []
    if found.student != pinned.student:
        told.append(f"the student {suite.student!r} has the digest {found.student[:12]}, not {pinned.student[:12]}")
    if told:
        raise _not_pinned(suite, "; ".join(told))


def check_teacher(suite: RegressionSuite, digest: str) -> None:
    """Refuse a teacher whose base is not what was pinned.

    Args:
        suite: With its pins, which `check_pins` has looked at.
        digest: `model_digest` of the base that was opened.

    Raises:
        InputError: It is another one.
    """
    pinned = None if suite.pins is None else suite.pins.teacher
    if digest != pinned:
        name = None if suite.adaptation is None else suite.adaptation.teacher.model
        before = "none, since none was pinned" if pinned is None else pinned[:12]
        raise _not_pinned(suite, f"the teacher {name!r} has the digest {digest[:12]}, not {before}")


def write_pins(path: Path, pins: Pins) -> None:
    """Put the pins at the end of a suite's file, in place of those that are there; all else stays as it is written."""
    text = path.read_text(encoding="utf-8")
    head = ("\n" + text).partition(_PINS)[0].lstrip("\n").rstrip() + "\n"
    dumped = yaml.safe_dump({"pins": pins.model_dump(exclude_none=True)}, sort_keys=False)
    write_atomically(path, f"{head}{dumped}")


def _not_pinned(suite: RegressionSuite, told: str) -> InputError:
    return InputError(
        f"suite {suite.name!r} is not what was pinned: {told}. Restore them; or, if the change is meant, pin the suite "
        "again with --pin and compare with a baseline that was made for it."
    )


def _asked(questions: tuple[Question, ...]) -> list[list[str]]:
    return [[question.question, question.answer] for question in questions]


def _few(ids: list[str]) -> str:
    return ", ".join(map(repr, ids[:_SHOWN])) + (", ..." if len(ids) > _SHOWN else "")
