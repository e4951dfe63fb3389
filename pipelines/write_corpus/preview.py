"""`--preview`: some lines of each kind, their yields, and what the whole corpus would take; no corpus, no MLflow run.

Completions stay in the store, and an endpoint's replies in its ledger, so that the corpus does not write them again.
"""

from __future__ import annotations

import time
from pathlib import Path

from pipelines.reports.format import duration, percent, plain_table
from pipelines.terminal import open_console
from pipelines.write_corpus.config import WriterRef
from pipelines.write_corpus.making import opened
from pipelines.write_corpus.output import CorpusRow
from pipelines.write_corpus.plan import CorpusRequest, Schedule

_PIECES, _BATCHES = 2, 2
"""Pieces of a kind that are written at once for its lines, and how often at most."""


def print_preview(ref: WriterRef, request: CorpusRequest, work_dir: Path, lines: int) -> None:
    """Print so many lines of each kind, and a table of yields with time and cost of the whole budget."""
    console = open_console()
    with opened(ref, request, work_dir) as making:
        making.loop.check_endpoints()
        corpus, writer = making.corpus, making.writer
        schedule, started = Schedule(making.passages, making.loop.seed("corpus")), time.perf_counter()
        shown: dict[str, list[CorpusRow]] = {kind.name: [] for kind in making.kinds}
        for _ in range(_BATCHES):
            few = [kind for kind in making.kinds if len(shown[kind.name]) < lines]
            for written in writer.write([schedule.next(kind) for kind in few for _ in range(_PIECES)]):
                shown[written.piece.kind.name] += corpus.add(written).rows
        took, spent, funnel = time.perf_counter() - started, making.loop.spent().get("teacher"), corpus.funnel
    for kind in making.kinds:
        console.print(f"\n{kind.name}: {kind.label}", markup=False, highlight=False)
        for row in shown[kind.name][:lines]:
            console.print(f"  [{row.support}] {row.text}", markup=False, highlight=False, soft_wrap=True)
    table = plain_table("Yield of each kind", "Tokens: of the kept lines, for each completion.")
    for head in ("kind", "completions", "lines", "kept (%)", "tokens"):
        table.add_column(head, justify="left" if head == "kind" else "right", overflow="fold")
    for kind in making.kinds:
        pieces, counts = corpus.pieces[kind.name], funnel.counts[kind.name]
        found, mean = counts.get("lines", 0), f"{corpus.spent[kind.name] / pieces:.0f}"
        table.add_row(kind.name, str(pieces), str(found), percent(counts.get("kept", 0) / max(1, found)), mean)
    console.print(table)
    whole, pieces = corpus.spent.total(), corpus.pieces.total()
    if not whole:
        console.print(f"Nothing was kept, so that no corpus can come of it:\n{funnel.text}", markup=False)
        return
    needed = request.tokens * pieces / whole
    parts = [f"{request.tokens:,} tokens spent evenly: about {needed:,.0f} completions"]
    if writer.written:
        parts.append(f"about {duration(needed * took / pieces)} at this pace")
    if spent is not None and spent.calls:
        parts.append(f"about {needed * spent.tokens / spent.calls:,.0f} tokens at the endpoint")
    console.print(", ".join(parts) + ".", markup=False, highlight=False, soft_wrap=True)
