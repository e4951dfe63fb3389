"""Updates: a self-edit's lines in tokens, what goes into a bank, what comes out, and how an update can end."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from evaluation.common.data import Frozen
from evaluation.common.errors import ScoringError
from evaluation.exact_match import AnswerFormat, encode_answer, prompt_ids
from evaluation.tasks import Document, Expansion, Line, lines_of
from student.adapters import Adapter
from student.config import PASSAGE_TEMPLATE, UpdateRecipe
from teacher.self_edit import LossOn, SelfEdit


@dataclass(frozen=True)
class TrainingSequence:
    """One sequence to train on."""

    tokens: tuple[int, ...]
    """T token ids, at least 2."""
    loss_mask: tuple[bool, ...]
    """T flags: predicting this token carries loss. The first is ignored, because nothing stands before it."""
    behind: tuple[int, ...] = ()
    """For context distillation the same text behind the passage, which ends with the tokens from the first one with
    loss on; else empty."""

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.loss_mask) or not any(self.loss_mask[1:]):
            raise ValueError(
                f"training sequence: got {len(self.tokens)} tokens and {len(self.loss_mask)} flags, "
                f"{sum(self.loss_mask[1:])} of them set after the first. "
                "Allowed: as many flags as tokens, at least one set after the first."
            )


class SkipReason(StrEnum):
    """Why a line did not become a training sequence."""

    TOO_LONG = "too_long"
    TOO_SHORT = "too_short"
    NO_BOUNDARY = "no_boundary"


class SkippedLine(NamedTuple):
    """A line of a self-edit that is not trained on."""

    line: int
    """Place among the implications; -1 for the document's own passage."""
    reason: SkipReason
    detail: str


class TrainingData(NamedTuple):
    """A self-edit in tokens."""

    sequences: tuple[TrainingSequence, ...]
    skipped: tuple[SkippedLine, ...]


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


_STATEMENT_LEAD = 5
"""First tokens of a statement that are not distilled: behind a passage they tell what follows passages, no fact."""


def build_sequences(
    lines: Sequence[Line], document: Document, tokenizer: Any, recipe: UpdateRecipe, answer_format: AnswerFormat
) -> TrainingData:
    """Return one sequence for each line, in order, then the passage where the recipe asks for it.

    A sequence is the tokenizer's beginning token where it has one, the text, and its end token where it has one. A
    question with its answer is worded as in scoring, by `answer_format`. No line is cut: one that does not fit is left
    out and recorded. The edit's training spec is already in the recipe (`UpdateRecipe.with_spec`).
    """
    distils = recipe.objective == "context_distillation"
    passage = PASSAGE_TEMPLATE.replace("{context}", document.text) if distils else ""
    sequences: list[TrainingSequence] = []
    skipped: list[SkippedLine] = []
    numbered = [*enumerate(lines), *([(-1, Line(document.text))] if recipe.include_passage else [])]
    title = f"{document.title}\n" if recipe.title_prefix and document.title else ""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ending = answer_format.ending
    turn = None if ending is None else tokenizer(ending, add_special_tokens=False)["input_ids"]

    def written(line: Line, passage: str) -> tuple[tuple[int, ...], int]:
        """Return the tokens of a line behind a passage, and how many of them are a prompt."""
        if line.answer is None:
            return (*prompt_ids(tokenizer, passage + title + line.text), *end), 0
        encoded = encode_answer(tokenizer, line.text, line.answer, answer_format.behind(passage))
        return (*encoded.tokens, *(end if turn is None else turn)), encoded.prompt_length

    for index, line in numbered:
        try:
            tokens, length = written(line, "")
            behind = written(line, passage)[0] if distils else ()
            prompt_loss = _prompt_loss(line, tokenizer, recipe, answer_format, length) if length else ()
        except ScoringError as error:
            skipped.append(SkippedLine(index, SkipReason.NO_BOUNDARY, str(error)))
            continue
        if len(tokens) > recipe.max_sequence_tokens:
            limit = f"allowed are {recipe.max_sequence_tokens} (student.update.max_sequence_tokens)"
            skipped.append(SkippedLine(index, SkipReason.TOO_LONG, f"{len(tokens)} tokens, {limit}"))
        elif len(tokens) < 2:
            detail = f"{len(tokens)} tokens, at least 2 are needed to predict one"
            skipped.append(SkippedLine(index, SkipReason.TOO_SHORT, detail))
        else:
            mask = prompt_loss + (True,) * (len(tokens) - len(prompt_loss))
            first = max(_first_common(tokens, behind), 0 if length else _STATEMENT_LEAD) if distils else 0
            mask = tuple(flag and place >= first for place, flag in enumerate(mask))
            if any(mask[1:]):
                sequences.append(TrainingSequence(tokens, mask, behind))
            else:
                detail = f"{len(tokens)} tokens, none of which can be distilled"
                skipped.append(SkippedLine(index, SkipReason.TOO_SHORT, detail))
    return TrainingData(tuple(sequences), tuple(skipped))


def _first_common(tokens: Sequence[int], behind: Sequence[int]) -> int:
    """Return the place in `tokens` from which on `behind` ends with the same tokens."""
    pairs = zip(reversed(tokens), reversed(behind), strict=False)
    return len(tokens) - sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _prompt_loss(
    line: Line, tokenizer: Any, recipe: UpdateRecipe, answer_format: AnswerFormat, length: int
) -> tuple[bool, ...]:
    """Return which of the `length` tokens before an answer carry loss."""
    prompt, opening = answer_format.render(line.text), len(answer_format.opening)
    loss_on: LossOn = recipe.loss_on
    if loss_on == "all" and recipe.objective == "context_distillation":
        loss_on = "answer"
    if loss_on == "answer" or (loss_on == "all" and not opening):
        return (loss_on == "all",) * length
    shift = opening + answer_format.prompt.index("{question}")
    spans = [(shift + first, shift + end) for first, end in line.outputs]
    if loss_on == "all":
        spans = [(opening, len(prompt))]
    places = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    inside = (any(first <= start < end for first, end in spans) for start, _ in places)
    return (*(False,) * (length - len(places)), *inside)
