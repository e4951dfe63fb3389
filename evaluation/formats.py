"""The form in which a student is asked: as a plain prompt, behind worked examples, or as a chat message.

Every form is resolved once, from the tokenizer alone, to an `AnswerFormat`, which training, scoring, `ask` and `serve`
all use. So exact match stays one forward pass in each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from evaluation.common.checkpoints import Checkpoint
from evaluation.common.errors import ModelError, ScoringError
from evaluation.exact_match import AnswerFormat, context_length, score_answers
from evaluation.tasks import Question
from evaluation.thoughts import NO_THOUGHTS

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
