"""Gates: what can be told of a self-edit without any update of a student, and which self-edits are refused for it.

All texts are compared as sequences of words: compatibility forms and case are folded, white space and punctuation are
left out. A Chinese or Japanese character is a word of its own; other scripts that write no spaces are not divided, so
that an answer within a longer run of letters is not found there.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.tasks import Question
from teacher.config import GateConfig
from teacher.rewards import RewardFailure
from teacher.self_edit import SelfEdit

_UNSPACED = "\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_CONTENT_LENGTH = 4
"""Letters and digits from which a word counts as a content word: most English function words are shorter."""


@dataclass(frozen=True, slots=True)
class EditFacts:
    """What can be told of a self-edit from its text, the passage and the questions; shares are in [0, 1]."""

    tokens: int
    """Length as written, at least 0."""
    lines: int
    """Implications, at least 0."""
    coverage: float | None
    """Share of the distinct gold answers that occur in one of its lines as whole words; None without any. Answers that
    have no word, such as "%", are left out."""
    leaked_questions: float
    """Share of the questions whose whole text occurs in it; those that the passage holds too are left out."""
    ngram_overlap: float
    """Share of the questions' distinct n-grams that occur in it; those that the passage holds too are left out."""
    repetition: float
    """Share of its lines that repeat an earlier one."""
    questions_share: float
    """Share of its lines that are questions: with an answer, or with a question mark at the end."""
    support: float
    """Share of its distinct content words, those of at least four letters or digits, that occur in the passage."""


def edit_facts(edit: SelfEdit, tokens: int, passage: str, questions: Sequence[Question], *, ngram: int) -> EditFacts:
    """Return what can be told of a self-edit. Shares of nothing are 0, and coverage is then None.

    Overlap is counted in word n-grams as the usual check of training data for test questions does (Brown et al. 2020,
    arXiv 2005.14165, appendix C). What the passage says itself is no leak, since the teacher was given it.

    Args:
        edit: Its text is that of its implications, each with its answer.
        tokens: Its length as written.
        passage: What the teacher read.
        questions: Q questions with their gold answers, Q at least 0.
        ngram: Words of an n-gram, at least 1; a question with fewer words is one n-gram.

    Raises:
        ValueError: `ngram` is less than 1.
    """
    if ngram < 1:
        raise ValueError(f"ngram: got {ngram}, allowed is at least 1")
    lines = [f"{line.text} {line.answer or ''}" for line in edit.implications]
    told, read = [_words(line) for line in lines], _words(passage)
    # Leaks are looked for across lines, so that a question is found however it is broken; an answer is told by a line.
    whole, by_line, source = _Text([w for line in told for w in line]), [_Text(line) for line in told], _Text(read)
    answers = {tuple(_words(q.answer)) for q in questions} - {()}
    asked = [words for q in questions if (words := tuple(_words(q.question))) and words not in source]
    grams = {g for q in questions for g in _ngrams(_words(q.question), ngram) if g not in source}
    content = {word for line in told for word in line if len(word) >= _CONTENT_LENGTH}
    keys = [" ".join(words) or line.strip() for words, line in zip(told, lines, strict=True)]
    questions_told = sum(i.answer is not None or i.text.rstrip().endswith(("?", "？")) for i in edit.implications)
    return EditFacts(
        tokens=tokens,
        lines=len(lines),
        coverage=_share(sum(any(a in line for line in by_line) for a in answers), len(answers)) if answers else None,
        leaked_questions=_share(sum(words in whole for words in asked), len(asked)),
        ngram_overlap=_share(sum(gram in whole for gram in grams), len(grams)),
        repetition=_share(len(keys) - len(set(keys)), len(keys)),
        questions_share=_share(questions_told, len(lines)),
        support=_share(len(content & set(read)), len(content)),
    )


def refusal(facts: EditFacts, config: GateConfig) -> RewardFailure | None:
    """Return the first gate that refuses a self-edit, or None: length, repetition, leaks, coverage, in this order.

    A self-edit of a task without questions is never refused for its coverage.
    """
    if config.max_tokens is not None and facts.tokens > config.max_tokens:
        return RewardFailure.OVER_BUDGET
    if facts.repetition > config.max_repetition:
        return RewardFailure.REPETITIVE
    if (config.reject_questions and facts.leaked_questions > 0.0) or facts.ngram_overlap > config.max_overlap:
        return RewardFailure.LEAKED
    if facts.coverage is not None and facts.coverage < config.min_coverage:
        return RewardFailure.LOW_COVERAGE
    return None


def first_equal(edits: Sequence[SelfEdit | None]) -> list[int]:
    """Return for each self-edit of a document the index of the first one that is equal, its own when there is none.

    Equal self-edits need one update only: under common random numbers their results are equal too.

    Args:
        edits: E self-edits; None, where there is no self-edit, equals nothing.
    """
    first: dict[str, int] = {}
    return [i if edit is None else first.setdefault(edit.digest, i) for i, edit in enumerate(edits)]


class _Text:
    """Words in which sequences of whole words are looked up; the sequence without words occurs nowhere."""

    def __init__(self, words: Sequence[str]) -> None:
        self._padded = f" {' '.join(words)} "

    def __contains__(self, words: Sequence[str]) -> bool:
        return bool(words) and f" {' '.join(words)} " in self._padded


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Return all runs of `n` words, or the words themselves when they are fewer; none of no words."""
    return [tuple(words[i : i + n]) for i in range(max(len(words) - n + 1, 1))] if words else []


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
