"""The proxy reward: answers of a student that reads a self-edit in its context and is not updated.

After Reinforcement-Learned Teachers (arXiv 2506.08388, section 3), which reward an explanation by the log-probability
of the solution given it. What a context's questions begin with is read once; each goes on from its keys and values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from evaluation.answers import (
    AnswerFormat,
    AnswerScore,
    EncodedAnswer,
    LabelBatch,
    answer_batch,
    answer_scores,
    encode_questions,
    end_tokens_of,
    score_answers,
)
from evaluation.errors import ScoringError
from evaluation.label_logits import has_direct_head, label_logits
from evaluation.tasks import Question
from student.scoring import ScoringFailure, SlotScores

TEMPLATE = "Passage: {context}\n"
"""What stands before each question; the micro-student was pretrained to answer from it."""


class _InContext(AnswerFormat):
    """An answer format with a context in front, whatever characters the context holds."""

    opening: str

    def render(self, question: str) -> str:
        return self.opening + super().render(question)


class _Asked(NamedTuple):
    """Questions behind a context."""

    answer_format: _InContext
    rows: list[EncodedAnswer]
    longest: int
    """Places of the longest row."""


def score_in_context(
    model: Any,
    tokenizer: Any,
    contexts: Sequence[str],
    questions: Sequence[Sequence[Question]],
    answer_format: AnswerFormat,
    *,
    places: int = 16_384,
    template: str = TEMPLATE,
) -> list[SlotScores]:
    """Return the scores of each context's questions, in order.

    They are those of `score_answers` with the context in front of the question, to rounding. Models that cannot go on
    from keys and values of a padded batch read the context once for each question.

    Args:
        model: A Hugging Face causal language model; used in evaluation mode, its mode is restored.
        tokenizer: Its tokenizer.
        contexts: K texts; may be empty.
        questions: Of each context; may be none, which gives no scores.
        answer_format: The wrapper that the student was trained with.
        places: Most tokens of a forward pass, each question's context and padding included; bounds memory and changes
            no score. At least one question is asked in each pass.
        template: Text before the question, with `{context}` once.

    Returns:
        K items; a context too long for the model's positions, without a token boundary before an answer, or with
        logits that are not finite has a failure of its own.

    Raises:
        ScoringError: The template does not hold `{context}` once.
    """
    if template.count("{context}") != 1:
        raise ScoringError(f"in-context template: got {template!r}. Allowed: a text with {{context}} exactly once.")
    done: dict[int, SlotScores] = {}
    asked: dict[int, _Asked] = {}
    for k, (context, mine) in enumerate(zip(contexts, questions, strict=True)):
        opened = _InContext(**answer_format.model_dump(), opening=template.replace("{context}", context))
        found = _encode(model, tokenizer, mine, opened)
        if isinstance(found, _Asked):
            asked[k] = found
        else:
            done[k] = found
    was_training = model.training
    model.eval()
    try:
        if asked and _goes_on_from_contexts(model):
            done.update(_score_shared(model, tokenizer, asked, places))
        else:
            done.update({k: _score_plain(model, tokenizer, questions[k], each, places) for k, each in asked.items()})
    finally:
        model.train(was_training)
    return [done[k] for k in range(len(contexts))]


def _encode(
    model: Any, tokenizer: Any, questions: Sequence[Question], answer_format: _InContext
) -> _Asked | SlotScores:
    """Return a context's questions in tokens, or its outcome where there is nothing to ask."""
    if not questions:
        return []
    try:
        rows = encode_questions(tokenizer, questions, answer_format)
    except ScoringError as error:
        return ScoringFailure(str(error))
    longest = max(len(row.tokens) - 1 for row in rows)
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if most is not None and longest > most:
        return ScoringFailure(f"{longest} tokens with the context in front, the model takes at most {most}")
    return _Asked(answer_format, rows, longest)


