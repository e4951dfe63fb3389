"""Generate questions for documents without any: a language model writes them, the frozen student filters them.

A question is kept if its answer is in the passage, and the student answers it with the passage in context and not
without: the document answers it, and the student does not know it yet. A document for which none is kept is asked by
its own sentences: to complete, or else by their probability. Questions are for evaluation and never enter a prompt,
which is made of title and text alone (`teacher.prompts`).
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, Literal, NamedTuple

from pydantic import Field

from evaluation.answers import normalize_answer
from evaluation.common.checkpoints import Checkpoint, is_micro
from evaluation.common.errors import ScoringError
from evaluation.exact_match import AnswerFormat, context_length, encode_questions
from evaluation.tasks import CONTINUATION, Question
from pipelines.inbox.documents import InboxDocument
from teacher.parsing.parser import parse_self_edit
from teacher.prompts import Prompt, PromptedConfig, prompt_template
from teacher.samplers.sampler import Completion, FailedCompletion, Sampler, prompts_too_long

_MOST_ANSWER_WORDS = 12
"""Longest answer: exact match is too strict for whole sentences."""
_MOST_QUESTIONS = 12
"""Most questions kept of a document, in the order written; every second one is held out."""
_ENOUGH = 4
"""Questions of a document below which sentences to complete are added: one or two decide nothing."""
_BATCH = 64
"""Documents whose questions are scored together; bounds memory."""
_SEVERAL_QUESTIONS = re.compile(r"\b(?:question|answer)\b[^:?]{0,4}:|\?.*\?", re.IGNORECASE | re.DOTALL)
_NEXT_PASSAGE = re.compile(r"^\s*Passage\b", re.MULTILINE)
"""From here on a completion is about another passage."""

Evidence = Literal[
    "questions by the teacher",
    "sentences to complete",
    "questions by the teacher and sentences to complete",
    "probability of sentences",
    "none",
]
"""What tells whether a document was learned."""


class WriterSettings(PromptedConfig):
    """How questions are generated and how many are kept."""

    prompt: Prompt | None = None  # type: ignore[assignment]
    """Prompt template that asks for questions with answers; None is `micro-self-qa` for the micro teacher and
    `worked-self-qa`, which shows an example, for all others."""
    samples: int = Field(default=4, ge=1, le=64)
    """Completions per document, in [1, 64]; each holds several questions."""

    def prompt_for(self, teacher: str) -> str:
        """Return the name of the template for a teacher, by its directory, hub id or shipped name."""
        return self.prompt or ("micro-self-qa" if is_micro(teacher) else "worked-self-qa")


class Dropped(StrEnum):
    """Why a candidate is not asked."""

    TOO_LONG_FOR_TEACHER = "document too long for the teacher"
    FAILED = "completion failed"
    NO_QUESTION = "not a question"
    SEVERAL = "several questions in one"
    LONG_ANSWER = "answer too long"
    NOT_IN_PASSAGE = "answer not in the passage"
    IN_QUESTION = "answer in the question"
    DUPLICATE = "duplicate"
    UNSCORED = "cannot be scored"
    """Too long for the student with the passage in front, or without a token boundary before the answer."""
    NOT_ANSWERED = "not answered with the passage"
    KNOWN = "known without the passage"


class Written(NamedTuple):
    """The questions of one document."""

    questions: tuple[Question, ...]
    dropped: Mapping[Dropped, int]
    """Candidates that are not asked, by reason."""
    evidence: Evidence

    @property
    def note(self) -> str:
        """What is asked, and what was dropped, for people."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(self.dropped).most_common())
        asked = f"{self.evidence}: {len(self.questions)}" if self.questions else "nothing can be asked about it"
        return f"{asked} (dropped: {reasons or 'nothing'})"


def writer_prompts(documents: Sequence[InboxDocument], prompt: str, tokenizer: Any = None) -> list[str]:
    """Return the writer's prompts: title and text of each document, and no question.

    `prompt` names a template. `tokenizer` is the writer's, whose chat template is applied; raises ModelError if it has
    none.
    """
    template = prompt_template(prompt)
    if tokenizer is not None:
        return [template.render_chat(each.document, tokenizer) for each in documents]
    return [template.render(each.document) for each in documents]


