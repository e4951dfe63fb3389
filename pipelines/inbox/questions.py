"""Generate questions for documents without any: a language model writes them, the frozen student filters them.

A question is kept if its answer is in the passage, and the student answers it with the passage in its context and not
without. So the document answers what is asked, and the student did not know it before. The questions are for evaluation
and never enter a prompt: a prompt is made of title and text alone (`teacher.prompts`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from evaluation.common.checkpoints import Checkpoint
from evaluation.exact_match import AnswerFormat
from evaluation.graders import normalize_answer
from evaluation.tasks import Question
from pipelines.inbox.documents import InboxDocument
from teacher.config import PromptName
from teacher.parsing.parser import parse_self_edit
from teacher.prompts import prompt_template
from teacher.samplers.sampler import Completion, FailedCompletion, Sampler, prompts_too_long

_SCORED_AT_ONCE = 64
"""Documents whose questions are scored together; bounds memory."""
_TORN = re.compile(r"\b(?:question|answer)\b[^:?]{0,4}:|\?.*\?", re.IGNORECASE | re.DOTALL)
"""Not in a single question: the words that open another pair, or two question marks."""
_END_MARKS = ".,;:!"
"""Taken off the end of an answer: they belong to the sentence that it was cut from."""


class WriterSettings(BaseModel):
    """How questions are written and how many are kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: PromptName = "micro-self-qa"
    """Name of a prompt template that asks for questions with answers; `self-qa` for all but the micro teacher."""
    chat: bool = False
    """Put the prompt into the chat format of the writer's tokenizer; for instruction-tuned writers."""
    samples: int = Field(default=4, ge=1, le=64)
    """Completions sampled for a document, in [1, 64]; each holds several questions."""
    most_questions: int = Field(default=12, ge=1, le=1000)
    """Most questions kept for a document, in [1, 1000]; the first ones written."""
    most_answer_words: int = Field(default=12, ge=1, le=100)
    """Longest answer, in words, in [1, 100]: exact match means little for whole sentences."""
    hold_out_every: int = Field(default=2, ge=0, le=100)
    """Every n-th kept question is for comparisons alone, n in [0, 100]; 0 holds out none."""


class Dropped(StrEnum):
    """Why a question was not kept, in the order of the checks."""

    NOT_A_QUESTION = "not_a_question"
    """A statement, a question without an answer, or two questions run together."""
    ANSWER_TOO_LONG = "answer_too_long"
    ANSWER_NOT_IN_PASSAGE = "answer_not_in_passage"
    """After the normalization that graders use."""
    ANSWER_IN_QUESTION = "answer_in_question"
    DUPLICATE = "duplicate"
    """Same question and answer as one before, or same question as one that is kept."""
    NOT_SCORED = "not_scored"
    """Question and passage do not fit the student's context, or have no token boundary before the answer."""
    NOT_ANSWERED = "not_answered"
    """The student does not give the answer with the passage in its context."""
    KNOWN_BEFORE = "known_before"
    """The student gives the answer without the passage."""
    TOO_MANY = "too_many"
    """More than are kept of a document."""


class Written(NamedTuple):
    """Questions for a document: `kept + sum(dropped.values()) == candidates`."""

    questions: tuple[Question, ...]
    """For rewards."""
    held_out_questions: tuple[Question, ...]
    """For comparisons alone."""
    candidates: int
    """Implications read in the completions."""
    dropped: dict[Dropped, int]
    """At least 1 for each reason that occurs."""
    problem: str = ""
    """Why nothing could be written or some completions could not be read; empty for no problem."""

    @property
    def kept(self) -> int:
        """Number of questions kept."""
        return len(self.questions) + len(self.held_out_questions)


def writer_prompts(documents: Sequence[InboxDocument], settings: WriterSettings, tokenizer: Any = None) -> list[str]:
    """Return the writer's prompts: title and text of each document, and no question.

    `tokenizer` is the writer's, for `settings.chat`; raises ModelError if it has no chat template.
    """
    template = prompt_template(settings.prompt)
    if settings.chat:
        return [template.render_chat(each.document, tokenizer) for each in documents]
    return [template.render(each.document) for each in documents]


def write_questions(
    documents: Sequence[InboxDocument],
    sampler: Sampler,
    student: Checkpoint,
    answer_format: AnswerFormat,
    settings: WriterSettings,
    seed: int,
    tokenizer: Any = None,
) -> list[Written]:
    """Return questions for each document, in order; they do not depend on the other documents of the call.

    Args:
        documents: Those without questions.
        sampler: Of the writer; a teacher that learns from rewards on these questions may be the same model.
        student: Frozen, without an adapter: as before the night.
        answer_format: As the student is asked.
        settings: How to write.
        seed: Of the sampling.
        tokenizer: The writer's, for `settings.chat`.

    Raises:
        GenerationError: The writer's engine failed.
        ModelError: The tokenizer has no chat template.
    """
    prompts = writer_prompts(documents, settings, tokenizer)
    long = prompts_too_long(sampler, prompts)
    asked = [i for i in range(len(prompts)) if i not in long]
    sampled = sampler.sample([prompts[i] for i in asked], n=settings.samples, seed=seed) if asked else []
    drafts = [_Draft(document) for document in documents]
    for i, completions in zip(asked, sampled, strict=True):
        drafts[i].read(completions, prompts[i], settings)
    for i, tokens in long.items():
        drafts[i].problem = f"the prompt has {tokens} tokens, the writer reads at most {sampler.max_prompt_tokens}"
    for start in range(0, len(drafts), _SCORED_AT_ONCE):
        _filter(drafts[start : start + _SCORED_AT_ONCE], student, answer_format)
    return [draft.written(settings) for draft in drafts]


