"""Exact-match answers from one teacher-forced forward pass.

Greedy decoding writes the gold answer if and only if each of its tokens is the argmax after the prompt and the gold
tokens before it, so one forward pass over prompt and answer decides what a generation loop would, for every question
of a batch at once. Nothing here knows about adapters: plain models and banks of adapters are scored with the same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator

from evaluation.errors import ScoringError
from evaluation.tasks import Question

if TYPE_CHECKING:
    import torch


class AnswerFormat(BaseModel):
    """How a question is put to a student, in training sequences and in scoring alike."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str = "Question: {question}\nAnswer:"
    """Text before the answer; `{question}` occurs once."""
    joiner: str = Field(default=" ", max_length=8)
    """Text between prompt and answer, at most 8 characters; tokenized with the answer."""

    @field_validator("prompt")
    @classmethod
    def _one_question(cls, value: str) -> str:
        if value.count("{question}") != 1:
            raise ValueError("must contain {question} exactly once")
        return value

    def render(self, question: str) -> str:
        """Return the prompt for a question, without the answer."""
        return self.prompt.replace("{question}", question)


class EncodedAnswer(NamedTuple):
    """A prompt with its gold answer in tokens."""

    tokens: list[int]
    """Beginning-of-sequence token where the tokenizer has one, prompt, answer; no end token."""
    prompt_length: int
    """Number of tokens before the answer."""


class AnswerScore(NamedTuple):
    """How a student answered one question."""

    exact: bool
    """Greedy decoding writes the gold answer's tokens."""
    probability: float
    """Product of the gold tokens' probabilities, in [0, 1]."""
    log_probability: float
    """Sum of the gold tokens' natural log-probabilities, at most 0."""
    predicted: tuple[int, ...]
    """Argmax token at each place of the gold answer, given the gold tokens before it."""
    empty: bool
    """The first argmax is an end token: the student says nothing (collapse)."""


