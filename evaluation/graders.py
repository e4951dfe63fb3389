"""Graders of free-text answers: whether what a student wrote answers a question, judged by gold answers.

Here are the rules, which are pure; `evaluation.judge` asks a language model. Both give a grade or a typed reason why
there is none. On the 44,132 different answers that SEAL's published runs (arXiv 2506.10943) graded with GPT-4.1,
`GoldTokenRecallGrader` with its defaults agrees with GPT-4.1 on 86.6 %, Cohen's kappa 0.725 (precision 0.91, recall
0.78): it misses paraphrases and numbers in words. `ExactGrader` and `TokenF1Grader` are for short answers; those are
mostly sentences, on which their kappas are 0.05 and 0.12.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Protocol, TypeAlias

from evaluation.errors import ConfigError, InputError
from evaluation.grader_config import (
    ExactGrading,
    FreeTextGrading,
    GoldTokenRecallGrading,
    JudgeGrading,
    TokenF1Grading,
)

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, slots=True)
class GradeItem:
    """An answer to grade."""

    question: str
    """As asked, without any prompt around it."""
    answers: tuple[str, ...]
    """Gold answers, at least one, none of them blank; any of them suffices."""
    text: str
    """What the student wrote."""

    def __post_init__(self) -> None:
        if not self.answers or not all(answer.strip() for answer in self.answers):
            raise InputError(
                f"grader: question {self.question!r} has the gold answers {self.answers!r}, allowed is at least one "
                "and none that is blank. Complete the question, or leave it out."
            )

    @property
    def empty(self) -> bool:
        """The student wrote nothing but white space."""
        return not self.text.strip()


class Opinion(StrEnum):
    """What one call to a judge brought."""

    YES = "yes"
    NO = "no"
    UNCLEAR = "unclear"
    """An answer that is neither yes nor no."""
    FAILED = "failed"
    """No answer."""


@dataclass(frozen=True, slots=True)
class Grade:
    """A graded answer."""

    value: float
    """How right it is, in [0, 1], by the grader's own measure."""
    correct: bool
    """Whether it counts as right."""
    empty: bool = False
    """The answer is empty, which is wrong by rule: value 0, and no grader was asked. To be counted: a student that
    falls silent has collapsed."""
    opinions: tuple[Opinion, ...] = ()
    """A judge's, one for each repeat; none where a rule decided."""


class UngradedReason(StrEnum):
    """Why an answer has no grade."""

    UNCLEAR = "unclear"
    """The judge answered, and never yes or no."""
    TIED = "tied"
    """As many clear verdicts for as against."""
    FAILED = "failed"
    """The judge could not be asked."""


@dataclass(frozen=True, slots=True)
class Ungraded:
    """An answer without a grade; it is neither right nor wrong."""

    reason: UngradedReason
    detail: str
    """What the judge wrote, or what the endpoint or the network said."""
    opinions: tuple[Opinion, ...] = ()
    """A judge's, one for each repeat."""


Graded: TypeAlias = Grade | Ungraded


class Grader(Protocol):
    """Decides whether answers are right."""

    def grade(self, items: Sequence[GradeItem]) -> list[Graded]:
        """Return a grade for each item, or why it has none, in order."""


EMPTY = Grade(0.0, False, empty=True)
"""The grade of every empty answer."""


def normalize_answer(text: str) -> str:
    """Return an answer in lower case without ASCII punctuation, English articles and extra white space.

    The normalization of SQuAD's official evaluation (Rajpurkar et al. 2016, arXiv 1606.05250, `normalize_answer` in
    `evaluate-v1.1.py`).
    """
    return " ".join(_ARTICLES.sub(" ", _without_punctuation(text)).split())


def exact_match(answer: str, text: str) -> float:
    """Return 1 if a text is a gold answer after `normalize_answer`, else 0.

    Args:
        answer: The gold answer, not blank. Where normalization leaves nothing of it, as of "A" or "%", every such text
            would equal it, so both keep their articles, or their punctuation; the same goes for the other measures.
        text: What the student wrote.
    """
    gold, given = _words(answer, text)
    return float(gold == given)


def token_f1(answer: str, text: str) -> float:
    """Return the harmonic mean of precision and recall of a text's words, in [0, 1]; repeated words count repeatedly.

    SQuAD's F1 (Rajpurkar et al. 2016, arXiv 1606.05250, section 6.1), on words after `normalize_answer`.

    Args:
        answer: The gold answer, not blank.
        text: What the student wrote.
    """
    gold, given = _words(answer, text)
    return 2.0 * sum((Counter(gold) & Counter(given)).values()) / (len(gold) + len(given))


