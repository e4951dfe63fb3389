"""Training sequences: the lines of a self-edit in tokens, and which of them carry loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from evaluation.common.errors import ScoringError
from evaluation.exact_match import AnswerFormat, encode_answer
from evaluation.tasks import Document, Line
from student.config import UpdateRecipe


@dataclass(frozen=True)
class TrainingSequence:
    """One sequence to train on."""

    tokens: tuple[int, ...]
    """T token ids, at least 2."""
    loss_mask: tuple[bool, ...]
    """T flags: predicting this token carries loss. The first is ignored, because nothing stands before it."""

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
    """What the line has, and what is allowed."""


class TrainingData(NamedTuple):
    """A self-edit in tokens."""

    sequences: tuple[TrainingSequence, ...]
    skipped: tuple[SkippedLine, ...]


def build_sequences(
    lines: Sequence[Line], document: Document, tokenizer: Any, recipe: UpdateRecipe, answer_format: AnswerFormat
) -> TrainingData:
    """Return one sequence for each line, in order, then the passage where the recipe asks for it.

    A sequence is the tokenizer's beginning token where it has one, the text, and its end token where it has one. A
    question with its answer is worded as in scoring. No line is cut: one that does not fit is left out and recorded.

    Args:
        lines: What a self-edit is expanded to (`Domain.expand`); none gives the passage alone.
        document: Gives the title and the passage.
        tokenizer: The student's Hugging Face tokenizer.
        recipe: `loss_on`, `include_passage`, `title_prefix` and `max_sequence_tokens` are used; resolve the edit's
            training spec first (`UpdateRecipe.with_spec`).
        answer_format: The wrapper of questions.
    """
    sequences: list[TrainingSequence] = []
    skipped: list[SkippedLine] = []
    numbered = list(enumerate(lines))
    if recipe.include_passage:
        numbered.append((-1, Line(document.text)))
    title = f"{document.title}\n" if recipe.title_prefix and document.title else ""
    for index, line in numbered:
        try:
            if line.answer is None:
                tokens, mask = _statement(title + line.text, tokenizer)
            else:
                tokens, mask = _answered(line, line.answer, tokenizer, recipe, answer_format)
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
            sequences.append(TrainingSequence(tokens, mask))
    return TrainingData(tuple(sequences), tuple(skipped))


_Tokens = tuple[tuple[int, ...], tuple[bool, ...]]


def _statement(text: str, tokenizer: Any) -> _Tokens:
    """Return the tokens of a statement, all of which carry loss."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    body = tokenizer(text, add_special_tokens=False)["input_ids"]
    tokens = (*([] if bos is None else [bos]), *body, *([] if eos is None else [eos]))
    return tokens, (True,) * len(tokens)


def _answered(line: Line, answer: str, tokenizer: Any, recipe: UpdateRecipe, answer_format: AnswerFormat) -> _Tokens:
    """Return the tokens of a question with its answer and the end token, with loss where the recipe wants it."""
    encoded = encode_answer(tokenizer, line.text, answer, answer_format)
    prompt, opening = encoded.prompt_length, len(answer_format.opening)
    tokens = (*encoded.tokens, *_ending(tokenizer, answer_format))
    rendered = answer_format.render(line.text)
    mask: tuple[bool, ...] = (recipe.loss_on == "all",) * prompt
    if recipe.loss_on == "outputs":
        before = opening + answer_format.prompt.index("{question}")
        spans = [(before + first, before + end) for first, end in line.outputs]
        mask = _within(rendered, spans, tokenizer, prompt)
    elif recipe.loss_on == "all" and opening:
        mask = _within(rendered, [(opening, len(rendered))], tokenizer, prompt)
    return tokens, mask + (True,) * (len(tokens) - prompt)


def _ending(tokenizer: Any, answer_format: AnswerFormat) -> list[int]:
    """Return the tokens that end an answer."""
    if answer_format.ending is not None:
        return list(tokenizer(answer_format.ending, add_special_tokens=False)["input_ids"])
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def _within(prompt: str, spans: Sequence[tuple[int, int]], tokenizer: Any, length: int) -> tuple[bool, ...]:
    """Return which of a prompt's tokens begin within a span of characters."""
    places = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    inside = [any(first <= start < end for first, end in spans) for start, _ in places]
    return (False,) * (length - len(inside)) + tuple(inside)
