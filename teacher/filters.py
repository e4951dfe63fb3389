"""Filters and text measures of self-edits, which need no update: length, answer coverage, leakage, diversity.

Texts are compared as sequences of words after NFKC and case folding, without white space and punctuation. Each Chinese
or Japanese character is one word; other scripts without spaces are not segmented.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
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
"""Words for diversity: no punctuation, so no list markers either."""

NGRAM = 8
"""Words per n-gram of a question; a shorter question counts as one n-gram."""


class FilterConfig(Frozen):
    """Filters that reject self-edits before any update."""

    max_tokens: int | None = Field(default=None, ge=1, le=32_768)
    """Longest self-edit in tokens as written, in [1, 32768]; None sets no limit."""
    max_overlap: float = Field(default=1.0, ge=0.0, le=1.0)
    """Largest share of the questions' 8-grams, those of the passage excepted, that may occur, in [0, 1]; 1 by default,
    since questions are a valid form of self-edit."""


@dataclass(frozen=True, slots=True)
class EditFacts:
    """Measures of a self-edit against the passage and the questions; shares are in [0, 1], and 0 of an empty set."""

    tokens: int
    lines: int
    coverage: float | None
    """Share of the distinct gold answers, "%" and the like excepted, that occur as whole words in one line."""
    leaked_questions: float
    """Share of the questions, except those in the passage, that occur in full."""
    ngram_overlap: float
    """Share of the questions' distinct n-grams, except those in the passage, that occur."""


def edit_facts(
    edit: SelfEdit, tokens: int, passage: str, questions: Sequence[Question], *, ngram: int = NGRAM
) -> EditFacts:
    """Return the measures of a self-edit of `tokens` tokens; quoting the passage is no leak.

    Word n-gram overlap is the usual test for contamination (Brown et al. 2020, arXiv 2005.14165, appendix C).
    """
    lines = [_words(f"{line.text} {line.answer or ''}") for line in edit.implications]
    # Leaks are searched across lines, so that breaking a question does not hide it; an answer must be on one line.
    whole, by_line = _spaced(word for line in lines for word in line), [_spaced(line) for line in lines]
    source = _spaced(_words(passage))
    answers = {_spaced(words) for q in questions if (words := _words(q.answer))}
    worded = [words for q in questions if (words := _words(q.question))]
    unseen = [text for text in map(_spaced, worded) if text not in source]
    all_grams = (_spaced(gram) for words in worded for gram in _ngrams(words, min(ngram, len(words))))
    grams = {gram for gram in all_grams if gram not in source}
    covered = sum(any(answer in line for line in by_line) for answer in answers)
    return EditFacts(
        tokens=tokens,
        lines=len(lines),
        coverage=covered / len(answers) if answers else None,
        leaked_questions=sum(words in whole for words in unseen) / max(len(unseen), 1),
        ngram_overlap=sum(gram in whole for gram in grams) / max(len(grams), 1),
    )


def refusal(facts: EditFacts, config: FilterConfig) -> RewardFailure | None:
    """Return the reason of the first filter that rejects a self-edit (length before leakage), or None."""
    if config.max_tokens is not None and facts.tokens > config.max_tokens:
        return RewardFailure.OVER_BUDGET
    if facts.ngram_overlap > config.max_overlap:
        return RewardFailure.LEAKED
    return None


def first_equal(edits: Sequence[SelfEdit | None]) -> list[int]:
    """Return for each self-edit the index of its first duplicate, possibly its own; None equals nothing.

    Duplicates share one update: with common random numbers their results are equal.
    """
    first: dict[str, int] = {}
    return [i if edit is None else first.setdefault(edit.digest, i) for i, edit in enumerate(edits)]


def distinct_n(texts: Sequence[str], n: int) -> float | None:
    """Return the share of distinct n-grams over all texts, in (0, 1]; None without any (Li et al., arXiv 1510.03055).

    It decreases with length, so only groups of similar length are comparable.
    """
    grams = [gram for text in texts for gram in _ngrams(_RUN.findall(text.casefold()), n)]
    return len(set(grams)) / len(grams) if grams else None


def mean_distinct(groups: Mapping[str, Sequence[str]], n: int) -> float | None:
    """Return the mean of `distinct_n` over documents, given their texts by id; None values are omitted."""
    return known_mean(distinct_n(texts, n) for texts in groups.values())


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _spaced(words: Iterable[str]) -> str:
    """Return words as a text in which `in` finds whole words only."""
    return f" {' '.join(words)} "


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def question_ngrams(questions: Sequence[Question], passage: str = "") -> frozenset[str]:
    """Return the 8-grams of evaluation questions that do not stand in the passage; see `leaks`."""
    source = _spaced(_words(passage))
    worded = (_words(question.question) for question in questions)
    grams = (_spaced(gram) for words in worded for gram in _ngrams(words, min(NGRAM, len(words))))
    return frozenset(gram for gram in grams if gram.strip() and gram not in source)


def leaks(line: str, ngrams: frozenset[str]) -> bool:
    """Return whether a line has an 8-gram of an evaluation question, or all of a shorter one."""
    words = _words(line)
    whole = _spaced(words)
    return any(gram in whole for gram in ngrams)


def reason_to_drop(
    line: str, source: str, ngrams: frozenset[str] = frozenset(), *, most_characters: int = 4_000
) -> str | None:
    """Return the first reason against a training line, for a funnel: refusal, length, language or leak; or None.

    Args:
        line: Statement, or question and answer.
        source: The section that it was written from.
        ngrams: Those of the evaluation questions (`question_ngrams`).
        most_characters: Longest line.
    """
    if len(line) > most_characters:
        return "length"
    return "leak" if leaks(line, ngrams) else None