def gold_token_recall(answer: str, text: str, language: str = "english") -> float:
    """Return the share of a gold answer's different stems that a text holds, in [0, 1].

    Words after `normalize_answer` are stemmed with Snowball (Porter 1980, 2001) and lose their accents. What else the
    text says costs nothing, which suits students that answer in sentences and rewards those that list guesses.

    Args:
        answer: The gold answer, not blank.
        text: What the student wrote.
        language: One of Snowball's.
    """
    gold, given = ({_stem(word, language) for word in words} for words in _words(answer, text))
    return len(gold & given) / len(gold)


class ExactGrader:
    """Exact match: right is what equals a gold answer after normalization."""

    def grade(self, items: Sequence[GradeItem]) -> list[Graded]:
        """Return 1 or 0 for each item."""
        return _grades(items, exact_match, 1.0)


class TokenF1Grader:
    """Token F1: the value is the best over the gold answers, right from a threshold on."""

    def __init__(self, config: TokenF1Grading) -> None:
        """Take the threshold."""
        self._config = config

    def grade(self, items: Sequence[GradeItem]) -> list[Graded]:
        """Return the F1 of each item."""
        return _grades(items, token_f1, self._config.threshold)


class GoldTokenRecallGrader:
    """Recall of gold tokens: the value is the best over the gold answers, right from a threshold on."""

    def __init__(self, config: GoldTokenRecallGrading) -> None:
        """Take threshold and language."""
        self._config = config

    def grade(self, items: Sequence[GradeItem]) -> list[Graded]:
        """Return the recall of each item."""
        language = self._config.language
        return _grades(items, lambda answer, text: gold_token_recall(answer, text, language), self._config.threshold)


def build_grader(config: FreeTextGrading, ledger_path: Path | None = None, scope: str = "judge") -> Grader:
    """Return the grader that `config` names.

    Args:
        config: Which one.
        ledger_path: Where a judge's replies are kept; rules need none.
        scope: Whose calls a judge's budget counts.

    Raises:
        ConfigError: A judge has no ledger, or its key is missing.
    """
    if isinstance(config, ExactGrading):
        return ExactGrader()
    if isinstance(config, GoldTokenRecallGrading):
        return GoldTokenRecallGrader(config)
    if isinstance(config, TokenF1Grading):
        return TokenF1Grader(config)
    return _judge(config, ledger_path, scope)


def _judge(config: JudgeGrading, ledger_path: Path | None, scope: str) -> Grader:
    from evaluation.judge import JudgeGrader

    if ledger_path is None:
        raise ConfigError(
            "grader: got the type judge without a ledger, allowed is a path where its replies are kept, so that none "
            "is paid for twice. Give one, or grade by a rule: exact, gold-token-recall, token-f1."
        )
    return JudgeGrader(config, ledger_path, scope)


def _grades(items: Sequence[GradeItem], measure: Callable[[str, str], float], threshold: float) -> list[Graded]:
    """Return for each item the best value over its gold answers, correct from `threshold` on."""
    grades: list[Graded] = []
    for item in items:
        if item.empty:
            grades.append(EMPTY)
        else:
            value = max(measure(answer, item.text) for answer in item.answers)
            grades.append(Grade(value, value >= threshold))
    return grades


def _words(answer: str, text: str) -> tuple[list[str], list[str]]:
    """Return the words of a gold answer and of a text, after the strongest normalization that leaves the answer any."""
    for normalize in (normalize_answer, _without_punctuation):
        if words := normalize(answer).split():
            return words, normalize(text).split()
    return answer.lower().split(), text.lower().split()


def _without_punctuation(text: str) -> str:
    return text.lower().translate(_PUNCTUATION)


@lru_cache(maxsize=1 << 16)
def _stem(word: str, language: str) -> str:
    """Return the stem without accents; they go last, because stemmers of other languages know them."""
    import snowballstemmer

    # A stemmer holds the word it works on, so threads must not share one.
    stem = str(snowballstemmer.stemmer(language).stemWord(word))
    return "".join(c for c in unicodedata.normalize("NFKD", stem) if not unicodedata.combining(c))
