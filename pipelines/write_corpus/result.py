"""What a corpus came to: the record behind its card, its table and its MLflow run."""

from __future__ import annotations

from pydantic import Field

from evaluation.engines.ledger import Spent
from pipelines.records import Record
from pipelines.reports.format import percent
from pipelines.write_corpus.allocate import KindGain
from pipelines.write_corpus.funnel import Funnel


class KindCount(Record):
    """What was written and kept of a kind, over both splits."""

    pieces: int
    rows: int
    tokens: int


class CorpusResult(Record):
    """The result for scripts (`--json`), also `corpus.json` of the corpus."""

    name: str
    out: str
    writer: str
    adapter_digest: str | None
    tokenizer: str
    """Whose tokens are counted."""
    student: str | None
    """That tried the kinds; None without one."""
    documents: int
    sections: int
    rows: int
    """Of both splits, replayed text included."""
    tokens: int
    """Of all rows."""
    train_tokens: int
    """Of the training split, replayed text left out; what `--tokens` asks for."""
    replay_tokens: int = 0
    kinds: dict[str, KindCount]
    funnel: Funnel
    gains: tuple[KindGain, ...] = ()
    """What the student gained by kind, the most per token first; empty without one."""
    metric: str = ""
    """Score of questions that gains are in."""
    shares: tuple[dict[str, float], ...] = ()
    """By part of the budget: share of the pieces by kind."""
    diversity: dict[str, float]
    by_kind: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Diversity by kind."""
    licences: tuple[str, ...]
    spent: Spent | None = None
    """At an endpoint, killed runs included."""
    notes: tuple[str, ...] = ()
    """What a reader must know beside the figures."""
    seconds: float = 0.0
    mlflow_run_id: str = ""

    @property
    def cost(self) -> str:
        """What an endpoint took, for people; empty without one."""
        if self.spent is None:
            return ""
        return f"{self.spent.calls:,} calls, {self.spent.tokens:,} tokens"

    @property
    def lines(self) -> list[str]:
        """What a command prints below the funnel."""
        found = [f"{gain.kind}: {100 * gain.gain:+.1f} points a piece, {_rate(gain)}" for gain in self.gains]
        found += [f"Note: {note}" for note in self.notes]
        measures = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in self.diversity.items())
        supported = percent(self.funnel.supported_share)
        found.append(f"Supported: {supported} % of the texts. Diversity: {measures}.")
        found.append(
            f"Corpus: {self.rows:,} texts, {self.tokens:,} tokens in {self.out}" + (f"; {self.cost}" * bool(self.cost))
        )
        return found


def _rate(gain: KindGain) -> str:
    return f"{100 * gain.per_tokens:+.1f} ± {100 * gain.error:.1f} points a 1,000 tokens ({gain.pieces} tried)"
