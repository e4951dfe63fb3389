"""Questions put to many adapters at once: exact scores by one forward pass, and written answers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from evaluation.common.errors import ModelError, ScoringError
from evaluation.engines.vllm import AdapterHandle, EngineFailure, EngineRequest, VllmEngine
from evaluation.exact_match import AnswerScore, EncodedAnswer, answer_scores, prompt_ids
from evaluation.generation import gumbel_noise, have_stopped, row_key
from student.adapters import Adapter, save_adapter
from student.bank.model import BankedModel
from student.bank.packing import LabelledTokens, lay_out
from student.bank.reuse import KnownStates


class ScoringFailure(NamedTuple):
    """Why a slot has no scores; its neighbours have theirs."""

    reason: str


class Written(NamedTuple):
    """A greedy continuation of a prompt."""

    text: str
    """Without special tokens."""
    tokens: tuple[int, ...]
    """Every token, the end token and what pads it included."""
    log_probabilities: tuple[float, ...]
    """Of each token, natural, at most 0."""
    tops: tuple[Mapping[int, float], ...] = ()
    """At each token's place the log-probabilities of as many of the likeliest tokens as `TokenChoice` records."""


class TokenChoice:
    """Takes each next token, the likeliest or a drawn one, and records log-probabilities without keeping all logits."""

    def __init__(self, draws: Sequence[tuple[float, int]] = (), top: int = 0) -> None:
        """Decide for rows of prompts; without `draws` all are greedy.

        Args:
            draws: Temperature (0 is greedy) and seed of each row; what a row draws does not depend on the others.
            top: Tokens whose log-probabilities are recorded at each place, the likeliest first.
        """
        drawn = {row: (heat, row_key(seed, "", 0)) for row, (heat, seed) in enumerate(draws) if heat > 0}
        self._rows, self._top = torch.tensor(list(drawn), dtype=torch.long), top
        self._heats = torch.tensor([heat for heat, _ in drawn.values()])
        self._keys = torch.tensor([key for _, key in drawn.values()], dtype=torch.long)
        self.steps: list[torch.Tensor] = []
        """Of each step the log-probabilities (B,) of the taken tokens."""
        self.tops: list[tuple[torch.Tensor, torch.Tensor]] = []
        """Of each step the log-probabilities (B, `top`) of the likeliest tokens, and these."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (B, V) whose largest is the token to take."""
        logits, taken = scores.float(), scores
        if len(self._rows):  # the argmax after Gumbel noise is a draw from the softmax
            rows, heats, keys = (each.to(scores.device) for each in (self._rows, self._heats, self._keys))
            noise = gumbel_noise(keys, len(self.steps), scores.shape[1])
            taken = logits.double().index_copy(0, rows, logits[rows].double() / heats[:, None] + noise)
        total = logits.logsumexp(-1, keepdim=True)
        self.steps.append((logits.gather(-1, taken.argmax(-1, keepdim=True)) - total)[:, 0])
        values, tokens = logits.topk(self._top)
        self.tops.append((values - total, tokens))
        return taken


class Decoding(NamedTuple):
    """How a continuation is written; by default greedily, up to an end token of the checkpoint's own."""

    choice: TokenChoice
    """For one call: it keeps what it recorded."""
    end_tokens: frozenset[int]
    """In place of the checkpoint's own; none writes on."""
    stop_strings: tuple[str, ...]

    def arguments(self, tokenizer: Any, width: int) -> dict[str, Any]:
        """Return those of `generate` that end the continuations of prompts of `width` tokens."""
        decode = partial(tokenizer.decode, skip_special_tokens=True)

        def stopped(input_ids: torch.Tensor, _scores: object) -> torch.Tensor:
            rows = input_ids[:, width:].tolist()
            return input_ids.new_tensor(have_stopped(rows, self.stop_strings, decode)).bool()

        criteria = {"stopping_criteria": [stopped]} if self.stop_strings else {}
        return {"eos_token_id": sorted(self.end_tokens) or None, **criteria}


SlotScores = list[AnswerScore] | ScoringFailure
"""One score for each question of a slot, or the reason why there is none."""


def whole_scores(scores: Sequence[AnswerScore | None]) -> SlotScores:
    """Return a slot's scores, or a failure when any is missing."""
    present = [score for score in scores if score is not None]
    if len(present) < len(scores):
        return ScoringFailure(f"logits of {len(scores) - len(present)} of {len(scores)} questions are not finite")
    return present


def check_pairs(what: str, adapters: Sequence[Adapter | None], lists: Sequence[Sequence[object]]) -> None:
    """Refuse another number of lists than of adapters."""
    if len(adapters) != len(lists):
        raise ScoringError(f"{what}: got {len(adapters)} adapters and {len(lists)} lists; give one each.")


