"""Training sequences: what a self-edit says, in tokens, with the tokens that carry loss."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from evaluation.answers import AnswerFormat, encode_answer
from evaluation.errors import ScoringError
from evaluation.grids.text import output_spans
from evaluation.tasks import Document
from student.config import UpdateRecipe
from teacher.self_edit import Implication, SelfEdit


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
    """What was got and what is allowed."""


class TrainingData(NamedTuple):
    """What a self-edit gives to train on."""

    sequences: tuple[TrainingSequence, ...]
    skipped: tuple[SkippedLine, ...]


def build_sequences(
    edit: SelfEdit, document: Document, tokenizer: Any, recipe: UpdateRecipe, answer_format: AnswerFormat
) -> TrainingData:
    """Return one sequence for each implication, in order, then the passage where the recipe asks for it.

    A sequence is the tokenizer's beginning token where it has one, the text, and its end token where it has one. A
    question with its answer is worded as in scoring. No line is cut: one that does not fit is left out and recorded.

    Args:
        edit: The parsed self-edit; one without implications gives the passage alone.
        document: Gives the title and the passage.
        tokenizer: The student's Hugging Face tokenizer.
        recipe: `loss_on`, `include_passage`, `title_prefix` and `max_sequence_tokens` are used; resolve the edit's
            training spec first (`UpdateRecipe.with_spec`).
        answer_format: The wrapper of questions.
    """
    sequences: list[TrainingSequence] = []
    skipped: list[SkippedLine] = []
    lines = list(enumerate(edit.implications))
    if recipe.include_passage:
        lines.append((-1, Implication(text=document.text)))
    title = f"{document.title}\n" if recipe.title_prefix and document.title else ""
    for index, line in lines:
        if line.answer is None:
            made = _statement(title + line.text, tokenizer)
        else:
            try:
                made = _answered(line.text, line.answer, tokenizer, recipe, answer_format)
            except ScoringError as error:
                skipped.append(SkippedLine(index, SkipReason.NO_BOUNDARY, str(error)))
                continue
        problem = _problem(index, made, recipe)
        if problem is None:
            sequences.append(TrainingSequence(*made))
        else:
            skipped.append(problem)
    return TrainingData(tuple(sequences), tuple(skipped))


_Tokens = tuple[tuple[int, ...], tuple[bool, ...]]


def _statement(text: str, tokenizer: Any) -> _Tokens:
    """Return the tokens of a statement, all of which carry loss."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    body = tokenizer(text, add_special_tokens=False)["input_ids"]
    tokens = (*([] if bos is None else [bos]), *body, *([] if eos is None else [eos]))
    return tokens, (True,) * len(tokens)


def _answered(question: str, answer: str, tokenizer: Any, recipe: UpdateRecipe, answer_format: AnswerFormat) -> _Tokens:
    """Return the tokens of a question with its answer and the end token, with loss where the recipe wants it."""
    encoded = encode_answer(tokenizer, question, answer, answer_format)
    eos = tokenizer.eos_token_id
    tokens = (*encoded.tokens, *([] if eos is None else [eos]))
    prompt = encoded.prompt_length
    asked: tuple[bool, ...] = (recipe.loss_on == "all",) * prompt
    if recipe.loss_on == "outputs":
        asked = _within(answer_format.render(question), tokenizer, prompt)
    return tokens, asked + (True,) * (len(tokens) - prompt)


def _within(prompt: str, tokenizer: Any, length: int) -> tuple[bool, ...]:
    """Return which of a prompt's tokens begin within the output of a demonstration."""
    places = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    spans = output_spans(prompt)
    inside = [any(first <= start < end for first, end in spans) for start, _ in places]
    return (False,) * (length - len(inside)) + tuple(inside)


def _problem(index: int, made: _Tokens, recipe: UpdateRecipe) -> SkippedLine | None:
    """Return why the tokens cannot be trained on, or None when they can."""
    length = len(made[0])
    if length > recipe.max_sequence_tokens:
        detail = f"{length} tokens, allowed are {recipe.max_sequence_tokens} (student.recipe.max_sequence_tokens)"
        return SkippedLine(index, SkipReason.TOO_LONG, detail)
    if length < 2:
        return SkippedLine(index, SkipReason.TOO_SHORT, f"{length} tokens, at least 2 are needed to predict one")
    return None
