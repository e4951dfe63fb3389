"""Updates: what goes into a bank, what comes out, and how an update can end."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from evaluation.answers import AnswerFormat
from evaluation.tasks import Document
from student.adapters import Adapter
from student.batching import SlotWork
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
class UpdateJob:
    """One self-edit to take into an adapter."""

    key: str
    """Names the job in results and messages."""
    sequences: tuple[TrainingSequence, ...]
    recipe: UpdateRecipe
    """Resolved: the self-edit's training spec is already in it."""
    seed: int
    """Of the initial A and of the order of sequences."""
    skipped: tuple[SkippedLine, ...] = ()
    """Lines that did not become sequences."""
    note: str = ""
    """What else is to be told of a success, such as examples that were left out."""
    initial: Adapter | None = None
    """Continue from this adapter of the same rank, alpha and layers; None starts from a new one."""

    @property
    def work(self) -> SlotWork:
        """What a slot of a bank has to do for it."""
        return SlotWork(self.sequences, self.recipe, self.seed)

    @property
    def left_out(self) -> str:
        """What became of the lines that are not trained on; empty when there are none."""
        if not self.skipped:
            return self.note
        first = self.skipped[0]
        lines = f"{len(self.skipped)} of {len(self.sequences) + len(self.skipped)} lines left out"
        told = f"{lines}; the first is line {first.line}: {first.reason.value}, {first.detail}"
        return f"{told}; {self.note}" if self.note else told


@dataclass(frozen=True, eq=False)
class UpdateResult:
    """What became of one job."""

    key: str
    outcome: UpdateOutcome
    detail: str = ""
    """Why it failed, or what was left out of a success; empty when there is nothing to say."""
    adapter: Adapter | None = None
    losses: tuple[float, ...] = ()
    """Token mean of the loss in nats before each optimizer step."""
    steps: int = 0
    """Optimizer steps done."""
    tokens: int = 0
    """Token places computed that were not padding, over all steps."""
    padded_tokens: int = 0
    """Token places computed, padding included."""


def make_job(
    key: str,
    edit: SelfEdit,
    document: Document,
    tokenizer: Any,
    recipe: UpdateRecipe,
    answer_format: AnswerFormat,
    seed: int,
    initial: Adapter | None = None,
) -> UpdateJob:
    """Return the job that takes one self-edit into an adapter, with the edit's training spec in its recipe.

    Args:
        key: Names the job in results.
        edit: The parsed self-edit.
        document: What the edit is about.
        tokenizer: The student's Hugging Face tokenizer.
        recipe: The run's recipe.
        answer_format: The wrapper of questions, the same as in scoring.
        seed: Of the initial A and of the order of sequences.
        initial: Adapter to continue from, or None.
    """
    resolved = recipe.with_spec(edit.training)
    data = build_sequences(edit, document, tokenizer, resolved, answer_format)
    return UpdateJob(key, data.sequences, resolved, seed, data.skipped, initial=initial)
