"""The proxy reward: answers of a student that reads a self-edit in its context and is not updated.

After Reinforcement-Learned Teachers (arXiv 2506.08388, section 3), which reward an explanation by the log-probability
of the solution given it. A context is read once and shared by its questions: their rows start from its keys and values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

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
from student.scoring import ScoringFailure, SlotScores

TEMPLATE = "Passage: {context}\n"
"""What stands before each question."""


def score_in_context(
    model: Any,
    tokenizer: Any,
    contexts: Sequence[str],
    questions: Sequence[Sequence[Question]],
    answer_format: AnswerFormat,
    *,
    places: int = 16_384,
) -> list[SlotScores]:
    """Return the scores of each context's questions, in order, as with the context in front of the question.

    Args:
        model: Causal language model of transformers, in evaluation mode.
        tokenizer: Its tokenizer; a question's prompt must begin where the context's last token ends.
        contexts: K texts; braces in them are left as they are.
        questions: K lists.
        answer_format: Of the questions.
        places: Token places of one forward pass, at most; bounds memory.
    """
    limit = getattr(model.config, "max_position_embeddings", None)
    done: dict[int, SlotScores] = {}
    rows: dict[int, list[EncodedAnswer]] = {}
    for k, (context, asked) in enumerate(zip(contexts, questions, strict=True)):
        opening = TEMPLATE.replace("{context}", context).replace("{", "{{").replace("}", "}}")
        with_context = answer_format.model_copy(update={"prompt": opening + answer_format.prompt})
        try:
            encoded = encode_questions(tokenizer, asked, with_context) if asked else []
        except ScoringError as error:
            done[k] = ScoringFailure(str(error))
            continue
        longest = max((len(row.tokens) for row in encoded), default=0)
        if limit is not None and longest > limit:
            done[k] = ScoringFailure(f"got {longest} tokens with the context, the model takes {limit}")
        elif not encoded:
            done[k] = []
        else:
            rows[k] = encoded
    ends = end_tokens_of(model, tokenizer)
    for group in _groups(rows, places):
        done.update(zip(group, _score(model, [rows[k] for k in group], ends), strict=True))
    return [done[k] for k in range(len(contexts))]


def _groups(rows: dict[int, list[EncodedAnswer]], places: int) -> Iterator[list[int]]:
    """Yield contexts of like length that fit into one pass."""
    group: list[int] = []
    size = 0
    for k in sorted(rows, key=lambda k: max(len(row.tokens) for row in rows[k])):
        needed = sum(len(row.tokens) for row in rows[k])
        if group and size + needed > places:
            yield group
            group, size = [], 0
        group.append(k)
        size += needed
    if group:
        yield group


def _common_prefix(rows: Sequence[EncodedAnswer]) -> int:
    """Return how many tokens all rows begin with; at least one stays in front of every answer."""
    first, last = min(row.tokens for row in rows), max(row.tokens for row in rows)
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return min(shared, *(row.prompt_length - 1 for row in rows))


def _score(model: Any, sets: Sequence[Sequence[EncodedAnswer]], ends: frozenset[int]) -> list[SlotScores]:
    """Return the scores of some contexts: their shared beginnings in one pass, then all questions behind them."""
    device = model.device
    prefixes = [_common_prefix(rows) for rows in sets]
    width = max(prefixes)
    heads_KP = torch.zeros(len(sets), width, dtype=torch.long)
    seen_KP = torch.zeros(len(sets), width, dtype=torch.long)
    for k, (rows, prefix) in enumerate(zip(sets, prefixes, strict=True)):
        if prefix:  # padded on the left, so that questions follow at once
            heads_KP[k, width - prefix :] = torch.tensor(rows[0].tokens[:prefix])
            seen_KP[k, width - prefix :] = 1
    owner_N = torch.tensor([k for k, rows in enumerate(sets) for _ in rows])
    tails = [row.tokens[prefixes[k] : -1] for k, rows in enumerate(sets) for row in rows]
    length = max(map(len, tails))
    ids_NT = torch.zeros(len(tails), length, dtype=torch.long)
    mask_NT = torch.zeros_like(ids_NT)
    for n, tail in enumerate(tails):
        ids_NT[n, : len(tail)] = torch.tensor(tail)
        mask_NT[n, : len(tail)] = 1
    starts_N1 = torch.tensor([prefixes[k] for k in owner_N.tolist()])[:, None]
    positions_NT = (starts_N1 + torch.arange(length)).clamp_(max=_last_position(model, width + length))
    with torch.inference_mode():
        cache = _read(model, heads_KP, seen_KP, owner_N)
        out = model(
            input_ids=ids_NT.to(device),
            attention_mask=torch.cat([seen_KP[owner_N], mask_NT], dim=1).to(device),
            position_ids=positions_NT.to(device),
            past_key_values=cache,
            use_cache=cache is not None,
        )
    logits_NTV = out.logits
    picked, labels, owners = [], [], []
    for n, row in enumerate(row for rows in sets for row in rows):
        prefix = prefixes[int(owner_N[n])]
        first, last = row.prompt_length - 1 - prefix, len(row.tokens) - 1 - prefix
        picked.append(logits_NTV[n, first:last])
        labels += list(row.tokens[row.prompt_length :])
        owners += [n] * (last - first)
    found = answer_scores(
        torch.cat(picked).float(),
        torch.tensor(labels, device=device),
        torch.tensor(owners, device=device),
        len(tails),
        ends,
    )
    scores = iter(found)
    return [_whole([next(scores) for _ in rows]) for rows in sets]


def _last_position(model: Any, needed: int) -> int:
    limit = getattr(model.config, "max_position_embeddings", None)
    return needed if limit is None else limit - 1


def _read(model: Any, heads_KP: torch.Tensor, seen_KP: torch.Tensor, owner_N: torch.Tensor) -> Any:
    """Return the keys and values of the contexts, one copy for each question; None where nothing is shared."""
    if heads_KP.shape[1] == 0:
        return None
    out = model(
        input_ids=heads_KP.to(model.device),
        attention_mask=seen_KP.to(model.device),
        position_ids=(seen_KP.cumsum(1) - 1).clamp_(min=0).to(model.device),
        use_cache=True,
    )
    cache = out.past_key_values
    cache.batch_select_indices(owner_N.to(model.device))
    return cache


def _whole(scores: Sequence[AnswerScore | None]) -> SlotScores:
    present = [score for score in scores if score is not None]
    if len(present) < len(scores):
        return ScoringFailure(f"logits of {len(scores) - len(present)} of {len(scores)} questions are not finite")
    return present
