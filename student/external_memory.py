"""External memory: documents that a student looks up when it is asked, instead of learning them.

Retrieval is BM25 (Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond"; k1 1.5,
b 0.75, the variant of Lucene) over passages of the documents, by bm25s (arXiv 2407.03618). A memory never changes:
adding and retiring give another one, so each version of a student has its own.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from evaluation.digests import digest_json
from evaluation.errors import InputError
from evaluation.files import write_atomically
from student.recall import passages_of, terms_of

MEMORY_FILE = "memory.jsonl"
"""Name of the memory's file in the directory of a student's version."""

_FORMAT = 1


class MemoryEntry(BaseModel):
    """A document that is looked up."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1)
    """The document's id, unique within a memory; retiring goes by it."""
    title: str = ""
    """Searched along with the text; a source is shown by it."""
    text: str = Field(min_length=1)
    """What is put before the student, in passages where it is long."""
    source: str = ""
    """Where the document came from."""
    effective: date | None = None
    """From when on the document holds; of two hits that are worth the same, the later one comes first."""

    @field_validator("text")
    @classmethod
    def _not_blank(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must contain more than white space")
        return value


class Hit(NamedTuple):
    """An entry that fits a question."""

    entry: MemoryEntry
    score: float
    """BM25 of the best passage, above 0, in units of the weight of a word that one passage alone holds: 1 is as much as
    one such word would bring if it filled the passage. Raw BM25 grows with the number of entries; this does not."""
    passage: str
    """The part of the entry's text that fits best."""


class _Index(NamedTuple):
    """What is searched."""

    retriever: Any
    """`bm25s.BM25` over the passages."""
    vocabulary: frozenset[str]
    unit: float
    """Weight of a term that occurs in one passage."""
    owners: tuple[int, ...]
    """Entry of each passage, ascending."""
    passages: tuple[str, ...]


class ExternalMemory:
    """Documents to look things up in; immutable."""

    def __init__(self, entries: Iterable[MemoryEntry] = ()) -> None:
        """Take the entries, in the order of their ids; the index is made at the first search.

        Raises:
            InputError: Two entries have the same id.
        """
        self._entries: dict[str, MemoryEntry] = {}
        for entry in sorted(entries, key=lambda entry: entry.id):
            if entry.id in self._entries:
                raise InputError(
                    f"memory: two entries have the id {entry.id!r}. Ids are unique; retire the old one first."
                )
            self._entries[entry.id] = entry

    @property
    def entries(self) -> tuple[MemoryEntry, ...]:
        """All entries, by id."""
        return tuple(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, entry_id: object) -> bool:
        return entry_id in self._entries

    @cached_property
    def digest(self) -> str:
        """SHA-256 (64 hex digits) of all entries, whatever order they came in."""
        return digest_json([entry.model_dump(mode="json") for entry in self.entries])

    def with_entries(self, entries: Iterable[MemoryEntry]) -> ExternalMemory:
        """Return a memory with further entries; one with an id that is there already takes its place.

        Raises:
            InputError: Two of the new entries have the same id.
        """
        new = ExternalMemory(entries)._entries
        return ExternalMemory({**self._entries, **new}.values())

    def without(self, ids: Iterable[str]) -> ExternalMemory:
        """Return a memory in which these entries are retired; ids that it does not hold change nothing."""
        retired = set(ids)
        return ExternalMemory(entry for entry in self.entries if entry.id not in retired)

    def search(self, question: str, k: int = 1, least_score: float = 0.0) -> tuple[Hit, ...]:
        """Return the entries that fit a question best, best first; the same question gets the same answer.

        Args:
            question: In words.
            k: Most entries, at least 1.
            least_score: Hits below it are left out, at least 0; see `Hit.score`. Without it, every entry that shares a
                word with the question may be a hit.

        Returns:
            At most `k` hits, each entry once. Equal scores: the entry that became effective last comes first, then ids
            in their order.
        """
        if not self._entries:
            return ()
        index = self._index
        asked = sorted(set(terms_of(question)) & index.vocabulary)
        if not asked:
            return ()
        import numpy as np

        scores = np.asarray(index.retriever.get_scores(asked), dtype=np.float64) / index.unit
        best: dict[int, int] = {}
        for place in np.flatnonzero((scores > 0) & (scores >= least_score)).tolist():
            owner = index.owners[place]
            if owner not in best or scores[place] > scores[best[owner]]:
                best[owner] = place
        entries = self.entries
        hits = [Hit(entries[owner], float(scores[place]), index.passages[place]) for owner, place in best.items()]
        return tuple(sorted(hits, key=_order)[:k])

    @cached_property
    def _index(self) -> _Index:
        import bm25s

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it tells of each index, whoever's console that is
        owned = [(i, passage) for i, entry in enumerate(self.entries) for passage in passages_of(entry.text)]
        # Every passage of a document is found by the document's title, too.
        terms = [terms_of(f"{self.entries[i].title}\n{passage}") for i, passage in owned]
        retriever = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
        vocabulary = frozenset(term for passage in terms for term in passage)
        if vocabulary:
            retriever.index(terms, show_progress=False)
        unit = math.log(1.0 + (len(owned) - 0.5) / 1.5)  # Lucene's weight of a term in one of so many passages
        return _Index(retriever, vocabulary, unit, tuple(i for i, _ in owned), tuple(text for _, text in owned))

    def save(self, path: Path) -> Path:
        """Write the memory as JSON Lines and return the path: a head with number and digest, then an entry a line.

        The file is replaced at once, so that a killed run leaves the old one or the whole new one.
        """
        head = {"format": _FORMAT, "entries": len(self), "digest": self.digest}
        rows: list[Mapping[str, Any]] = [head, *(entry.model_dump(mode="json") for entry in self.entries)]
        return write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    @classmethod
    def load(cls, path: Path) -> ExternalMemory:
        """Return the memory in a file that `save` wrote.

        Raises:
            InputError: The file cannot be read, is of another kind, or its entries are not those of its digest.
        """
        try:
            lines = path.read_bytes().decode("utf-8").split("\n")
            head = json.loads(lines[0])
            memory = cls(MemoryEntry.model_validate_json(line) for line in lines[1:] if line)
            known, expected = head["format"] == _FORMAT, (head["entries"], head["digest"])
        except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"memory: {str(path)!r} cannot be read: {reason}. Give a file that ExternalMemory.save wrote, or "
                "restore this one."
            ) from error
        if not known or expected != (len(memory), memory.digest):
            raise InputError(
                f"memory: {str(path)!r} holds {len(memory)} entries with the digest {memory.digest[:12]!r}, and "
                f"{expected[0]!r} with {str(expected[1])[:12]!r} were written (format {head['format']!r}, known is "
                f"{_FORMAT}). The file was changed or damaged; restore it."
            )
        return memory


def _order(hit: Hit) -> tuple[float, int, str]:
    """Return the place of a hit among others: score, then how recent, then id."""
    effective = hit.entry.effective
    # Scores are float32 inside: what rounding alone tells apart counts as equal.
    return (-round(hit.score, 4), -(effective.toordinal() if effective else 0), hit.entry.id)
