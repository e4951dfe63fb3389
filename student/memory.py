"""External memory: documents that a student looks up when it is asked, instead of learning them.

Retrieval is BM25 (Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond"; k1 1.5,
b 0.75, the variant of Lucene) over passages of the documents, by bm25s (arXiv 2407.03618). A memory never changes;
each version of a student has its own.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import re
from collections.abc import Collection, Iterable
from datetime import date
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, field_validator

from evaluation.common.data import Frozen, digest_json
from evaluation.common.errors import InputError
from evaluation.common.storage import write_atomically

MEMORY_FILE = "memory.jsonl"
"""Name of the memory's file in the directory of a student's version."""
PASSAGE_WORDS = 160
"""Most words of a passage: several fit into a context, and a sentence keeps its neighbours."""

LEAST_SCORE = 1.25
"""Score from which a passage is about a question; see `Hit.score`."""

_FORMAT = 1
_WORD = re.compile(r"\w+")
_PIECE = re.compile(r"\n\s*\n|(?<=[.!?])\s+")


class MemoryEntry(Frozen):
    """A document that is looked up."""

    id: str = Field(min_length=1)
    """The document's id, unique within a memory."""
    title: str = ""
    """Searched along with the text; a source is shown by it."""
    text: str = Field(min_length=1)
    """Put before the student, in passages where it is long."""
    source: str = ""
    """Where the document came from."""
    effective: date | None = None
    """From when on the document holds; of two hits with the same score, the later one comes first."""
    client: str = ""
    """The one client of a server that finds it; empty is everybody."""

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
    """BM25 of the best passage, above 0, in units of the weight of a word that one passage alone holds: 1 is one such
    word that fills the passage. Raw BM25 grows with the number of entries; this does not."""
    passage: str
    """The part of the entry's text that fits best."""