def groups_of_slots(
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


def score_group(
    student: BankedModel,
    adapters: Sequence[Adapter | None],
    encoded: Sequence[Sequence[EncodedAnswer]],
    end_tokens: frozenset[int],
    known: KnownStates,
) -> list[SlotScores]:
    """Return the scores of the slots of one forward pass; questions in `known` pass the upper blocks alone."""
    lines = [
        [LabelledTokens.of(row.tokens, np.arange(len(row.tokens)) >= row.prompt_length) for row in rows]
        for rows in encoded
    ]
    batch = lay_out(lines, student.device, packed=student.packed)
    with student.using(adapters), torch.inference_mode(), known.used(lines, batch):
        logits = student.label_logits(batch)
    labels = [len(row.tokens) - row.prompt_length for rows in encoded for row in rows]
    owners = torch.arange(len(labels)).repeat_interleave(torch.tensor(labels)).to(student.device)
    scores = iter(answer_scores(logits, batch.labels, owners, len(labels), end_tokens))
    return [whole_scores([next(scores) for _ in rows]) for rows in encoded]


def generate_group(
    student: BankedModel,
    adapters: Sequence[Adapter | None],
    prompts: Sequence[Sequence[str | Sequence[int]]],
    tokenizer: Any,
    max_new_tokens: int,
    decoding: Decoding | None = None,
) -> list[list[Written]]:
    """Return the continuations of the prompts of slots that are computed together, left-padded."""
    most = max(map(len, prompts))
    filler = prompts[0][0]
    rows = [prompt for mine in prompts for prompt in (*mine, *[filler] * (most - len(mine)))]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    encoded = [prompt_ids(tokenizer, row) if isinstance(row, str) else list(row) for row in rows]
    width = max(map(len, encoded))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in encoded], device=student.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in encoded], device=student.device)
    choice = TokenChoice() if decoding is None else decoding.choice
    # A checkpoint's own penalties would make greedy decoding differ from exact match and from other engines.
    given = {"do_sample": False, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "pad_token_id": pad}
    given |= {} if decoding is None else decoding.arguments(tokenizer, width)
    with student.unpacked(), student.using(adapters), torch.inference_mode():
        output = student.model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, logits_processor=[choice], **given
        )[:, width:]
    texts = tokenizer.batch_decode(output, skip_special_tokens=True)
    values = torch.stack(choice.steps, dim=1).tolist()
    tops = [(its.tolist(), likeliest.tolist()) for its, likeliest in choice.tops]
    found = [
        Written(text, tuple(own), tuple(its), tuple(dict(zip(t[row], v[row], strict=True)) for v, t in tops))
        for row, (text, own, its) in enumerate(zip(texts, output.tolist(), values, strict=True))
    ]
    return [found[k * most : k * most + len(mine)] for k, mine in enumerate(prompts)]


def answer_with_vllm(
    engine: VllmEngine,
    adapters: Sequence[Adapter | None],
    prompts: Sequence[Sequence[str]],
    tokenizer: Any,
    *,
    max_new_tokens: int,
    end_tokens: Sequence[int] = (),
) -> list[list[str] | ScoringFailure]:
    """Return the same as `LoraBank.generate`, written by vLLM with an adapter for each slot.

    The engine runs the student's base, with a largest rank that holds all adapters; `end_tokens` end an answer beside
    the tokenizer's own.

    Raises:
        ScoringError: There are not as many lists of prompts as adapters.
        GenerationError: The engine failed as a whole.
    """
    check_pairs("vllm", adapters, prompts)
    written: list[list[str] | ScoringFailure] = [[] for _ in adapters]
    with tempfile.TemporaryDirectory(prefix="preceptor-students-") as scratch:
        handles: dict[int, AdapterHandle] = {}
        try:
            for k, adapter in enumerate(adapters):
                if adapter is not None:
                    directory = Path(scratch) / adapter.digest[:20]
                    try:
                        if not directory.exists():
                            save_adapter(adapter, directory)
                        handles[k] = engine.register(directory, adapter.digest)
                    except ModelError as error:
                        written[k] = ScoringFailure(str(error))
            asked = [(k, prompt) for k, found in enumerate(written) if isinstance(found, list) for prompt in prompts[k]]
            requests = [
                EngineRequest(prompt_ids(tokenizer, prompt), max_new_tokens, handles.get(k), end_tokens=end_tokens)
                for k, prompt in asked
            ]
            completions = engine.generate(requests)
        finally:
            for handle in set(handles.values()):
                engine.forget(handle)
    for (k, _), completion in zip(asked, completions, strict=True):
        texts = written[k]
        if isinstance(completion, EngineFailure):
            written[k] = ScoringFailure(f"vllm: {completion.detail}")
        elif isinstance(texts, list):
            texts.append(tokenizer.decode(list(completion.token_ids), skip_special_tokens=True))
    return written
