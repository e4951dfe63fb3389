"""Questions put to many adapters in one forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from evaluation.answers import (
    AnswerFormat,
    AnswerScore,
    EncodedAnswer,
    answer_batch,
    answer_scores,
    encode_questions,
    end_tokens_of,
)
from evaluation.errors import ScoringError
from evaluation.tasks import Question
from student.adapters import Adapter
from student.banked_linear import FlatLayout
from student.banked_model import BankedModel
from student.stacks import misfit, stack


class ScoringFailure(NamedTuple):
    """Why a slot has no scores; its neighbours have theirs."""

    reason: str


SlotScores = list[AnswerScore] | ScoringFailure
"""One score for each question of a slot, or the reason why there is none."""


def score_slots(
    student: BankedModel,
    base_digest: str,
    adapters: Sequence[Adapter | None],
    questions: Sequence[Sequence[Question]],
    tokenizer: Any,
    answer_format: AnswerFormat,
    *,
    max_slots: int,
    max_step_tokens: int,
) -> list[SlotScores]:
    """Return the scores of K slots, in order; see `LoraBank.score`."""
    done: dict[int, SlotScores] = {}
    encoded: dict[int, list[EncodedAnswer]] = {}
    for k, (adapter, asked) in enumerate(zip(adapters, questions, strict=True)):
        problem = "" if adapter is None else misfit(adapter, student.shapes, base_digest)
        if problem or not asked:
            done[k] = ScoringFailure(problem) if problem else []
            continue
        try:
            encoded[k] = encode_questions(tokenizer, asked, answer_format)
        except ScoringError as error:
            done[k] = ScoringFailure(str(error))
    ends = end_tokens_of(student.model, tokenizer)
    for group in _groups(encoded, max_slots, max_step_tokens):
        scores = _score_group(student, [adapters[k] for k in group], [encoded[k] for k in group], ends)
        done.update(zip(group, scores, strict=True))
    return [done[k] for k in range(len(adapters))]


def _groups(
    encoded: Mapping[int, Sequence[EncodedAnswer]], max_slots: int, max_step_tokens: int
) -> Iterator[list[int]]:
    """Yield slots that fit in one forward pass, similar in length so that little of it is padding."""
    widths = {k: max(len(row.tokens) for row in rows) for k, rows in encoded.items()}
    group: list[int] = []
    for k in sorted(encoded, key=lambda k: (-widths[k], -len(encoded[k]))):
        grown = [*group, k]
        places = len(grown) * max(len(encoded[j]) for j in grown) * widths[grown[0]]
        if group and (len(grown) > max_slots or places > max_step_tokens):
            yield group
            grown = [k]
        group = grown
    if group:
        yield group


def _score_group(
    student: BankedModel,
    adapters: Sequence[Adapter | None],
    encoded: Sequence[Sequence[EncodedAnswer]],
    end_tokens: frozenset[int],
) -> list[SlotScores]:
    """Return the scores of the slots of one forward pass; a base slot has zero factors."""
    layout = FlatLayout(student.shapes, max((a.rank for a in adapters if a is not None), default=1))
    flat = stack(layout, adapters).to(student.device, student.dtype)
    scales = [1.0 if a is None else a.alpha / a.rank for a in adapters]
    most = max(len(rows) for rows in encoded)
    padded = [row for rows in encoded for row in (*rows, *[None] * (most - len(rows)))]
    batch = answer_batch(padded, student.device)
    student.attach(layout.views(flat), scales)
    try:
        with torch.inference_mode():
            logits = student.label_logits(batch.input_ids, batch.positions)
    finally:
        student.detach()
    scores = iter(answer_scores(logits, batch.labels, batch.rows, sum(map(len, encoded)), end_tokens))
    return [_whole([next(scores) for _ in rows]) for rows in encoded]


def _whole(scores: Sequence[AnswerScore | None]) -> SlotScores:
    """Return a slot's scores, or a failure when any is missing."""
    present = [score for score in scores if score is not None]
    if len(present) < len(scores):
        return ScoringFailure(f"logits of {len(scores) - len(present)} of {len(scores)} questions are not finite")
    return present
