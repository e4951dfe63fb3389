"""Where a document goes: into the student's weights, or into its external memory. Pure; no model is asked.

Weights are for what lasts: a fact that is in them cannot be taken out again, only painted over. What is volatile, dated
or replaces an earlier document therefore stays in memory, where the next version takes its place.
"""

from __future__ import annotations

import re
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pipelines.inbox.documents import InboxDocument, Route


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from error
    return value


class RoutingConfig(BaseModel):
    """Which documents stay in external memory; a hint of the sender goes before all rules."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    superseding: Route = "memory"
    """Where documents go that replace earlier ones."""
    dated: Route = "memory"
    """Where documents go that say from which day on they hold."""
    volatile_patterns: tuple[Annotated[str, AfterValidator(_pattern)], ...] = (
        r"\bas of (today|now|this|\d)",
        r"\bcurrently\b",
        r"\buntil further notice\b",
        r"\bsubject to change\b",
        r"\b(today|tonight|tomorrow|this (week|month|quarter))\b",
    )
    """Regular expressions, in any letter case: a document of whose text one is found is volatile and goes to memory."""
    longest: int = Field(default=20_000, ge=1, le=10_000_000)
    """Characters of a document that weights take, in [1, 10000000]; a longer one goes to memory."""


class Routed(NamedTuple):
    """Where a document goes, and by which rule."""

    place: Route
    because: str
    """For people."""


def route(document: InboxDocument, config: RoutingConfig, *, replaces: int = 0) -> Routed:
    """Return where a document goes.

    Args:
        document: What its sender said of it, and its text.
        config: The rules.
        replaces: How many earlier documents it supersedes.
    """
    if document.route is not None:
        return Routed(document.route, "its sender wants it there")
    if replaces and config.superseding == "memory":
        return Routed("memory", f"it replaces {replaces} earlier document{'s' * (replaces > 1)}")
    if document.effective is not None and config.dated == "memory":
        return Routed("memory", f"it is dated ({document.effective.isoformat()})")
    patterns = config.volatile_patterns
    found = next((match for p in patterns if (match := re.search(p, document.text, re.IGNORECASE))), None)
    if found is not None:
        return Routed("memory", f"it is volatile ({found.group(0)!r})")
    if len(document.text) > config.longest:
        return Routed("memory", f"it is long ({len(document.text)} characters, weights take {config.longest})")
    return Routed("weights", "nothing says that it will change")
