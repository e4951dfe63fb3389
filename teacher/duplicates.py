"""Exact and near-duplicates of training lines, in a document or over a corpus."""

from __future__ import annotations

from typing import Literal

from teacher.parsing.lines import normalise


class Seen:
    """The texts so far; one for each document, and one for the corpus."""

    def __init__(self) -> None:
        self._exact: set[str] = set()

    def add(self, text: str) -> Literal["exact", "near"] | None:
        """Add a text, and return whether it repeats an earlier one; a duplicate is not added."""
        key = normalise(text)
        if key in self._exact:
            return "exact"
        self._exact.add(key)
        return None
