"""Exact match by one teacher-forced forward pass, for plain models and banks of adapters.

Greedy decoding produces the gold answer if and only if each of its tokens is the argmax given the prompt and the gold
tokens before it, so one forward pass replaces the generation loop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field, field_validator

from evaluation.common.checkpoints import Checkpoint
from evaluation.common.data import Frozen
from evaluation.common.errors import ModelError, ScoringError
from evaluation.common.text import NO_THOUGHTS, without_thoughts
from evaluation.tasks import Question

if TYPE_CHECKING:
    from torch import Tensor


class AnswerFormat(Frozen):
    """The prompt template of questions, in training and in scoring."""

    prompt: str = "Question: {question}\nAnswer:"
    """Text before the answer; `{question}` occurs once."""
    joiner: str = Field(default=" ", max_length=8)
    """Text between prompt and answer, tokenized with the answer, at most 8 characters."""
    opening: str = ""
    """Text before the prompt, such as worked examples; a passage goes between the two. It carries no loss."""
    ending: str | None = None
    """Text that ends an answer in training; None is the tokenizer's end token."""

    @field_validator("prompt")
    @classmethod
    def _one_question(cls, value: str) -> str:
        if value.count("{question}") != 1:
            raise ValueError("must contain {question} exactly once")
        return value

    def render(self, question: str) -> str:
        """Return the prompt for a question, without the answer."""
        return self.opening + self.prompt.replace("{question}", question)

    def behind(self, passage: str) -> AnswerFormat:
        """Return the format of questions that stand behind a passage."""
        return self.model_copy(update={"opening": self.opening + passage})


class EncodedAnswer(NamedTuple):
    """A prompt with its gold answer in tokens."""

    tokens: list[int]
    """BOS, if the tokenizer has one, prompt and answer; no end token."""
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
    """Argmax token at each position of the gold answer."""
    empty: bool
    """The first argmax is an end token (collapse)."""
    agreed: int
    """Tokens of the gold answer that greedy decoding writes before its first other one."""

    @property
    def written(self) -> tuple[int, ...]:
        """What greedy decoding writes, up to its first token that is not the gold answer's."""
        return self.predicted[: self.agreed + 1]

    @property
    def token_probability(self) -> float:
        """Geometric mean of the gold tokens' probabilities, in [0, 1]."""
        return math.exp(self.log_probability / len(self.predicted))


def begun_text(tokenizer: Any, score: AnswerScore) -> str:
    """Return how greedy decoding begins: up to its first token that is not the gold answer's, with `...` behind it."""
    text = str(tokenizer.decode(list(score.written), skip_special_tokens=True)).strip()
    return text if score.exact else f"{text} ..."


class LabelBatch(NamedTuple):
    """Right-padded rows with the positions of labels."""

    input_ids: Tensor
    """(N, T) token ids, each row without its last token."""
    positions: Tensor
    """(L,) ascending indices into the flattened N * T positions; the next token is a label."""
    labels: Tensor
    """(L,) token ids."""
    rows: Tensor
    """(L,) row of each label, ascending."""


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Return a prompt's tokens, with BOS if the tokenizer has one and no chat template has written it."""
    has_none = tokenizer.bos_token_id is None or prompt.startswith(tokenizer.bos_token)
    bos = [] if has_none else [int(tokenizer.bos_token_id)]
    return [*bos, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]


def encode_answer(tokenizer: Any, question: str, answer: str, answer_format: AnswerFormat) -> EncodedAnswer:
    """Return the tokens of prompt and answer; ScoringError if the tokenizer merges across their boundary."""
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


def context_length(model: Any) -> int | None:
    """Return how many tokens a model can be given at once; None where its configuration sets no limit."""
    limit: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit


def encode_questions(
    tokenizer: Any, questions: Sequence[Question], answer_format: AnswerFormat, limit: int | None = None
) -> list[EncodedAnswer]:
    """Encode questions with gold answers, each of at most `limit` tokens (`context_length`); see `encode_answer`.

    Texts to continue are put as they are.
    """
    plain = AnswerFormat(prompt="{question}")
    found = [
        encode_answer(tokenizer, q.question, q.answer, plain if q.is_continuation else answer_format) for q in questions
    ]
    for question, encoded in zip(questions, found, strict=True):
        width = len(encoded.tokens) - 1  # the last token is only a label
        if limit is not None and width > limit:
            raise ScoringError(
                f"answer: question {question.question[:200]!r} takes {width} tokens with its answer, the model has "
                f"{limit} positions. Leave it out, or shorten it."
            )
    return found