def write_questions(
    documents: Sequence[InboxDocument],
    sampler: Sampler,
    student: Checkpoint,
    answer_format: AnswerFormat,
    prompt: str,
    samples: int,
    seed: int,
    tokenizer: Any = None,
) -> list[Written]:
    """Return what is asked about each document, in order, independent of the other documents.

    Documents that do not fit the writer's context, failed completions and invalid ones yield no questions by the
    teacher. `sampler`, `prompt` and `tokenizer` (see `writer_prompts`) are the writer's; the student is frozen, without
    an adapter.

    Raises:
        GenerationError: The writer's engine failed.
        ModelError: The tokenizer has no chat template.
    """
    prompts = writer_prompts(documents, prompt, tokenizer)
    long = prompts_too_long(sampler, prompts)
    short = [i for i in range(len(prompts)) if i not in long]
    stop = prompt_template(prompt).stop if tokenizer is None else None
    sampled = sampler.sample([prompts[i] for i in short], n=samples, seed=seed, stop=stop) if short else []
    completions = dict(zip(short, sampled, strict=True))
    dropped = [Counter({Dropped.TOO_LONG_FOR_TEACHER: int(i in long)}) for i in range(len(documents))]

    def written(i: int) -> list[Question]:
        return _candidates(documents[i], completions.get(i, ()), prompts[i], dropped[i])

    found: dict[int, Written] = {}
    filters = _Filters(documents, student, answer_format, dropped)
    enough = 1 if prompt.startswith("micro-") else _ENOUGH  # the micro-student was never shown unfinished sentences
    stages: tuple[tuple[Evidence, int, Callable[[int], list[Question]]], ...] = (
        ("questions by the teacher", 1, written),
        ("sentences to complete", enough, lambda i: _spread(sentences_to_complete(documents[i]))),
        ("probability of sentences", 1, lambda i: _spread(continuations(documents[i]))),
    )
    for evidence, least, make in stages:
        few = [i for i in range(len(documents)) if i not in found or len(found[i].questions) < least]
        for i, mine in filters.learnable({i: make(i) for i in few}, evidence).items():
            if mine:
                before = found[i].questions if i in found else ()
                told: Evidence = "questions by the teacher and sentences to complete" if before else evidence
                found[i] = Written((*before, *mine)[:_MOST_QUESTIONS], +dropped[i], told)
    return [found.get(i) or Written((), +dropped[i], "none") for i in range(len(documents))]


