"""Exact-match answers from one teacher-forced forward pass.

Greedy decoding writes the gold answer if and only if each of its tokens is the argmax after the prompt and the gold
tokens before it, so one forward pass over prompt and answer decides what a generation loop would, for every question
of a batch at once. Plain models and banks of adapters are scored with the same code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field, field_validator

from evaluation.common.data import Frozen
from evaluation.common.errors import ScoringError
from evaluation.tasks import Question

if TYPE_CHECKING:
    from torch import Tensor

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class AnswerFormat(Frozen):
    """The prompt around a question, in training sequences and in scoring alike."""

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
    """Tokens before the answer."""


class AnswerScore(NamedTuple):
    """A student's answer to one question."""

    exact: bool
    probability: float
    """Product of the gold tokens' probabilities, in [0, 1]."""
    log_probability: float
    """Sum of the gold tokens' natural log-probabilities, at most 0."""
    predicted: tuple[int, ...]
    """Argmax token at each position of the gold answer, given the gold tokens before it."""
    empty: bool
    """The first argmax is an end token: the student is silent (collapse)."""


class LabelBatch(NamedTuple):
    """Right-padded rows with the positions whose next token is a label."""

    input_ids: Tensor
    """(N, T) token ids, each row without its last token, which is only ever a label."""
    positions: Tensor
    """(L,) indices into the N * T flattened places, ascending; the token after each is a label."""
    labels: Tensor
    """(L,) token ids."""
    rows: Tensor
    """(L,) row of each label, ascending."""


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Return a prompt's tokens, after the beginning-of-sequence token where the tokenizer has one."""
    bos = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    return [*bos, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]


def encode_answer(tokenizer: Any, question: str, answer: str, answer_format: AnswerFormat) -> EncodedAnswer:
    """Return prompt and answer in tokens: the answer is what the whole text's tokens have after the prompt's.

    Raises:
        ScoringError: The tokenizer merges across that boundary, where greedy decoding would start.
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
    """Return each question with its gold answer in tokens; raises as `encode_answer`."""
    return [encode_answer(tokenizer, q.question, q.answer, answer_format) for q in questions]


def answer_batch(rows: Sequence[EncodedAnswer], device: Any = None) -> LabelBatch:
    """Return N of at least one encoded answers, right-padded to the longest, on a device (None is the CPU)."""
    import numpy as np
    import torch

    width = max(len(row.tokens) for row in rows) - 1
    ids = np.zeros((len(rows), width), dtype=np.int64)
    positions: list[int] = []
    labels: list[int] = []
    owners: list[int] = []
    for i, row in enumerate(rows):
        length = len(row.tokens)
        ids[i, : length - 1] = row.tokens[:-1]
        positions.extend(range(i * width + row.prompt_length - 1, i * width + length - 1))
        labels.extend(row.tokens[row.prompt_length :])
        owners.extend([i] * (length - row.prompt_length))
    places, targets, of_row = (torch.tensor(values, device=device) for values in (positions, labels, owners))
    return LabelBatch(torch.from_numpy(ids).to(device), places, targets, of_row)


def answer_scores(
    logits: Tensor, labels: Tensor, rows: Tensor, count: int, end_tokens: frozenset[int]
) -> list[AnswerScore | None]:
    """Return the score of each of `count` answers; None where a logit is not finite, so that no argmax means anything.

    Args:
        logits: (L, V) at the positions before each label.
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
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = own if isinstance(own, list | tuple) else [own]
    return frozenset(int(token) for token in (*listed, tokenizer.eos_token_id) if token is not None)


def first_line(text: str) -> str:
    """Return the first line with text in it, stripped: base models continue with questions of their own."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def score_answers(
    model: Any, tokenizer: Any, questions: Sequence[Question], answer_format: AnswerFormat, batch_size: int = 64
) -> list[AnswerScore]:
    """Return the score of each question, in order, for a plain causal language model, whose mode is restored.

    `batch_size` (questions in one forward pass) changes speed and memory alone.

    Raises:
        ScoringError: A question has no token boundary before its answer, or a logit is not finite.
    """
    import torch

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


def label_hidden(model: Any, input_ids: Tensor, positions: Tensor, extra: Mapping[str, Any] = _NOTHING) -> Tensor:
    """Return the backbone's last hidden states (L, D) at `positions` (L,) of the N * T flattened places.

    `input_ids` (N, T) are right-padded. No attention mask is needed: under causal attention a token never sees what
    stands to its right, and positions count from the first token as they would without pads. `extra` are further
    arguments of the model's forward pass, for rows with another layout.
    """
    hidden: Tensor = model.base_model(input_ids=input_ids, use_cache=False, **extra).last_hidden_state
    return hidden.flatten(0, 1).index_select(0, positions)


def label_logits(
    model: Any, input_ids: Tensor, positions: Tensor, *, direct_head: bool, extra: Mapping[str, Any] = _NOTHING
) -> Tensor:
    """Return the logits (L, V) at `positions`, see `label_hidden`.

    `direct_head` applies the output head to the chosen hidden states alone, where `has_direct_head` allows it.
    """
    if direct_head:
        chosen: Tensor = model.get_output_embeddings()(label_hidden(model, input_ids, positions, extra))
        return chosen
    logits: Tensor = model(input_ids=input_ids, use_cache=False, **extra).logits
    return logits.flatten(0, 1).index_select(0, positions)


def has_direct_head(model: Any) -> bool:
    """Return whether the logits are a linear head applied to the backbone's last hidden state, and nothing more.

    Decided by trying both on four tokens, because some architectures scale or cap their logits in between.
    """
    import torch

    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear or model.base_model is model:
        return False
    ids = torch.arange(4, device=head.weight.device)[None] % head.weight.shape[0]
    with torch.inference_mode():
        whole = label_logits(model, ids, ids[0], direct_head=False)
        direct = label_logits(model, ids, ids[0], direct_head=True)
    return whole.shape == direct.shape and bool(torch.allclose(whole, direct, rtol=1e-3, atol=1e-5))