def answer_batch(rows: Sequence[EncodedAnswer], device: Any = None) -> LabelBatch:
    """Collate at least one encoded answer, right-padded, on a device (None is the CPU)."""
    import torch

    width = max(len(row.tokens) for row in rows) - 1
    ids = [row.tokens[:-1] + [0] * (width - len(row.tokens) + 1) for row in rows]
    placed = [
        (i * width + place - 1, row.tokens[place], i)
        for i, row in enumerate(rows)
        for place in range(row.prompt_length, len(row.tokens))
    ]
    columns = ids, *zip(*placed, strict=True)
    return LabelBatch(*(torch.tensor(column, device=device) for column in columns))


def answer_scores(
    logits: Tensor, labels: Tensor, rows: Tensor, count: int, end_tokens: frozenset[int]
) -> list[AnswerScore | None]:
    """Return the score of each of `count` answers; None if a logit is not finite.

    `logits` (L, V) are those before each of the gold tokens `labels` (L,); `rows` (L,) are their answers, in [0, count)
    and ascending, with at least one label each. `end_tokens` end a generation.
    """
    log_probabilities = logits.float().log_softmax(-1)
    gold = log_probabilities.gather(1, labels[:, None]).squeeze(1).double().cpu()
    predicted = logits.argmax(-1).cpu()
    hits = (predicted == labels.cpu()).tolist()
    sums = gold.new_zeros(count).index_add_(0, rows.cpu(), gold)
    tokens: list[list[int]] = [[] for _ in range(count)]
    exact, agreed = [True] * count, [0] * count
    for row, token, hit in zip(rows.tolist(), predicted.tolist(), hits, strict=True):
        tokens[row].append(token)
        exact[row] &= hit
        agreed[row] += exact[row]
    found = zip(exact, sums.exp().tolist(), sums.tolist(), tokens, agreed, strict=True)
    return [
        AnswerScore(hit, probability, log, tuple(written), written[0] in end_tokens, same)
        if math.isfinite(log)
        else None
        for hit, probability, log, written, same in found
    ]


def end_tokens_of(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the end tokens of the tokenizer and the model's generation config."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = own if isinstance(own, list | tuple) else [own]
    return frozenset(int(token) for token in (*listed, tokenizer.eos_token_id) if token is not None)


def first_line(text: str) -> str:
    """Return the first non-blank line behind any thoughts, stripped: base models continue with further questions."""
    return next((line.strip() for line in without_thoughts(text).splitlines() if line.strip()), "")


def score_answers(
    model: Any, tokenizer: Any, questions: Sequence[Question], answer_format: AnswerFormat, batch_size: int = 64
) -> list[AnswerScore]:
    """Return the score of each question, in order, for a plain causal language model, whose mode is restored.

    Raises:
        ScoringError: A question is too long or has no token boundary before its answer, or a logit is not finite.
    """
    import torch

    encoded = encode_questions(tokenizer, questions, answer_format, context_length(model))
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].tokens))
    ends = end_tokens_of(model, tokenizer)
    scores: dict[int, AnswerScore | None] = {}
    was_training = model.training
    model.eval()
    try:
        direct, device = has_direct_head(model), next(model.parameters()).device
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = answer_batch([encoded[i] for i in chosen], device)
            with torch.inference_mode():
                logits = label_logits(model, batch.input_ids, batch.positions, direct_head=direct)
            parts = answer_scores(logits, batch.labels, batch.rows, len(chosen), ends)
            scores.update(zip(chosen, parts, strict=True))
    finally:
        model.train(was_training)
    found = [score for _, score in sorted(scores.items()) if score is not None]
    if len(found) < len(questions):
        bad = [question.question for i, question in enumerate(questions) if scores[i] is None]
        raise ScoringError(
            f"answer: the logits of {len(bad)} of {len(questions)} questions are not finite, the first is {bad[0]!r}. "
            "Check the checkpoint, or the update that made it."
        )
    return found


def label_hidden(model: Any, input_ids: Tensor, positions: Tensor, extra: Mapping[str, Any] | None = None) -> Tensor:
    """Return the backbone's last hidden states (L, D) at `positions` (L,) of the flattened N * T positions.

    `input_ids` (N, T) are right-padded, so causal attention needs no mask. `extra` are further arguments of the forward
    pass.
    """
    hidden: Tensor = model.base_model(input_ids=input_ids, use_cache=False, **(extra or {})).last_hidden_state
    return hidden.flatten(0, 1).index_select(0, positions)


def label_logits(
    model: Any, input_ids: Tensor, positions: Tensor, *, direct_head: bool, extra: Mapping[str, Any] | None = None
) -> Tensor:
    """Return the logits (L, V) at `positions`; see `label_hidden`.

    `direct_head` applies the output head to these hidden states only, if `has_direct_head` allows it.
    """
    if direct_head:
        chosen: Tensor = model.get_output_embeddings()(label_hidden(model, input_ids, positions, extra))
        return chosen
    logits: Tensor = model(input_ids=input_ids, use_cache=False, **(extra or {})).logits
    return logits.flatten(0, 1).index_select(0, positions)


