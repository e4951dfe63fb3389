"""Generate questions for documents without any: a language model writes them, the frozen student filters them.

A question is kept if its answer is in the passage, and the student answers it with the passage in context and not
without: the document answers it, and the student does not know it yet. Questions are for evaluation and never enter a
prompt: a prompt is made of title and text alone (`teacher.prompts`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from evaluation.common.checkpoints import Checkpoint
from evaluation.exact_match import AnswerFormat
from evaluation.graders import normalize_answer
from evaluation.tasks import Question
from pipelines.inbox.documents import InboxDocument
from teacher.parsing.parser import parse_self_edit
from teacher.prompts import Prompt, PromptedConfig, prompt_template
from teacher.samplers.sampler import Completion, FailedCompletion, Sampler, prompts_too_long

_MOST_ANSWER_WORDS = 12
"""Longest answer: exact match is too strict for whole sentences."""
_MOST_QUESTIONS = 12
"""Most questions kept of a document, in the order written; every second one is held out."""
_BATCH = 64
"""Documents whose questions are scored together; bounds memory."""
_SEVERAL_QUESTIONS = re.compile(r"\b(?:question|answer)\b[^:?]{0,4}:|\?.*\?", re.IGNORECASE | re.DOTALL)


class WriterSettings(PromptedConfig):
    """How questions are generated and how many are kept."""

    prompt: Prompt = "micro-self-qa"
    """Prompt template that asks for questions with answers; `self-qa` for all but the micro teacher."""
    samples: int = Field(default=4, ge=1, le=64)
    """Completions per document, in [1, 64]; each holds several questions."""


def writer_prompts(documents: Sequence[InboxDocument], settings: WriterSettings, tokenizer: Any = None) -> list[str]:
    """Return the writer's prompts: title and text of each document, and no question.

    `tokenizer` is the writer's, whose chat template is applied; raises ModelError if it has none.
    """
    template = prompt_template(settings.prompt)
    if tokenizer is not None:
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
) -> list[list[Question]]:
    """Return questions for each document, in order, independent of the other documents.

    Documents that do not fit the writer's context, failed completions and invalid ones yield no questions. `sampler`
    and `tokenizer` (see `writer_prompts`) are the writer's; the student is frozen, without an adapter.

    Raises:
        GenerationError: The writer's engine failed.
        ModelError: The tokenizer has no chat template.
    """
    prompts = writer_prompts(documents, settings, tokenizer)
    long = prompts_too_long(sampler, prompts)
    chosen = [i for i in range(len(prompts)) if i not in long]
    sampled = sampler.sample([prompts[i] for i in chosen], n=settings.samples, seed=seed) if chosen else []
    candidates: list[list[Question]] = [[] for _ in documents]
    for i, completions in zip(chosen, sampled, strict=True):
        candidates[i] = _candidates(documents[i], completions, prompts[i])
    written: list[list[Question]] = []
    for start in range(0, len(documents), _BATCH):
        batch = slice(start, start + _BATCH)
        written += _learnable(documents[batch], candidates[batch], student, answer_format)
    return [questions[:_MOST_QUESTIONS] for questions in written]


def _candidates(
    document: InboxDocument, completions: Sequence[Completion | FailedCompletion], prompt: str
) -> list[Question]:
    """Return the distinct pairs whose answer is a short span of the passage and not in the question."""
    passage = f" {normalize_answer(document.text)} "
    found: dict[tuple[str, str], Question] = {}
    for completion in completions:
        if isinstance(completion, FailedCompletion):
            continue
        edit = parse_self_edit(completion.text, prompt=prompt, finish_reason=completion.finish_reason).edit
        for line in () if edit is None else edit.implications:
            # The end mark belongs to the sentence from which the answer was taken.
            question, answer = line.text.strip(), (line.answer or "").strip().rstrip(".,;:!").rstrip()
            asked, given = normalize_answer(question), normalize_answer(answer)
            if (
                asked
                and given
                and not _SEVERAL_QUESTIONS.search(question)
                and len(answer.split()) <= _MOST_ANSWER_WORDS
                and f" {given} " in passage
                and f" {given} " not in f" {asked} "
            ):
                found.setdefault((asked, given), Question(question=question, answer=answer))
    return list(found.values())


def _learnable(
    documents: Sequence[InboxDocument],
    candidates: Sequence[Sequence[Question]],
    student: Checkpoint,
    answer_format: AnswerFormat,
) -> list[list[Question]]:
    """Return by document the distinct questions that the student answers with the passage and not without."""
    from student.bank.scoring import ScoringFailure
    from student.in_context import score_in_context

    passages = [document.text for document in documents]
    open_book = score_in_context(*student, passages, candidates, answer_format)
    # With this template an empty context leaves the question unchanged.
    closed_book = score_in_context(*student, [""] * len(passages), candidates, answer_format, template="{context}")
    learnable = []
    for questions, with_passage, without in zip(candidates, open_book, closed_book, strict=True):
        kept: dict[str, Question] = {}
        if not isinstance(with_passage, ScoringFailure) and not isinstance(without, ScoringFailure):
            for question, a, b in zip(questions, with_passage, without, strict=True):
                if a.exact and not b.exact:
                    kept.setdefault(normalize_answer(question.question), question)
        learnable.append(list(kept.values()))
    return learnable