@dataclass(frozen=True)
class LabelBatch:
    """Right-padded rows with the places whose next token is a label."""

    input_ids: torch.Tensor
    """(N, T) token ids, each row without its last token, which is only ever a label."""
    positions: torch.Tensor
    """(L,) indices into the N * T flattened places, ascending; the token after each is a label."""
    labels: torch.Tensor
    """(L,) token ids."""
    rows: torch.Tensor
    """(L,) answer that each label belongs to: its row's place among the rows that have labels, ascending."""


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Return the tokens that a student reads for a prompt: its opening token, where it has one, and the text."""
    bos = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    return [*bos, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]


def encode_answer(tokenizer: Any, question: str, answer: str, answer_format: AnswerFormat) -> EncodedAnswer:
    """Return prompt and answer in tokens, cut where greedy decoding from the prompt would start.

    The whole text is tokenized at once and the prompt alone a second time; the answer is what the whole has after the
    prompt. A tokenizer that merges across that boundary is refused rather than scored on tokens no prompt can lead to.

    Args:
        tokenizer: A Hugging Face tokenizer.
        question: The question, without prompt.
        answer: The gold answer.
        answer_format: The wrapper.

    Raises:
        ScoringError: The prompt's tokens are not a prefix of the whole's, or the answer has no tokens.
    """
    prompt_text = answer_format.render(question)
    prompt = prompt_ids(tokenizer, prompt_text)
    whole = prompt_ids(tokenizer, prompt_text + answer_format.joiner + answer)
    if whole[: len(prompt)] != prompt or len(whole) == len(prompt):
        raise ScoringError(
            f"answer: question {question!r} with answer {answer!r} has no token boundary between prompt and answer "
            f"(joiner {answer_format.joiner!r}). Allowed: the prompt's tokens are a prefix of the whole's. "
            "Change answer_format.prompt or answer_format.joiner, usually to a joiner that starts with a space."
        )
    return EncodedAnswer(whole, len(prompt))


def encode_questions(tokenizer: Any, questions: Sequence[Question], answer_format: AnswerFormat) -> list[EncodedAnswer]:
    """Return each question with its gold answer in tokens.

    Raises:
        ScoringError: As for `encode_answer`.
    """
    return [encode_answer(tokenizer, q.question, q.answer, answer_format) for q in questions]


def answer_batch(rows: Sequence[EncodedAnswer | None], device: Any = None) -> LabelBatch:
    """Return the rows right-padded to the longest; a None row is all padding and carries no label.

    Args:
        rows: N encoded answers, at least one of them not None.
        device: Where the tensors go; None keeps them on the CPU.
    """
    import numpy as np
    import torch

    width = max(len(row.tokens) for row in rows if row is not None) - 1
    ids = np.zeros((len(rows), width), dtype=np.int64)
    positions: list[int] = []
    labels: list[int] = []
    owners: list[int] = []
    real = 0
    for i, row in enumerate(rows):
        if row is not None:
            length = len(row.tokens)
            ids[i, : length - 1] = row.tokens[:-1]
            positions.extend(range(i * width + row.prompt_length - 1, i * width + length - 1))
            labels.extend(row.tokens[row.prompt_length :])
            owners.extend([real] * (length - row.prompt_length))
            real += 1
    places, targets, of_row = (torch.tensor(values, device=device) for values in (positions, labels, owners))
    return LabelBatch(torch.from_numpy(ids).to(device), places, targets, of_row)


def answer_scores(
    logits: torch.Tensor, labels: torch.Tensor, rows: torch.Tensor, count: int, end_tokens: frozenset[int]
) -> list[AnswerScore | None]:
    """Return the score of each answer; None where a logit is not finite, so that no argmax means anything.

    Args:
        logits: (L, V) at the places before each label.
        labels: (L,) gold tokens.
        rows: (L,) answer in [0, count) of each label, ascending; each answer has at least one.
        count: Number of answers.
        end_tokens: Tokens that end a generation.
    """
    log_probabilities = logits.float().log_softmax(-1)
    gold = log_probabilities.gather(1, labels[:, None]).squeeze(1).double().cpu()
    predicted = logits.argmax(-1).cpu()
    hits = (predicted == labels.cpu()).tolist()
    sums = gold.new_zeros(count).index_add_(0, rows.cpu(), gold)
    tokens: list[list[int]] = [[] for _ in range(count)]
    exact = [True] * count
    for row, token, hit in zip(rows.tolist(), predicted.tolist(), hits, strict=True):
        tokens[row].append(token)
        exact[row] &= hit
    finite, probabilities, logs = (values.tolist() for values in (sums.isfinite(), sums.exp(), sums))
    return [
        AnswerScore(exact[i], probabilities[i], logs[i], tuple(tokens[i]), tokens[i][0] in end_tokens)
        if finite[i]
        else None
        for i in range(count)
    ]


def end_tokens_of(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the tokens that end a generation: the tokenizer's and those of the model's generation config."""
    config = getattr(model, "generation_config", None)
    own = getattr(config, "eos_token_id", None)
    listed = own if isinstance(own, list | tuple) else [own]
    return frozenset(int(token) for token in (*listed, tokenizer.eos_token_id) if token is not None)


def first_line(text: str) -> str:
    """Return the first line with text in it, stripped: base models go on with questions of their own."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def score_answers(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    answer_format: AnswerFormat,
    batch_size: int = 64,
) -> list[AnswerScore]:
    """Return the score of each question, in order, for a plain causal language model.

    Args:
        model: A Hugging Face causal language model; used in evaluation mode, its mode is restored.
        tokenizer: Its tokenizer.
        questions: Any number of questions.
        answer_format: The wrapper that the student was trained with.
        batch_size: Questions in one forward pass, at least 1; changes speed and memory alone.

    Raises:
        ScoringError: A question has no token boundary before its answer, or a logit is not finite.
    """
    import torch

    from evaluation.label_logits import has_direct_head, label_logits

    encoded = encode_questions(tokenizer, questions, answer_format)
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].tokens))
    ends = end_tokens_of(model, tokenizer)
    scores: list[AnswerScore | None] = [None] * len(encoded)
    was_training = model.training
    model.eval()
    try:
        direct = has_direct_head(model)
        device = next(model.parameters()).device
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = answer_batch([encoded[i] for i in chosen], device)
            with torch.inference_mode():
                logits = label_logits(model, batch.input_ids, batch.positions, direct_head=direct)
            parts = answer_scores(logits, batch.labels, batch.rows, len(chosen), ends)
            for i, score in zip(chosen, parts, strict=True):
                scores[i] = score
    finally:
        model.train(was_training)
    if None in scores:
        bad = [questions[i].question for i, score in enumerate(scores) if score is None]
        raise ScoringError(
            f"answer: the logits of {len(bad)} of {len(scores)} questions are not finite, the first is {bad[0]!r}. "
            "Check the checkpoint, or the update that made it."
        )
    return [score for score in scores if score is not None]