class ExternalMemory:
    """Documents to look things up in; immutable."""

    def __init__(self, entries: Iterable[MemoryEntry] = ()) -> None:
        """Take the entries, in the order of their ids; the index is made at the first search.

        Raises:
            InputError: Two entries have the same id.
        """
        self.entries = tuple(sorted(entries, key=lambda entry: entry.id))
        for one, other in itertools.pairwise(self.entries):
            if one.id == other.id:
                raise InputError(
                    f"memory: two entries have the id {one.id!r}. Ids are unique; retire the old one first."
                )

    def __len__(self) -> int:
        return len(self.entries)

    def without(self, ids: Collection[str]) -> ExternalMemory:
        """Return the memory without some entries; itself, with its index, if it has none of them."""
        kept = [entry for entry in self.entries if entry.id not in ids]
        return self if len(kept) == len(self) else ExternalMemory(kept)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (64 hex digits) of all entries, whatever order they came in."""
        return digest_json([*map(_row, self.entries)])

    def search(self, question: str, k: int = 1, least_score: float = 0.0, client: str = "") -> tuple[Hit, ...]:
        """Return at most `k` entries that fit a question and that a client finds, each once, best first.

        Of equal scores the entry that became effective last comes first, then ids in their order. Hits below
        `least_score` (>= 0, see `Hit.score`) are left out; at 0, one shared word may make an entry a hit.
        """
        import numpy as np

        retriever, passages = self._index
        vocabulary = getattr(retriever, "vocab_dict", {})  # missing where no passage has a term
        terms = sorted(vocabulary.keys() & set(terms_of(question)))
        if not terms:
            return ()
        unit = math.log(1.0 + (len(passages) - 0.5) / 1.5)  # Lucene's weight of a term in one of so many passages
        scores = np.asarray(retriever.get_scores(terms), dtype=np.float64) / unit
        best: dict[str, Hit] = {}
        for place in np.flatnonzero((scores > 0) & (scores >= least_score)).tolist():
            entry, passage = passages[place]
            if entry.client not in ("", client):
                continue
            if entry.id not in best or scores[place] > best[entry.id].score:
                best[entry.id] = Hit(entry, float(scores[place]), passage)

        def order(hit: Hit) -> tuple[float, int, str]:
            effective = hit.entry.effective
            # Scores are float32 inside: what rounding alone tells apart counts as equal.
            return -round(hit.score, 4), -(effective.toordinal() if effective else 0), hit.entry.id

        return tuple(sorted(best.values(), key=order)[:k])

    @cached_property
    def _index(self) -> tuple[Any, list[tuple[MemoryEntry, str]]]:
        """The retriever over all passages, and the passages with their entries."""
        import bm25s

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it logs each index, whoever's console that is
        passages = [(entry, passage) for entry in self.entries for passage in passages_of(entry.text)]
        # Every passage of a document is found by the document's title, too.
        terms = [terms_of(f"{entry.title}\n{passage}") for entry, passage in passages]
        retriever = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
        if any(terms):
            retriever.index(terms, show_progress=False)
        return retriever, passages

    @property
    def _head(self) -> dict[str, Any]:
        return {"format": _FORMAT, "entries": len(self), "digest": self.digest}

    def save(self, path: Path) -> Path:
        """Write the memory as JSON Lines and return the path: a head with number and digest, then an entry a line.

        The file is replaced at once, so that a killed run leaves the old one or the whole new one.
        """
        rows = [self._head, *map(_row, self.entries)]
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
        except (OSError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"memory: {str(path)!r} cannot be read: {reason}. Give a file that ExternalMemory.save wrote, or "
                "restore this one."
            ) from error
        if head != memory._head:
            raise InputError(
                f"memory: {str(path)!r} was changed or damaged; restore it. Its first line is {lines[0][:200]}, its "
                f"entries make {json.dumps(memory._head)}."
            )
        return memory


def _row(entry: MemoryEntry) -> dict[str, Any]:
    """Return an entry as JSON; one for everybody as earlier releases wrote and digested it."""
    return entry.model_dump(mode="json", exclude=None if entry.client else {"client"})


def terms_of(text: str) -> list[str]:
    """Return the stems of a text's words and of its pairs of neighbouring words, in order, repeats included.

    Stems are those of Snowball's English stemmer (Porter 1980, 2001), lower-cased. Words that carry no topic (bm25s's
    list of 179) are left out and pairs do not reach across them. Pairs keep names together: of 300 micro-world
    documents, whose names are put together from the same words, BM25 put the right one first for 77 % of questions
    with single words, and for all of them with pairs.
    """
    terms: list[str] = []
    before: str | None = None
    for stem in map(_stem, _WORD.findall(text.lower())):
        if stem is not None:
            terms += [stem] if before is None else [stem, f"{before} {stem}"]
        before = stem
    return terms


@lru_cache(maxsize=1 << 16)
def _stem(word: str) -> str | None:
    """Return a word's stem, or None for one that carries no topic."""
    import snowballstemmer
    from bm25s.stopwords import STOPWORDS_EN_PLUS

    # A stemmer holds the word it works on, so threads must not share one.
    return None if word in STOPWORDS_EN_PLUS else str(snowballstemmer.stemmer("english").stemWord(word))


def passages_of(text: str, most: int = PASSAGE_WORDS) -> tuple[str, ...]:
    """Return a text in passages of whole sentences, in order; a text that is short enough is one, unchanged.

    Nothing but white space between passages is lost. A blank text has no passage; a single sentence of more than `most`
    words is cut between words.
    """
    if len(text.split()) <= most:
        return (text,) if text.strip() else ()
    passages: list[list[str]] = [[]]
    for sentence in map(str.split, _PIECE.split(text)):
        if len(passages[-1]) + len(sentence) > most:
            passages.append([])
        passages[-1] += sentence
        while len(passages[-1]) > most:
            passages[-1:] = passages[-1][:most], passages[-1][most:]
    return tuple(" ".join(words) for words in passages if words)
