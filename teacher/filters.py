"""Filters and text measures of self-edits, which need no update: length, answer coverage, leakage, diversity.

Texts are compared as sequences of words after NFKC and case folding, without white space and punctuation. Each Chinese
or Japanese character is one word; other scripts without spaces are not segmented.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from evaluation.common.data import Frozen
from evaluation.statistics import known_mean
from evaluation.tasks import Question
from teacher.parsing.lines import DropReason, classify
from teacher.rewards import RewardFailure
from teacher.self_edit import SelfEdit

_UNSPACED = "\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_RUN = re.compile(r"\w+")
"""Words for diversity: no punctuation, so no list markers either."""

NGRAM = 8
"""Words per n-gram of a question; a shorter question counts as one n-gram."""
_LEAST_CHARACTERS, _MOST_CHARACTERS, _LEAST_WORDS, _SAMPLE = 8, 4_000, 3, 4_000
"""Of a line; function words by which a language is known; characters of a source that are looked at."""
_AS_AN_AI = re.compile(
    r"\b(?:as an? (?:ai\b|artificial intelligence|(?:large )?language model)|als ki\b|en tant qu['’]ia\b"
    r"|como (?:una )?ia\b)",
    re.IGNORECASE,
)
_LANGUAGES = {
    name: frozenset(words.split())
    for name, words in {
        "English": "the of and is was are were to that for with by from it which has have this not",
        "German": "der die das und ist nicht ein eine mit von den dem im zu auf für wurde sich auch als",
        "French": "le les des est une dans que et du pour par sur qui pas au aux sont avec cette il",
        "Spanish": "el los las una es en que y del por con para se su como fue más al son entre",
        "Italian": "il che di una è sono nel gli del della per con non più anche alla dal ha dei fu",
        "Portuguese": "o os as uma não dos em do da que e por com para foi mais ao são na no",
        "Dutch": "het een van en niet zijn dat de op te met voor werd is aan ook bij naar door wordt",
    }.items()
}
"""Function words of languages in Latin script."""


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
    worded = (_spaced(words) for q in questions if (words := _words(q.question)))
    unseen = [text for text in worded if text not in source]
    grams = question_ngrams(questions, passage, ngram)
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


def question_ngrams(questions: Sequence[Question], passage: str, ngram: int = NGRAM) -> frozenset[str]:
    """Return the n-grams of evaluation questions that do not stand in the passage; see `leaks`."""
    source = _spaced(_words(passage))
    worded = (_words(question.question) for question in questions)
    grams = (_spaced(gram) for words in worded for gram in _ngrams(words, min(ngram, len(words))))
    return frozenset(gram for gram in grams if gram.strip() and gram not in source)


def leaks(line: str, ngrams: frozenset[str]) -> bool:
    """Return whether a line has an 8-gram of an evaluation question, or all of a shorter one."""
    text = _spaced(_words(line))
    return any(gram in text for gram in ngrams)


def reason_to_drop(
    line: str, source: str, ngrams: frozenset[str]
) -> Literal["length", "refusal", "language", "leak"] | None:
    """Return the first reason against a line that was written from a source, given the questions' 8-grams, or None."""
    if not _LEAST_CHARACTERS <= len(line) <= _MOST_CHARACTERS:
        return "length"
    parts = (line, line.rpartition("Answer: ")[2])
    if _AS_AN_AI.search(line) or any(classify(part, 0).kind is DropReason.REFUSAL for part in parts):
        return "refusal"
    if _other_language(line, source):
        return "language"
    return "leak" if leaks(line, ngrams) else None


def _other_language(line: str, source: str) -> bool:
    """Return whether a line is in another script than its source, or has function words of another language alone."""
    texts = (line, source[:_SAMPLE])
    if len({*map(_script, texts)} - {""}) > 1:
        return True
    counts = [{name: sum(word in own for word in _words(text)) for name, own in _LANGUAGES.items()} for text in texts]
    mine, its = (max(count, key=lambda name: count[name]) for count in counts)
    return counts[0][mine] >= _LEAST_WORDS and counts[1][its] >= _LEAST_WORDS and counts[0][mine] > 2 * counts[0][its]


def _script(text: str) -> str:
    """Return the script of most letters; empty without any, or where none has most."""
    names = (unicodedata.name(letter, "").partition(" ")[0] for letter in text if letter.isalpha())
    counts = Counter("CJK" if name in ("HIRAGANA", "KATAKANA") else name for name in names)
    return next((script for script, count in counts.items() if 2 * count > counts.total()), "")