def has_direct_head(model: Any) -> bool:
    """Return whether logits are just a linear head on the last hidden state; tested on four tokens.

    Some architectures scale or cap them.
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


FormatName = Literal["auto", "plain", "few-shot", "chat"]
"""`plain` is `answer_format` as written; `few-shot` puts worked examples in front; `chat` applies the tokenizer's chat
template, with the examples as earlier turns; `auto` is the one in which the base answers most general questions."""

EXAMPLES = (
    ("What is the capital of Denmark?", "Copenhagen"),
    ("How many wheels does a bicycle have?", "2"),
    ("Who wrote Hamlet?", "William Shakespeare"),
)
"""They show that an answer is a few words; none of them is among the general questions."""
FORMAT_QUESTIONS = 24
"""General questions that decide the form `auto`."""
INSTRUCTION = "Answer with the answer alone, in as few words as possible."
_SLOT, _ANSWER = "{question}", "{answer}"


class Tried(NamedTuple):
    """How a base answers general questions in one form."""

    answer_format: AnswerFormat
    right: int
    """Questions answered correctly."""
    empty: int
    """Questions with an empty answer."""
    asked: int
    failure: str = ""
    """Why it could not be asked; then nothing is right."""


def few_shot_format(wording: AnswerFormat) -> AnswerFormat:
    """Return a plain wording behind worked examples in the same wording."""
    examples = "".join(f"{wording.render(asked)}{wording.joiner}{answer}\n\n" for asked, answer in EXAMPLES)
    return wording.model_copy(update={"opening": examples})


def chat_format(tokenizer: Any) -> AnswerFormat:
    """Return the form of a user's message in the tokenizer's chat template, answered by the assistant.

    Thoughts are switched off where the template has a switch. A template without a system role, such as Gemma's, gets
    the instruction in the first message.

    Raises:
        ModelError: The tokenizer has no chat template, or one that does not keep the question as it is.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            f"student.format: got chat, but the tokenizer of {getattr(tokenizer, 'name_or_path', '')!r} has no chat "
            "template. Set it to few-shot or plain, or use an instruction-tuned student."
        )
    turns = [{"role": role, "content": text} for pair in EXAMPLES for role, text in zip(_ROLES, pair, strict=True)]
    turns.append({"role": "user", "content": _SLOT})
    try:
        text = _rendered(tokenizer, [{"role": "system", "content": INSTRUCTION}, *turns])
    except Exception:  # templates raise whatever they like for a role that they do not know
        turns[0]["content"] = f"{INSTRUCTION}\n\n{turns[0]['content']}"
        text = _rendered(tokenizer, turns)
    opening, slot, rest = text.partition(_SLOT)
    answered = _rendered(tokenizer, [*turns, {"role": "assistant", "content": _ANSWER}], prompt=False)
    ending = answered.rpartition(_ANSWER)[2].strip()
    if not slot or _ANSWER not in answered:
        raise ModelError("student.format: the tokenizer's chat template does not keep messages as they are. Set plain.")
    return AnswerFormat(opening=opening, prompt=_SLOT + rest, joiner="", ending=ending)


def is_chat(tokenizer: Any, form: AnswerFormat) -> bool:
    """Return whether `form` is the tokenizer's chat template."""
    try:
        return form == chat_format(tokenizer)
    except ModelError:  # it has none, or none that fits
        return False


_ROLES = ("user", "assistant")


def _rendered(tokenizer: Any, turns: Sequence[Mapping[str, str]], *, prompt: bool = True) -> str:
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt, **NO_THOUGHTS))


def try_formats(student: Checkpoint, wording: AnswerFormat, questions: Sequence[Question]) -> dict[FormatName, Tried]:
    """Return how the base answers some questions in each form that its tokenizer allows, the plain one first."""
    forms: dict[FormatName, AnswerFormat] = {"plain": wording, "few-shot": few_shot_format(wording)}
    if getattr(student.tokenizer, "chat_template", None):
        forms["chat"] = chat_format(student.tokenizer)
    return {name: _tried(student, form, questions) for name, form in forms.items()}


def _tried(student: Checkpoint, form: AnswerFormat, questions: Sequence[Question]) -> Tried:
    most = context_length(student.model)
    longest = max((len(student.tokenizer(form.render(q.question))["input_ids"]) for q in questions), default=0)
    if most is not None and longest + 16 > most:
        return Tried(form, 0, 0, len(questions), f"{longest} tokens, the model takes at most {most}")
    try:
        scores = score_answers(student.model, student.tokenizer, questions, form)
    except ScoringError as error:
        return Tried(form, 0, 0, len(questions), str(error))
    return Tried(form, sum(score.exact for score in scores), sum(score.empty for score in scores), len(questions))


def best_format(tried: Mapping[FormatName, Tried]) -> FormatName:
    """Return the form with the most right answers; of equals, the first."""
    return max(tried, key=lambda name: tried[name].right)