def _score_plain(model: Any, tokenizer: Any, questions: Sequence[Question], asked: _Asked, places: int) -> SlotScores:
    """Return a context's scores, the context read again for each question."""
    try:
        size = max(1, places // asked.longest)
        return score_answers(model, tokenizer, questions, asked.answer_format, batch_size=size)
    except ScoringError as error:
        return ScoringFailure(str(error))


def _score_shared(model: Any, tokenizer: Any, asked: Mapping[int, _Asked], places: int) -> dict[int, SlotScores]:
    """Return the scores by context, each context read once in every pass that it is part of."""
    ends, direct = end_tokens_of(model, tokenizer), has_direct_head(model)
    found: dict[int, list[AnswerScore | None]] = {k: [] for k in asked}
    for part in _passes(asked, places):
        logits, batch = _shared_logits(model, [rows for _, rows in part], direct_head=direct)
        count = sum(len(rows) for _, rows in part)
        scores = iter(answer_scores(logits, batch.labels, batch.rows, count, ends))
        for k, rows in part:
            found[k] += [next(scores) for _ in rows]
    done: dict[int, SlotScores] = {}
    for k, scored in found.items():
        present = [score for score in scored if score is not None]
        missing = f"logits of {len(scored) - len(present)} of {len(scored)} questions are not finite"
        done[k] = present if len(present) == len(scored) else ScoringFailure(missing)
    return done


def _passes(asked: Mapping[int, _Asked], places: int) -> Iterator[list[tuple[int, list[EncodedAnswer]]]]:
    """Yield contexts of like length that fit into one pass, each with some of its questions, in their order."""
    part: list[tuple[int, list[EncodedAnswer]]] = []
    count = 0
    for k in sorted(asked, key=lambda k: asked[k].longest):
        rows, width = asked[k].rows, asked[k].longest
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


def _shared_logits(
    model: Any, sets: Sequence[Sequence[EncodedAnswer]], *, direct_head: bool
) -> tuple[Tensor, LabelBatch]:
    """Return the logits (L, V) at the places before the labels, and the batch of what follows the contexts.

    Contexts are padded on the left, as in generation, so that distances stay what they are, for sliding windows too.
    """
    device = next(model.parameters()).device
    prefixes = [_common_prefix(rows) for rows in sets]
    width = max(prefixes)
    heads = torch.zeros(len(sets), width, dtype=torch.long)
    seen = torch.zeros_like(heads)
    for k, (rows, prefix) in enumerate(zip(sets, prefixes, strict=True)):
        heads[k, width - prefix :] = torch.tensor(rows[0].tokens[:prefix])
        seen[k, width - prefix :] = 1
    owned = [(k, row) for k, rows in enumerate(sets) for row in rows]
    owners = torch.tensor([k for k, _ in owned])
    tails = [EncodedAnswer(row.tokens[prefixes[k] :], row.prompt_length - prefixes[k]) for k, row in owned]
    batch = answer_batch(tails, device)
    positions = torch.tensor(prefixes)[owners, None] + torch.arange(batch.input_ids.shape[1])
    # Padding on the right may stand beyond the last position, where a model with a table of them has no entry.
    positions.clamp_(max=max(len(row.tokens) for _, row in owned) - 2)
    extra: dict[str, Any] = {
        "attention_mask": torch.cat([seen[owners], torch.ones_like(positions)], dim=1).to(device),
        "position_ids": positions.to(device),
    }
    with torch.inference_mode():
        if width:
            read = model.base_model(
                input_ids=heads.to(device),
                attention_mask=seen.to(device),
                position_ids=(seen.cumsum(1) - 1).clamp_(min=0).to(device),
                use_cache=True,
            )
            extra["past_key_values"] = read.past_key_values
            read.past_key_values.batch_select_indices(owners.to(device))
        return label_logits(model, batch.input_ids, batch.positions, direct_head=direct_head, extra=extra), batch


def _goes_on_from_contexts(model: Any) -> bool:
    """Return whether the model gives the same logits behind shared contexts as for each row alone.

    Decided by trying: architectures keep what they read in different ways, some have nothing that can be shared.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = [i * 7919 % vocabulary for i in range(1, 13)]
    rows = [EncodedAnswer(ids[:9], 7), EncodedAnswer([*ids[:5], *ids[9:12]], 6), EncodedAnswer(ids[3:7], 3)]
    plain = answer_batch(rows, next(model.parameters()).device)
    with torch.inference_mode():
        alone = label_logits(model, plain.input_ids, plain.positions, direct_head=False)
    try:
        shared, _ = _shared_logits(model, [rows[:2], rows[2:]], direct_head=False)
    except (TypeError, ValueError, AttributeError, LookupError, RuntimeError):
        return False
    tolerance = 1e-4 if alone.dtype in (torch.float32, torch.float64) else 0.1
    # False where a logit is not finite: then each context fails on its own.
    return bool((alone - shared).abs().max() <= tolerance * alone.abs().max())
