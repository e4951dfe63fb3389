"""Credit of single lines: which lines of a self-edit earned its reward.

A reward is the mean over questions, and most questions hang on one line. Given to the whole self-edit alone, it praises
the useless lines of a good self-edit with the others: with eight lines of which one decides, seven eighths of the
gradient are noise. So each question's gain is shared by the lines that speak of it, by their words, and what a line
has more or less than the mean of its self-edit's lines is added to its tokens. This moves weight between the lines of
a self-edit and leaves the sum as it is, so that which self-edits are better, and how long they should be, is still
decided by the reward alone. Saying a thing twice shares its credit. It is reward redistribution (RUDDER, arXiv
1806.07857) with the words of the questions in place of a learned attribution.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

from evaluation.tasks import Question

_WORD = re.compile(r"\w+")
_TIE = 1e-9


def attribution(lines: Sequence[str], questions: Sequence[Question]) -> list[list[float]]:
    """Return the share (L, Q) of each question's gain that each line gets; a question's shares sum to 1 or 0.

    A line speaks of the questions with which it shares the rarest words: words of question and answer that occur in
    it, each weighted by log(Q / questions that have it), are summed, and the highest sum wins, ties all. A word that
    all questions have decides nothing. The gain of a question that several lines speak of is shared equally.

    Args:
        lines: L lines of one self-edit.
        questions: Q questions of its document, with their answers.
    """
    asked = [_words(f"{q.question} {q.answer}") for q in questions]
    frequency = Counter(word for words in asked for word in words)
    rarity = {word: math.log(len(questions) / count) for word, count in frequency.items()}
    speaks = []
    for line in lines:
        told = _words(line)
        sums = [math.fsum(rarity[word] for word in sorted(words & told)) for words in asked]
        most = max(sums, default=0.0)
        speaks.append([most > _TIE and total > most - _TIE for total in sums])
    counts = [sum(column) for column in zip(*speaks, strict=True)] if speaks else []
    return [[said / count if count else 0.0 for said, count in zip(row, counts, strict=True)] for row in speaks]


def line_credits(lines: Sequence[str], questions: Sequence[Question], gains: Sequence[float]) -> list[float]:
    """Return what each line earned more or less than the mean line of its self-edit, on the scale of rewards.

    A line that earned c of a self-edit's total C has the credit L c - C: as an advantage of its tokens, it is what the
    reward would change by if all lines were like this one. Credits sum to 0.

    Args:
        lines: L lines.
        questions: Q questions.
        gains: By question, what the student gained, on the scale of rewards.
    """
    shares = attribution(lines, questions)
    earned = [
        math.fsum(s * gain for s, gain in zip(row, gains, strict=True)) / max(len(questions), 1) for row in shares
    ]
    total = math.fsum(earned)
    return [len(lines) * value - total for value in earned]


def lines_of_tokens(token_ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[int | None]:
    """Return for each token the line of the text that it is part of, counted from 0; None for tokens without text.

    A line break belongs to the line that it ends.

    Args:
        token_ids: Of a completion.
        decode: Turns token ids into text; leaves special tokens out.
    """
    found: list[int | None] = []
    before = ""
    for end in range(1, len(token_ids) + 1):
        text = decode(token_ids[:end])
        found.append(before.count("\n") if len(text) > len(before) else None)
        before = text
    return found


def token_credits(
    token_ids: Sequence[int],
    decode: Callable[[Sequence[int]], str],
    questions: Sequence[Question],
    gains: Sequence[float],
) -> tuple[float, ...]:
    """Return the credit of each token of a completion: that of its line, 0 for blank lines and special tokens.

    Args:
        token_ids: T tokens.
        decode: Turns token ids into text; leaves special tokens out.
        questions: Q questions of the document.
        gains: By question, what the student gained, on the scale of rewards.
    """
    places = lines_of_tokens(token_ids, decode)
    lines = decode(token_ids).split("\n")
    written = [i for i, line in enumerate(lines) if line.strip()]
    values = line_credits([lines[i] for i in written], questions, gains)
    credit = dict(zip(written, values, strict=True))
    return tuple(0.0 if place is None else credit.get(place, 0.0) for place in places)


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.casefold()))
