"""Filters and measures of self-edits that take no update: length, coverage of answers, leakage, diversity.

Texts are compared as sequences of words: compatibility forms and case are folded, white space and punctuation are left
out. A Chinese or Japanese character is a word of its own; other scripts that write no spaces are not divided, so that
an answer within a longer run of letters is not found there.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from evaluation.common.data import Frozen
from evaluation.statistics import known_mean
from evaluation.tasks import Question
from teacher.rewards import RewardFailure
from teacher.self_edit import SelfEdit

_UNSPACED = "\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_RUN = re.compile(r"\w+")
"""Runs of letters and digits, for diversity: neither punctuation nor the list markers that lines begin with."""

NGRAM = 8
"""Words of an n-gram of a question; a shorter question counts as one n-gram."""


class FilterConfig(Frozen):
    """Which self-edits are refused before any update; all are measured."""

    max_tokens: int | None = Field(default=None, ge=1, le=32_768)
    """Longest self-edit in tokens as written, in [1, 32768]; None sets no limit."""
    reject_questions: bool = False
    """Refuse self-edits that hold a whole evaluation question; questions are a kind of self-edit, so by default the
    share is measured only."""
    max_overlap: float = Field(default=1.0, ge=0.0, le=1.0)
    """Largest share of the questions' n-grams (8 words; those of the passage left out) that it may hold, in [0, 1]."""


@dataclass(frozen=True, slots=True)
class EditFacts:
    """Measures of a self-edit's text against the passage and the questions; shares are in [0, 1], of nothing 0."""

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


def edit_facts(
    edit: SelfEdit, tokens: int, passage: str, questions: Sequence[Question], *, ngram: int = NGRAM
) -> EditFacts:
    """Return the measures of a self-edit.

    Overlap is counted in word n-grams, the usual check of training data for test questions (Brown et al. 2020, arXiv
    2005.14165, appendix C). What the passage says itself is no leak, since the teacher was given it.

    Args:
        edit: Its text is that of its implications, each with its answer.
        tokens: Its length as written.
        passage: What the teacher read.
        questions: With their gold answers.
        ngram: Words of an n-gram, at least 1; a question with fewer words is one n-gram.
    """
    lines = [_words(f"{line.text} {line.answer or ''}") for line in edit.implications]
    # Leaks are searched across lines, so that a question is found however it is broken; an answer must be on one line.
    whole, by_line = _Text([word for line in lines for word in line]), [_Text(line) for line in lines]
    source = _Text(_words(passage))
    answers = {tuple(_words(q.answer)) for q in questions} - {()}
    asked = [words for q in questions if (words := tuple(_words(q.question))) and words not in source]
    grams = {g for q in questions for g in _ngrams(_words(q.question), ngram) if g not in source}
    return EditFacts(
        tokens=tokens,
        lines=len(lines),
        coverage=_share(sum(any(a in line for line in by_line) for a in answers), len(answers)) if answers else None,
        leaked_questions=_share(sum(words in whole for words in asked), len(asked)),
        ngram_overlap=_share(sum(gram in whole for gram in grams), len(grams)),
    )


def refusal(facts: EditFacts, config: FilterConfig) -> RewardFailure | None:
    """Return why the first filter refuses a self-edit, length before leakage, or None."""
    if config.max_tokens is not None and facts.tokens > config.max_tokens:
        return RewardFailure.OVER_BUDGET
    if (config.reject_questions and facts.leaked_questions > 0.0) or facts.ngram_overlap > config.max_overlap:
        return RewardFailure.LEAKED
    return None


def first_equal(edits: Sequence[SelfEdit | None]) -> list[int]:
    """Return for each self-edit of a document the index of the first one that is equal, its own when there is none.

    Equal self-edits need one update only: under common random numbers their results are equal too. None equals nothing.
    """
    first: dict[str, int] = {}
    return [i if edit is None else first.setdefault(edit.digest, i) for i, edit in enumerate(edits)]


def distinct_n(texts: Sequence[str], n: int) -> float | None:
    """Return the share of n-grams over all texts that are distinct, in (0, 1] (Li et al. 2016, arXiv 1510.03055).

    Case is ignored, and n-grams do not cross texts; None where no text has n words, n at least 1. The share falls with
    the length of the texts, so only groups of about equal lengths compare.
    """
    grams = [gram for text in texts for gram in _runs_of(_RUN.findall(text.casefold()), n)]
    return len(set(grams)) / len(grams) if grams else None


def mean_distinct(groups: Mapping[str, Sequence[str]], n: int) -> float | None:
    """Return the mean of `distinct_n` over documents: how alike the samples of one document are.

    Args:
        groups: Texts by document id; documents in which no text has n words are left out.
        n: Words of an n-gram, at least 1.
    """
    return known_mean(distinct_n(texts, n) for texts in groups.values())


class _Text:
    """Words in which sequences of whole words are looked up; the sequence without words occurs nowhere."""

    def __init__(self, words: Sequence[str]) -> None:
        self._padded = f" {' '.join(words)} "

    def __contains__(self, words: Sequence[str]) -> bool:
        return bool(words) and f" {' '.join(words)} " in self._padded


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _runs_of(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Return all runs of `n` words, or the words themselves when they are fewer; none of no words."""
    return _runs_of(words, min(n, len(words))) if words else []


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
