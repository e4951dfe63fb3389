"""From completions to rows: every line passes the filters in one order, and what each of them drops is counted."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from evaluation.sources.sections import statements_of
from pipelines.records import Record
from pipelines.reports.format import markdown_table, plain_table
from pipelines.write_corpus.config import Passage, SplitName, WriterRef
from pipelines.write_corpus.write import Written
from teacher.duplicates import Seen
from teacher.filters import question_ngrams, reason_to_drop
from teacher.self_edit import Implication
from teacher.support import support

if TYPE_CHECKING:
    from rich.table import Table

TABLES = "table-values"
"""Kind of the lines that are read off tables without a writer."""
_STAGES = {
    **{name: name for name in ("completions", "failed", "unparsed", "lines", "length", "refusal", "language", "leak")},
    "exact": "exact duplicate",
    "near": "near duplicate",
    **{name: name for name in ("kept", "supported", "inferred", "tokens")},
}
_ALWAYS = ("completions", "lines", "kept")


class CorpusRow(Record):
    """One training text with everything that it comes from."""

    id: str
    """Section, kind, sample and line."""
    split: SplitName
    text: str
    """A statement, or question and answer in one text."""
    question: str | None = None
    answer: str | None = None
    """None for a statement, as the question."""
    messages: tuple[dict[str, str], ...]
    """The same as a chat of user and assistant."""
    kind: str
    document_id: str
    document_digest: str
    title: str
    section: str
    page: int | None = None
    span: tuple[int, int] | None = None
    """Start and end of the section in the document's text, in characters."""
    prompt_digest: str
    """SHA-256 of the prompt that the writer read; empty without a writer."""
    writer: str
    adapter_digest: str | None = None
    """None without an adapter."""
    seed: int
    sample: int
    tokens: int
    support: str
    """`supported`: all numbers, dates and names of the text occur in the section; else `inferred`."""
    source: str
    licence: str

    @property
    def line(self) -> Implication:
        """What a student is trained on."""
        return Implication(text=self.question or self.text, answer=self.answer)


def messages_of(title: str, text: str, answer: str | None) -> tuple[dict[str, str], ...]:
    """Return a line as a chat: the question and its answer, or a request for what a document says."""
    asked = text if answer is not None else f"What do you know about {title}?" if title else "State a fact."
    said = text if answer is None else answer
    return {"role": "user", "content": asked}, {"role": "assistant", "content": said}


class Funnel(Record):
    """How many completions, lines and kept tokens each stage had, by kind."""

    counts: dict[str, dict[str, int]]
    """By kind and stage."""

    def column(self, stage: str) -> Counter[str]:
        """Return the counts of a stage by kind."""
        return Counter({kind: counts.get(stage, 0) for kind, counts in self.counts.items()})

    def total(self, stage: str) -> int:
        """Return the count of a stage over all kinds."""
        return self.column(stage).total()

    @property
    def supported_share(self) -> float | None:
        """Share of the kept lines whose numbers, dates and names all occur in the section; None without any."""
        kept = self.total("kept")
        return self.total("supported") / kept if kept else None

    @property
    def _table(self) -> tuple[list[str], list[list[str]]]:
        """Head and rows, stages without a count left out."""
        stages = [stage for stage in _STAGES if self.total(stage) or stage in _ALWAYS]
        rows = [[kind, *(f"{counts.get(s, 0):,}" for s in stages)] for kind, counts in self.counts.items()]
        rows.append(["all", *(f"{self.total(stage):,}" for stage in stages)])
        return ["kind", *(_STAGES[stage] for stage in stages)], rows

    @property
    def markdown(self) -> str:
        """The table in Markdown."""
        return markdown_table(*self._table)

    @property
    def table(self) -> Table:
        """The table for a terminal."""
        heads, rows = self._table
        table = plain_table("From completions to rows")
        for head in heads:
            table.add_column(head.replace(" ", "\n"), justify="left" if head == "kind" else "right", overflow="fold")
        for row in rows:
            table.add_row(*row)
        return table


class Corpus:
    """The rows so far."""

    def __init__(self, writer: WriterRef, licence: str, seed: int, count: Callable[[str], int]) -> None:
        """`count` gives the tokens of a text."""
        self._writer, self._licence, self._seed, self._count = writer, licence, seed, count
        self._seen = Seen()
        self._grams: dict[str, frozenset[str]] = {}
        self._counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.rows: list[CorpusRow] = []
        self.train_tokens = 0
        """Tokens kept in the training split."""

    @property
    def funnel(self) -> Funnel:
        """What every stage had so far."""
        return Funnel(counts={kind: dict(counts) for kind, counts in self._counts.items()})

    def add(self, written: Written) -> list[CorpusRow]:
        """Add what passes the filters of a piece, and return it."""
        kind, lines = written.piece.kind.name, written.lines
        counts = self._counts[kind]
        counts["completions"] += 1
        counts["failed"] += bool(written.draft.failure)
        counts["unparsed"] += not lines and not written.draft.failure
        return self._keep(written.piece.passage, kind, lines, written.prompt_digest, written.piece.sample)

    def add_statements(self, passage: Passage) -> list[CorpusRow]:
        """Add the values in a section's tables, read off without a writer; what may be wrong is left out."""
        found = statements_of(passage.section)
        if not found:
            return []
        self._counts[TABLES]["uncertain"] += sum(each.uncertain for each in found)
        lines = [Implication(text=each.text) for each in found if not each.uncertain]
        return self._keep(passage, TABLES, lines, "", 0)

    def _keep(
        self, passage: Passage, kind: str, lines: Sequence[Implication], prompt_digest: str, sample: int
    ) -> list[CorpusRow]:
        counts, text, kept = self._counts[kind], passage.task.document.text, list[CorpusRow]()
        if passage.id not in self._grams:
            self._grams[passage.id] = question_ngrams(passage.task.comparison_questions, text)
        counts["lines"] += len(lines)
        section, written = passage.section, kind != TABLES
        for number, line in enumerate(lines):
            reason = reason_to_drop(line.line, text, self._grams[passage.id]) or self._seen.add(line.line)
            counts[reason or "kept"] += 1
            if reason is not None:
                continue
            row = CorpusRow(
                id=f"{passage.id}/{kind}/{sample}/{number}",
                split=passage.split,
                text=line.line,
                question=None if line.answer is None else line.text,
                answer=line.answer,
                messages=messages_of(section.title, line.text, line.answer),
                kind=kind,
                document_id=section.document_id,
                document_digest=section.digest,
                title=section.title,
                section=section.heading,
                page=section.page,
                span=(section.start, section.end),
                prompt_digest=prompt_digest,
                writer=self._writer.label if written else "table",
                adapter_digest=self._writer.digest if written else None,
                seed=self._seed,
                sample=sample,
                tokens=self._count(line.line),
                # A table's value is read off; its unit stands elsewhere than the value.
                support=support(line.line, text).verdict if written else "supported",
                source=passage.source,
                licence=self._licence,
            )
            counts[row.support] += 1
            counts["tokens"] += row.tokens
            self.train_tokens += row.tokens if row.split == "train" else 0
            kept.append(row)
        self.rows += kept
        return kept