class _Draft:
    """The candidate questions of one document."""

    def __init__(self, document: InboxDocument) -> None:
        self.document = document
        self.questions: list[Question] = []
        self.dropped: Counter[Dropped] = Counter()
        self.candidates = 0
        self.problem = ""
        self._passage = f" {normalize_answer(document.text)} "
        self._seen: set[tuple[str, str]] = set()

    def read(self, completions: Sequence[Completion | FailedCompletion], prompt: str, settings: WriterSettings) -> None:
        """Take the candidates of completions that pass the checks without a student."""
        problems = []
        for completion in completions:
            if isinstance(completion, FailedCompletion):
                problems.append(completion.reason)
                continue
            parsed = parse_self_edit(completion.text, prompt=prompt, finish_reason=completion.finish_reason)
            if parsed.edit is None:
                problems.append(str(parsed.reason))
                continue
            for line in parsed.edit.implications:
                self._take(line.text, line.answer, settings)
        if problems:
            counts = ", ".join(f"{count} {name}" for name, count in Counter(problems).items())
            self.problem = f"{len(problems)} of {len(completions)} completions have no questions: {counts}"

    def _take(self, question: str, answer: str | None, settings: WriterSettings) -> None:
        self.candidates += 1
        question, answer = question.strip(), (answer or "").strip().rstrip(_END_MARKS).rstrip()
        asked, given = normalize_answer(question), normalize_answer(answer)
        reason = None
        if not asked or not given or _TORN.search(question):
            reason = Dropped.NOT_A_QUESTION
        elif len(answer.split()) > settings.most_answer_words:
            reason = Dropped.ANSWER_TOO_LONG
        elif f" {given} " not in self._passage:
            reason = Dropped.ANSWER_NOT_IN_PASSAGE
        elif f" {given} " in f" {asked} ":
            reason = Dropped.ANSWER_IN_QUESTION
        elif (asked, given) in self._seen:
            reason = Dropped.DUPLICATE
        if reason is not None:
            self.dropped[reason] += 1
            return
        self._seen.add((asked, given))
        self.questions.append(Question(question=question, answer=answer))

    def keep(self, reasons: Sequence[Dropped | None]) -> None:
        """Drop the questions with a reason, and all but the first of those that ask the same."""
        kept: dict[str, Question] = {}
        for question, reason in zip(self.questions, reasons, strict=True):
            if reason is None and normalize_answer(question.question) in kept:
                reason = Dropped.DUPLICATE
            if reason is None:
                kept[normalize_answer(question.question)] = question
            else:
                self.dropped[reason] += 1
        self.questions = list(kept.values())

    def written(self, settings: WriterSettings) -> Written:
        """Return the questions, divided between rewards and comparisons."""
        kept, every = self.questions[: settings.most_questions], settings.hold_out_every
        self.dropped[Dropped.TOO_MANY] += len(self.questions) - len(kept)
        held_out = [every > 0 and (i + 1) % every == 0 and len(kept) > 1 for i in range(len(kept))]
        if every == 1 and held_out:
            held_out[0] = False  # a document without questions for rewards teaches nothing
        return Written(
            questions=tuple(q for q, held in zip(kept, held_out, strict=True) if not held),
            held_out_questions=tuple(q for q, held in zip(kept, held_out, strict=True) if held),
            candidates=self.candidates,
            dropped={reason: self.dropped[reason] for reason in Dropped if self.dropped[reason]},
            problem=self.problem,
        )


def _filter(drafts: Sequence[_Draft], student: Checkpoint, answer_format: AnswerFormat) -> None:
    """Keep what the student answers with the passage and not without."""
    from student.bank.scoring import ScoringFailure
    from student.in_context import score_in_context

    questions, passages = [draft.questions for draft in drafts], [draft.document.text for draft in drafts]
    read = score_in_context(*student, passages, questions, answer_format)
    # A template that holds the context alone leaves the question unchanged where the context is empty.
    bare = score_in_context(*student, [""] * len(drafts), questions, answer_format, template="{context}")
    for draft, with_passage, without in zip(drafts, read, bare, strict=True):
        if isinstance(with_passage, ScoringFailure) or isinstance(without, ScoringFailure):
            failure = with_passage if isinstance(with_passage, ScoringFailure) else without
            draft.problem = "; ".join(part for part in (draft.problem, getattr(failure, "reason", "")) if part)
            draft.keep([Dropped.NOT_SCORED] * len(draft.questions))
            continue
        draft.keep(
            [
                None if a.exact and not b.exact else Dropped.KNOWN_BEFORE if a.exact else Dropped.NOT_ANSWERED
                for a, b in zip(with_passage, without, strict=True)
            ]
        )
