"""From completions to rows: every line passes the filters in one order, and what each of them drops is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from evaluation.sources.sections import statements_of
from pipelines.records import Record
from pipelines.reports.format import markdown_table, plain_table
from pipelines.write_corpus.config import WriterRef
from pipelines.write_corpus.output import CorpusRow, messages_of
from pipelines.write_corpus.plan import Passage
from pipelines.write_corpus.write import Written, lines_in
from teacher.duplicates import Seen
from teacher.filters import question_ngrams, reason_to_drop
from teacher.self_edit import Implication
from teacher.support import support

if TYPE_CHECKING:
    from rich.table import Table

TABLES = "table-values"
"""Kind of the lines that are read off tables without a writer."""
_STAGES = ("completions", "failed", "unparsed", "lines")
_DROPS = ("length", "refusal", "language", "leak", "exact", "near")
_ENDS = ("kept", "supported", "inferred")
_HEADS = {"exact": "exact duplicate", "near": "near duplicate"}


class Funnel(Record):
    """How many completions and lines each stage had, by kind."""

    counts: dict[str, dict[str, int]]
    """By kind and stage."""

    def total(self, stage: str) -> int:
        """Return the count of a stage over all kinds."""
        return sum(counts.get(stage, 0) for counts in self.counts.values())

    @property
    def supported_share(self) -> float | None:
        """Share of the kept lines whose numbers, dates and names all occur in the section; None without any."""
        kept = self.total("kept")
        return self.total("supported") / kept if kept else None

    @property
    def _table(self) -> tuple[list[str], list[list[str]]]:
        """Head and rows, stages without a count left out."""
        stages = [s for s in (*_STAGES, *_DROPS, *_ENDS) if self.total(s) or s in ("completions", "lines", "kept")]
        rows = [[kind, *(f"{counts.get(s, 0):,}" for s in stages)] for kind, counts in self.counts.items()]
        rows.append(["all", *(f"{self.total(s):,}" for s in stages)])
        return ["kind", *(_HEADS.get(stage, stage) for stage in stages)], rows

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

    @property
    def text(self) -> str:
        """The table as lines of an error message."""
        return "\n".join(
            f"  {kind}: " + ", ".join(f"{count:,} {_HEADS.get(stage, stage)}" for stage, count in counts.items())
            for kind, counts in self.counts.items()
        )


class Kept(NamedTuple):
    """The rows of one piece."""

    rows: tuple[CorpusRow, ...]
    lines: tuple[Implication, ...]

    @property
    def tokens(self) -> int:
        """Of all rows."""
        return sum(row.tokens for row in self.rows)


class Corpus:
    """The rows so far."""

    def __init__(self, writer: WriterRef, licence: str, seed: int, count: Callable[[str], int]) -> None:
        """`count` gives the tokens of a text."""
        self._writer, self._licence, self._seed, self._count = writer, licence, seed, count
        self._seen = Seen()
        self._grams: dict[str, frozenset[str]] = {}
        self._counts: dict[str, Counter[str]] = {}
        self.rows: list[CorpusRow] = []
        self.pieces: Counter[str] = Counter()
        """By kind."""
        self.spent: Counter[str] = Counter()
        """Tokens kept by kind, over both splits."""
        self.train_tokens = 0
        """Tokens kept in the training split."""

    @property
    def funnel(self) -> Funnel:
        """What every stage had so far."""
        return Funnel(counts={kind: dict(counts) for kind, counts in self._counts.items()})

    def add(self, written: Written) -> Kept:
        """Add what passes the filters of a piece, and return it."""
        kind, draft = written.piece.kind.name, written.draft
        counts = self._counts.setdefault(kind, Counter())
        self.pieces[kind] += 1
        counts["completions"] += 1
        if draft.failure:
            counts["failed"] += 1
            return Kept((), ())
        lines = lines_in(written)
        counts["unparsed"] += not lines
        return self._keep(written.piece.passage, kind, lines, written.prompt_digest, written.piece.sample)

    def add_statements(self, passage: Passage) -> Kept:
        """Add the values in a section's tables, read off without a writer; what may be wrong is left out."""
        found = statements_of(passage.section)
        if not found:
            return Kept((), ())
        counts = self._counts.setdefault(TABLES, Counter())
        self.pieces[TABLES] += 1
        counts["uncertain"] += sum(each.uncertain for each in found)
        lines = [Implication(text=each.text) for each in found if not each.uncertain]
        return self._keep(passage, TABLES, lines, "", 0)

    def _keep(self, passage: Passage, kind: str, lines: Sequence[Implication], prompt_digest: str, sample: int) -> Kept:
        counts, text = self._counts[kind], passage.task.document.text
        if passage.id not in self._grams:
            self._grams[passage.id] = question_ngrams(passage.task.comparison_questions, text)
        counts["lines"] += len(lines)
        kept = []
        for number, line in enumerate(lines):
            reason = reason_to_drop(line.line, text, self._grams[passage.id]) or self._seen.add(line.line)
            counts[reason or "kept"] += 1
            if reason is None:
                row = self._row(passage, kind, line, f"{passage.id}/{kind}/{sample}/{number}", prompt_digest, sample)
                counts[row.support] += 1
                kept.append((row, line))
        found = Kept(tuple(row for row, _ in kept), tuple(line for _, line in kept))
        self.rows += found.rows
        self.spent[kind] += found.tokens
        self.train_tokens += found.tokens if passage.split == "train" else 0
        return found

    def _row(
        self, passage: Passage, kind: str, line: Implication, id_: str, prompt_digest: str, sample: int
    ) -> CorpusRow:
        section, written = passage.section, kind != TABLES
        return CorpusRow(
            id=id_,
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
            support=support(line.line, passage.task.document.text).verdict if written else "supported",
            source=passage.source,
            licence=self._licence,
        )