def _spread(questions: list[Question]) -> list[Question]:
    """Return as many questions as are kept at most, from all over the passage."""
    return questions[:: max(1, -(-len(questions) // _MOST_QUESTIONS))]


def _candidates(
    document: InboxDocument,
    completions: Sequence[Completion | FailedCompletion],
    prompt: str,
    dropped: Counter[Dropped],
) -> list[Question]:
    """Return the distinct pairs whose answer is a short span of the passage and not in the question."""
    passage = f" {normalize_answer(document.text)} "
    found: dict[tuple[str, str], Question] = {}
    for completion in completions:
        if isinstance(completion, FailedCompletion):
            dropped[Dropped.FAILED] += 1
            continue
        text = completion.text
        if after := _NEXT_PASSAGE.search(text):
            text = text[: after.start()]
        edit = parse_self_edit(text, prompt=prompt, finish_reason=completion.finish_reason).edit
        if edit is None:
            dropped[Dropped.NO_QUESTION] += 1
        for line in () if edit is None else edit.implications:
            # The end mark belongs to the sentence from which the answer was taken.
            question, answer = line.text.strip(), (line.answer or "").strip().rstrip(".,;:!").rstrip()
            key = normalize_answer(question), normalize_answer(answer)
            reason = Dropped.DUPLICATE if key in found else _refusal(question, answer, passage)
            if reason is None:
                found[key] = Question(question=question, answer=answer)
            else:
                dropped[reason] += 1
    return list(found.values())


def _refusal(question: str, answer: str, passage: str) -> Dropped | None:
    """Return why a pair cannot be asked about a normalised passage; None if it can."""
    asked, given = normalize_answer(question), normalize_answer(answer)
    if not asked or not given:
        return Dropped.NO_QUESTION
    if _SEVERAL_QUESTIONS.search(question):
        return Dropped.SEVERAL
    if len(answer.split()) > _MOST_ANSWER_WORDS:
        return Dropped.LONG_ANSWER
    if f" {given} " not in passage:
        return Dropped.NOT_IN_PASSAGE
    return Dropped.IN_QUESTION if f" {given} " in f" {asked} " else None


class _Filters(NamedTuple):
    """The frozen student's verdict on candidates."""

    documents: Sequence[InboxDocument]
    student: Checkpoint
    answer_format: AnswerFormat
    dropped: Sequence[Counter[Dropped]]
    """By document, as `documents`; gets the reasons."""

    def learnable(
        self, candidates: Mapping[int, Sequence[Question]], evidence: Evidence
    ) -> dict[int, tuple[Question, ...]]:
        """Return by document the distinct questions whose answers the student has yet to learn."""
        kept: dict[int, tuple[Question, ...]] = {}
        indices = list(candidates)
        for start in range(0, len(indices), _BATCH):
            part = {i: self._scorable(i, candidates[i]) for i in indices[start : start + _BATCH]}
            by_teacher = evidence == "questions by the teacher"
            kept |= part if evidence == "probability of sentences" else self._unknown(part, by_teacher)
        return kept

    def _scorable(self, i: int, questions: Sequence[Question]) -> tuple[Question, ...]:
        """Return the questions that fit the student and have a token boundary before the answer."""
        most = context_length(self.student.model)
        fitting = []
        for question in questions:
            try:
                (row,) = encode_questions(self.student.tokenizer, [question], self.answer_format)
            except ScoringError:
                continue
            if most is None or len(row.tokens) <= most:
                fitting.append(question)
        self.dropped[i][Dropped.UNSCORED] += len(questions) - len(fitting)
        return tuple(fitting)

    def _unknown(self, candidates: Mapping[int, Sequence[Question]], read: bool) -> dict[int, tuple[Question, ...]]:
        """Return what the student does not answer without the passage and, if `read`, answers with it."""
        from student.bank.scoring import ScoringFailure
        from student.in_context import score_in_context

        asked, passages = list(candidates.values()), [self.documents[i].text for i in candidates]
        # With this template an empty context leaves the question unchanged.
        empty = [""] * len(passages)
        without = score_in_context(*self.student, empty, asked, self.answer_format, template="{context}")
        with_it = score_in_context(*self.student, passages, asked, self.answer_format) if read else without
        kept: dict[int, tuple[Question, ...]] = {}
        for i, opened, closed in zip(candidates, with_it, without, strict=True):
            if isinstance(opened, ScoringFailure) or isinstance(closed, ScoringFailure):
                self.dropped[i][Dropped.UNSCORED] += len(candidates[i])
                continue
            mine: dict[str, Question] = {}
            for question, a, b in zip(candidates[i], opened, closed, strict=True):
                if b.exact or (read and not a.exact):
                    self.dropped[i][Dropped.KNOWN if b.exact else Dropped.NOT_ANSWERED] += 1
                elif mine.setdefault(normalize_answer(question.question), question) is not question:
                    self.dropped[i][Dropped.DUPLICATE] += 1
            kept[i] = tuple(mine.values())
        return kept


_MOST_SPAN_WORDS = 4
_FEWEST_STEM_WORDS = 3
_MOST_SENTENCE_WORDS = 60
"""Longest continuation; a longer sentence or line is cut."""
_BREAK = re.compile(r"(?<=[.!?。！？])[\"'”’)\]]*\s+(?=[^a-z\s])|\n\s*\n\s*|\n\s*(?=[^a-z\s])")
"""Between sentences and lines; a line that goes on in lower case is a wrapped one."""
_MARKER = re.compile(r"\A(?:[#>|*•–-]+|\d{1,3}[.)])\s+")
_CUT = re.compile(
    "after|and|as|at|because|before|but|by|for|from|if|in|into|nor|on|or|since|that|through|to|under|until|when|where|"
    "which|while|who|with|within|without"
)
"""Words from which on the rest of a sentence can be left out."""
_OPENS = re.compile(
    "an?|are|at|be|by|for|from|her|his|in|into|is|its|my|of|on|our|per|the|their|to|under|was|were|with|within|without|"
    "your"
)
"""Words after which a noun phrase begins."""
_PRONOUNS = re.compile("he|her|his|its?|she|that|their|there|these|they|this|those|we")
_QUOTES = "\"'“”‘’«»()[]{}*_`"


def sentences(text: str) -> list[str]:
    """Return the sentences and lines of a text, without list markers; those without a letter are left out."""
    pieces = (" ".join(_MARKER.sub("", piece.strip(), count=1).split()) for piece in _BREAK.split(text))
    return [piece for piece in pieces if any(character.isalpha() for character in piece)]


def sentences_to_complete(document: InboxDocument) -> list[Question]:
    """Return questions that give a sentence up to a number, a date, a name or its last noun phrase.

    The answer has one to four words. It ends the sentence, or what follows can be left out.
    """
    found: dict[str, Question] = {}
    for sentence in sentences(document.text):
        words = sentence.split()
        of_title = f" about {document.title}" if document.title and _PRONOUNS.fullmatch(words[0].lower()) else ""
        for start, end in _spans(words):
            stem, answer = " ".join(words[:start]), " ".join(words[start:end]).strip(_QUOTES + ".,;:!?")
            given = normalize_answer(answer)
            if given and f" {given} " not in f" {normalize_answer(stem)} ":
                question = f"Complete the sentence{of_title}: {stem.rstrip(_QUOTES + ' ')}"
                found.setdefault(question, Question(question=question, answer=answer))
    return list(found.values())


def _spans(words: list[str]) -> Iterator[tuple[int, int]]:
    """Yield starts and ends of the spans of one sentence that can be asked for, without overlap."""
    cuts = (k for k in range(1, len(words)) if words[k - 1][-1] in ",;:" or _CUT.fullmatch(words[k].lower()))
    ends = [*cuts, len(words)]
    start = _FEWEST_STEM_WORDS
    while start < len(words):
        end = next(k for k in ends if k > start)
        if end - start <= _MOST_SPAN_WORDS and _opens_span(words, start, last=end == len(words)):
            yield start, end
            start = end
        else:
            start += 1


def _opens_span(words: list[str], start: int, *, last: bool) -> bool:
    """Return whether a span begins with a number, a name, or (at the end of a sentence) a noun phrase."""
    word, before = words[start].lstrip(_QUOTES), words[start - 1]
    number = any(character.isdigit() for character in word)
    name = word[:1].isupper() and word != "I" and not before[:1].isupper() and before[-1] not in ".!?:"
    function_word = _OPENS.fullmatch(word.lower()) or _PRONOUNS.fullmatch(word.lower())
    return number or name or bool(last and _OPENS.fullmatch(before.lower()) and not function_word)


def continuations(document: InboxDocument) -> list[Question]:
    """Return the sentences and lines of the passage, each as what continues the one before it, or the title.

    The halves of a single one without a title are a pair too; a single word is none.
    """
    pieces = [" ".join(piece.split()[:_MOST_SENTENCE_WORDS]) for piece in sentences(document.text)]
    if document.title:
        pieces = [document.title, *pieces]
    if len(pieces) == 1:
        words = pieces[0].split()
        halves = " ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])
        pieces = [half for half in halves if half]
    return [
        Question(question=before, answer=after, phrasing=CONTINUATION)
        for before, after in itertools.pairwise(pieces)
        if before.casefold() != after.casefold()
    ]
