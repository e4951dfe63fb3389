"""What a check finds, and how it is made: a check that itself fails is a finding, never a traceback."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

Status = Literal["ok", "optional", "warning", "missing", "broken"]
"""`optional`: not there, and nothing that was asked for needs it; `warning`: works, but not as well as it could."""

_TEXT = 300
"""Longest quotation of somebody else's error, in characters."""


class Check(BaseModel):
    """One finding."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    area: str
    """What it is about, such as `packages`; the report has a table for each."""
    name: str
    """Of the check within its area."""
    status: Status
    found: str
    """What was seen and, where no command mends it, what to change."""
    fix: str = ""
    """Command to type; empty where there is nothing to mend or no command does it."""


class DoctorReport(BaseModel):
    """Everything that was found."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    usable: bool
    """Nothing that is needed is missing or broken."""
    checks: tuple[Check, ...]
    """In the order of the report."""

    @classmethod
    def of(cls, checks: Sequence[Check]) -> DoctorReport:
        """Return the report on some checks."""
        return cls(usable=not any(c.status in ("missing", "broken") for c in checks), checks=tuple(checks))


def guarded(area: str, name: str, examine: Callable[[], Iterable[Check]]) -> list[Check]:
    """Return what `examine` finds; if it fails, that it did.

    Args:
        area: Of the check that stands for a failure.
        name: Of that check.
        examine: Makes the checks.
    """
    try:
        return list(examine())
    except Exception as error:  # whatever this machine does to a check, the others are still wanted
        return [Check(area=area, name=name, status="broken", found=f"this check itself failed: {in_short(error)}")]


def in_short(error: BaseException) -> str:
    """Return type and text of an error in one line of bounded length."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:_TEXT] if text else type(error).__name__


def late(seconds: float) -> str:
    """Return what is said of a check that was stopped."""
    return f"not known: no answer within {seconds:.0f} s; try again while the machine is less busy"
