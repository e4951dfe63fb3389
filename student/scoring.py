"""Questions put to many adapters in one forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from evaluation.answers import (
    AnswerFormat,
    AnswerScore,
    EncodedAnswer,
    answer_scores,
    encode_questions,
    end_tokens_of,
)
from evaluation.errors import ScoringError
from evaluation.tasks import Question
from student.adapters import Adapter
from student.banked_linear import FlatLayout
from student.banked_model import BankedModel
from student.batching import Line, lay_out
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
    max_pass_places: int,
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
    for group in _groups(encoded, max_slots, max_pass_places):
        scores = _score_group(student, [adapters[k] for k in group], [encoded[k] for k in group], ends)
        done.update(zip(group, scores, strict=True))
    return [done[k] for k in range(len(adapters))]


def _groups(
    encoded: Mapping[int, Sequence[EncodedAnswer]], max_slots: int, max_pass_places: int
) -> Iterator[list[int]]:
    """Yield slots that fit in one forward pass, similar in size so that little of it is padding."""
    places = {k: sum(len(row.tokens) - 1 for row in rows) for k, rows in encoded.items()}
    group: list[int] = []
    for k in sorted(encoded, key=lambda k: -places[k]):
        grown = [*group, k]
        if group and (len(grown) > max_slots or len(grown) * places[grown[0]] > max_pass_places):
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
    layers = {name for adapter in adapters if adapter is not None for name in adapter.factors}
    shapes = {name: shape for name, shape in student.shapes.items() if name in layers}
    layout = FlatLayout(shapes, max((a.rank for a in adapters if a is not None), default=1))
    batch = lay_out([[_line(row) for row in rows] for rows in encoded], student.device, packed=student.packed)
    if shapes:
        flat = stack(layout, adapters).to(student.device, student.dtype)
        student.attach(layout.views(flat), [1.0 if a is None else a.alpha / a.rank for a in adapters])
    try:
        with torch.inference_mode():
            logits = student.label_logits(batch)
    finally:
        student.detach()
    labels = [len(row.tokens) - row.prompt_length for rows in encoded for row in rows]
    owners = torch.arange(len(labels)).repeat_interleave(torch.tensor(labels)).to(student.device)
    scores = iter(answer_scores(logits, batch.labels, owners, len(labels), end_tokens))
    return [_whole([next(scores) for _ in rows]) for rows in encoded]


def _line(answer: EncodedAnswer) -> Line:
    """Return an encoded answer with its own tokens as labels."""
    tokens = np.array(answer.tokens, dtype=np.int64)
    labels = np.where(np.arange(1, len(tokens)) >= answer.prompt_length, tokens[1:], -1)
    return Line(tokens[:-1], labels)


def _whole(scores: Sequence[AnswerScore | None]) -> SlotScores:
    """Return a slot's scores, or a failure when any is missing."""
    present = [score for score in scores if score is not None]
    if len(present) < len(scores):
        return ScoringFailure(f"logits of {len(scores) - len(present)} of {len(scores)} questions are not finite")
    return present
