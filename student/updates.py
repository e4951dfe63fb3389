"""Updates: what goes into a bank, what comes out, and how an update can end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from evaluation.common.data import Frozen
from evaluation.exact_match import AnswerFormat
from evaluation.tasks import Document, Expansion, lines_of
from student.adapters import Adapter
from student.config import UpdateRecipe
from student.sequences import SkippedLine, TrainingSequence, build_sequences
from teacher.self_edit import SelfEdit


class UpdateOutcome(StrEnum):
    """How an update ended; only `ok` has an adapter."""

    OK = "ok"
    EMPTY_EDIT = "empty_edit"
    OVER_BUDGET = "over_budget"
    SEQUENCE_TOO_LONG = "sequence_too_long"
    INITIAL_MISMATCH = "initial_mismatch"
    NON_FINITE = "non_finite"
    OUT_OF_MEMORY = "out_of_memory"
    CANARY_FAILED = "canary_failed"


@dataclass(frozen=True, eq=False)
class UpdateRequest:
    """An update to make: training sequences, and how to train on them."""

    key: str
    """Names the update in results and messages."""
    sequences: tuple[TrainingSequence, ...]
    recipe: UpdateRecipe
    """Resolved: the self-edit's training spec is already in it."""
    seed: int
    """Of the initial A and of the order of sequences."""
    skipped: tuple[SkippedLine, ...] = ()
    """Lines that did not become sequences."""
    note: str = ""
    """For the result of a success, such as how many examples were left out."""
    initial: Adapter | None = None
    """Continue from this adapter of the same rank, alpha and layers; None starts from a new one."""

    @property
    def left_out(self) -> str:
        """Which lines are not trained on, and the note; empty when there is neither."""
        if not self.skipped:
            return self.note
        first = self.skipped[0]
        lines = f"{len(self.skipped)} of {len(self.sequences) + len(self.skipped)} lines left out"
        found = f"{lines}; the first is line {first.line}: {first.reason.value}, {first.detail}"
        return f"{found}; {self.note}" if self.note else found


@dataclass(frozen=True, eq=False)
class UpdateResult:
    """A finished update."""

    key: str
    outcome: UpdateOutcome
    detail: str = ""
    """Why it failed, or what was left out of a success; empty for neither."""
    adapter: Adapter | None = None
    losses: tuple[float, ...] = ()
    """Token mean of the loss in nats before each optimizer step."""
    steps: int = 0
    """Optimizer steps done."""
    tokens: int = 0
    """Training tokens computed over all steps, without padding."""
    padded_tokens: int = 0
    """The same, padding included."""


class BankUsage(Frozen):
    """Resources that training in banks took."""

    slots: int = 0
    """Most adapters trained at once."""
    tokens: int = 0
    """Training tokens computed over all steps, without padding."""
    places: int = 0
    """The same, padding included."""
    splits: int = 0
    """Passes that ran out of memory and were split."""
    peak_bytes: int | None = None
    """Most by which memory grew; None where it cannot be measured."""

    @property
    def padding_share(self) -> float | None:
        """Share of the places that were padding, in [0, 1); None when nothing was trained."""
        return 1.0 - self.tokens / self.places if self.places else None

    @classmethod
    def merged(cls, parts: Iterable[BankUsage]) -> BankUsage:
        """Return the usage of several banks, one after another."""
        usages = tuple(parts)
        return cls(
            slots=max((usage.slots for usage in usages), default=0),
            tokens=sum(usage.tokens for usage in usages),
            places=sum(usage.places for usage in usages),
            splits=sum(usage.splits for usage in usages),
            peak_bytes=max((usage.peak_bytes for usage in usages if usage.peak_bytes is not None), default=None),
        )


def make_request(
    key: str,
    edit: SelfEdit,
    document: Document,
    tokenizer: Any,
    recipe: UpdateRecipe,
    answer_format: AnswerFormat,
    seed: int,
    initial: Adapter | None = None,
    expansion: Expansion | None = None,
) -> UpdateRequest:
    """Return the update of a student by one self-edit, whose training spec changes the run's `recipe`.

    `answer_format` is that of scoring. `expansion` is what the task's domain makes of the edit; None takes its lines.
    For the rest see `UpdateRequest`.
    """
    resolved = recipe.with_spec(edit.training)
    expanded = expansion or Expansion(lines_of(edit))
    data = build_sequences(expanded.lines, document, tokenizer, resolved, answer_format)
    return UpdateRequest(key, data.sequences, resolved, seed, data.skipped, expanded.note, initial)
