"""Answers of a student that reads a text in its context and is not updated.

After Reinforcement-Learned Teachers (arXiv 2506.08388, section 3), which reward an explanation by the log-probability
of the solution given it. The common prefix of a context's questions is read once, and each continues from its keys and
values; a model that cannot do that on a padded batch reads the context once for each question.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from evaluation.common.errors import ScoringError
from evaluation.exact_match import (
    AnswerFormat,
    AnswerScore,
    EncodedAnswer,
    LabelBatch,
    answer_batch,
    answer_scores,
    context_length,
    encode_questions,
    end_tokens_of,
    has_direct_head,
    label_logits,
)
from evaluation.prefixes import behind_prefixes, shares_prefixes
from evaluation.tasks import Question
from student.bank.scoring import ScoringFailure, SlotScores, whole_scores
from student.config import PASSAGE_TEMPLATE


def score_in_context(
    model: Any,
    tokenizer: Any,
    contexts: Sequence[str],
    questions: Sequence[Sequence[Question]],
    answer_format: AnswerFormat,
    *,
    places: int = 16_384,
    template: str = PASSAGE_TEMPLATE,
) -> list[SlotScores]:
    """Return the scores of each context's questions, in order.

    They are those of `score_answers` with the context in front of the question, to rounding. A context too long for the
    model's positions, without a token boundary before an answer, or with logits that are not finite fails alone.

    Args:
        model: A Hugging Face causal language model; used in evaluation mode, its mode is restored.
        tokenizer: Its tokenizer.
        contexts: K texts; may be empty.
        questions: Of each context, any number.
        answer_format: The wrapper that the student was trained with.
        places: Most tokens of a pass, contexts and padding included, unless one question has more; changes no score.
        template: Text before the question, with `{context}` once.

    Raises:
        ScoringError: The template does not hold `{context}` once.
    """
    if template.count("{context}") != 1:
        raise ScoringError(f"in-context template: got {template!r}. Allowed: a text with {{context}} exactly once.")
    done: dict[int, SlotScores] = {}
    encoded: dict[int, list[EncodedAnswer]] = {}
    most = context_length(model)
    for k, (context, mine) in enumerate(zip(contexts, questions, strict=True)):
        opened = answer_format.behind(template.replace("{context}", context))
        try:
            rows = encode_questions(tokenizer, mine, opened, most)
        except ScoringError as error:
            done[k] = ScoringFailure(str(error))
            continue
        if rows:
            encoded[k] = rows
        else:
            done[k] = []
    was_training = model.training
    model.eval()
    try:
        done.update(_scored(model, tokenizer, encoded, places) if encoded else {})
    finally:
        model.train(was_training)
    return [done[k] for k in range(len(contexts))]


def _scored(
    model: Any, tokenizer: Any, encoded: Mapping[int, list[EncodedAnswer]], places: int
) -> dict[int, SlotScores]:
    ends, direct, shared = end_tokens_of(model, tokenizer), has_direct_head(model), shares_prefixes(model)
    found: dict[int, list[AnswerScore | None]] = {k: [] for k in encoded}
    for part in _passes(encoded, places):
        logits, batch = _logits(model, [rows for _, rows in part], direct_head=direct, shared=shared)
        count = sum(len(rows) for _, rows in part)
        scores = iter(answer_scores(logits, batch.labels, batch.rows, count, ends))
        for k, rows in part:
            found[k] += [next(scores) for _ in rows]
    return {k: whole_scores(scored) for k, scored in found.items()}


def _width(rows: Sequence[EncodedAnswer]) -> int:
    """Return the places of the longest row, whose last token is only ever a label."""
    return max(len(row.tokens) for row in rows) - 1


def _passes(encoded: Mapping[int, list[EncodedAnswer]], places: int) -> Iterator[list[tuple[int, list[EncodedAnswer]]]]:
    """Yield contexts of like length that fit into one pass, each with some of its questions, in their order."""
    part: list[tuple[int, list[EncodedAnswer]]] = []
    count = 0
    for k in sorted(encoded, key=lambda k: _width(encoded[k])):
        rows, width = encoded[k], _width(encoded[k])
        size = max(1, places // width)
        for start in range(0, len(rows), size):
            piece = rows[start : start + size]
            if part and (count + len(piece)) * width > places:
                yield part
                part, count = [], 0
            part.append((k, piece))
            count += len(piece)
    if part:
        yield part


def _common_prefix(rows: Sequence[EncodedAnswer]) -> int:
    """Return how many tokens all rows begin with, each prompt's last one left out: its logits tell the first label."""
    first, last = min(row.tokens for row in rows), max(row.tokens for row in rows)
    most = min(row.prompt_length for row in rows) - 1
    return next((i for i in range(most) if first[i] != last[i]), most)


def _logits(
    model: Any, sets: Sequence[Sequence[EncodedAnswer]], *, direct_head: bool, shared: bool
) -> tuple[Tensor, LabelBatch]:
    """Return the logits (L, V) at the places before the labels, and the batch they are of.

    With `shared` this is what follows the common prefix of each set.
    """
    device = next(model.parameters()).device
    if not shared:
        batch = answer_batch([row for rows in sets for row in rows], device)
        with torch.inference_mode():
            return label_logits(model, batch.input_ids, batch.positions, direct_head=direct_head), batch
    prefixes = [rows[0].tokens[: _common_prefix(rows)] for rows in sets]
    owned = [(k, row) for k, rows in enumerate(sets) for row in rows]
    tails = [EncodedAnswer(row.tokens[len(prefixes[k]) :], row.prompt_length - len(prefixes[k])) for k, row in owned]
    batch, last = answer_batch(tails, device), max(len(row.tokens) for _, row in owned) - 2
    with torch.inference_mode():
        extra = behind_prefixes(model, prefixes, [k for k, _ in owned], batch.input_ids.shape[1], last)
        return label_logits(model, batch.input_ids, batch.positions, direct_head=direct_head, extra=extra), batch
