"""Credit by line: which lines of a self-edit earned its reward.

A reward is the mean over questions, and most questions hang on one line. Given to the whole self-edit alone, it praises
the useless lines of a good self-edit with the others: with eight lines of which one decides, seven eighths of the
gradient are noise. So each question's gain goes to the line that shares its words; of several to the first one, since
the later ones said nothing new. A line's earnings are then compared with those of the lines at the same place in the
document's other self-edits: later lines have less left to say, and would else be punished for coming late. It is reward
redistribution (RUDDER, arXiv 1806.07857) with the words of the questions in place of a learned attribution, and a
leave-one-out baseline (arXiv 2402.14740) for each step in place of one for the whole.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from evaluation.tasks import Question

_WORD = re.compile(r"\w+")
_TIE = 1e-9


class Earned(NamedTuple):
    """Earnings of the lines of a completion."""

    by_line: tuple[float, ...]
    """On the scale of rewards; of completions without useless words they sum to the gain in reward."""
    of_tokens: tuple[int | None, ...]
    """For each token the line that it is part of, counted from 0; None for tokens without text and blank lines."""


def speakers(lines: Sequence[str], questions: Sequence[Question]) -> list[int | None]:
    """Return for each question the line that answers it, the first of several; None where none does.

    A line is matched to the questions with which it shares the rarest words: words of question and answer that occur in
    it, each weighted by log(Q / questions that have it), are summed, and the highest sum wins, ties all. A word that
    all questions have decides nothing. Of the lines matched to a question, those with the highest sum compete.

    Args:
        lines: L lines of one self-edit.
        questions: Q questions of its document, with their answers.
    """
    of_questions = [_words(f"{q.question} {q.answer}") for q in questions]
    frequency = Counter(word for words in of_questions for word in words)
    rarity = {word: math.log(len(questions) / count) for word, count in frequency.items()}
    best: list[tuple[float, int] | None] = [None] * len(questions)
    for number, line in enumerate(lines):
        of_line = _words(line)
        sums = [math.fsum(rarity[word] for word in sorted(words & of_line)) for words in of_questions]
        most = max(sums, default=0.0)
        for i, total in enumerate(sums):
            if most > _TIE and total > most - _TIE:
                before = best[i]
                if before is None or total > before[0] + _TIE:
                    best[i] = (total, number)
    return [None if found is None else found[1] for found in best]


def line_gains(lines: Sequence[str], questions: Sequence[Question], gains: Sequence[float]) -> list[float]:
    """Return each line's earnings: the sum of the gains of the questions that it answers, divided by Q.

    Args:
        lines: L lines.
        questions: Q questions.
        gains: By question, the student's gain on the scale of rewards.
    """
    earned = [0.0] * len(lines)
    for speaker, gain in zip(speakers(lines, questions), gains, strict=True):
        if speaker is not None:
            earned[speaker] += gain / len(questions)
    return earned


def relative_to_others(earned: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return each line's earnings less the mean of the lines at its place in the document's other self-edits.

    A line without another one at its place gets 0: there is nothing to compare it with.

    Args:
        earned: By self-edit and line (K, L), ragged.
    """
    columns: dict[int, list[float]] = {}
    for row in earned:
        for place, value in enumerate(row):
            columns.setdefault(place, []).append(value)

    def credit(place: int, value: float) -> float:
        column = columns[place]
        return value - (math.fsum(column) - value) / (len(column) - 1) if len(column) > 1 else 0.0

    return [[credit(place, value) for place, value in enumerate(row)] for row in earned]


def lines_of_tokens(token_ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[int | None]:
    """Return for each token its line of the text, counted from 0; None for tokens without text.

    A line break belongs to the line that it ends. `decode` turns token ids into text and leaves special tokens out.
    """
    found: list[int | None] = []
    before = ""
    for end in range(1, len(token_ids) + 1):
        text = decode(token_ids[:end])
        found.append(before.count("\n") if len(text) > len(before) else None)
        before = text
    return found


def earned_by_line(
    token_ids: Sequence[int],
    decode: Callable[[Sequence[int]], str],
    questions: Sequence[Question],
    gains: Sequence[float],
) -> Earned:
    """Return the earnings of the lines of a completion; blank lines are none.

    Args:
        token_ids: T tokens.
        decode: Turns token ids into text; leaves special tokens out.
        questions: Q questions of the document.
        gains: By question, the student's gain on the scale of rewards.
    """
    lines = decode(token_ids).split("\n")
    written = [i for i, line in enumerate(lines) if line.strip()]
    numbers = {place: number for number, place in enumerate(written)}
    places = lines_of_tokens(token_ids, decode)
    return Earned(
        by_line=tuple(line_gains([lines[i] for i in written], questions, gains)),
        of_tokens=tuple(None if place is None else numbers.get(place) for place in places),
    )


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.casefold()))
