"""Rewards: a self-edit's reward or the typed reason for its absence, advantages, and credit of single lines.

A failure is never a number: a full disk must not look to the teacher like a self-edit without effect.

Credit by line: most questions depend on one line, so one reward for all lines is mostly noise in their gradient. Each
question's gain is attributed to the line that shares its words, the first of several, since later ones add nothing. Its
baseline is the same position in the document's other self-edits, because later lines have less left to add. This is
reward redistribution (RUDDER, arXiv 1806.07857) with word overlap in place of a learned attribution, and a
leave-one-out baseline (arXiv 2402.14740) per line in place of one per completion.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from enum import StrEnum
from statistics import fmean
from typing import Literal, NamedTuple, Protocol

from pydantic import Field

from evaluation.common.data import Frozen
from evaluation.tasks import Question
from teacher.parsing.lines import Kind, classify

_WORD = re.compile(r"\w+")
_TIE = 1e-9
"""Difference up to which two rewards, or two word overlaps, count as equal."""


class RewardConfig(Frozen):
    """Aggregation of update scores into one reward."""

    metric: Literal["accuracy", "probability", "token_probability"] = "probability"
    """`accuracy`: exact match, in [0, 1]; `probability`: mean probability of the gold answer, in [0, 1], with a lower
    variance between seeds; `token_probability`: mean over questions of the geometric mean of the gold tokens'
    probabilities, in [0, 1], which still discriminates where long answers have almost no probability."""
    retention_weight: float = Field(default=0.0, ge=0.0, le=10.0)
    """Penalty per unit of forgetting (drop in retention accuracy), in [0, 10]; 0 ignores forgetting."""


class RewardFailure(StrEnum):
    """Reason why a self-edit has no reward, in pipeline order."""

    PROMPT_TOO_LONG = "prompt_too_long"
    """The document does not fit the teacher's context; nothing was sampled."""
    GENERATION_FAILED = "generation_failed"
    PARSE_FAILED = "parse_failed"
    OVER_BUDGET = "over_budget"
    """The self-edit is longer, or requests more training, than allowed."""
    LEAKED = "leaked"
    """The self-edit contains evaluation questions, and the run rejects these."""
    UPDATE_FAILED = "update_failed"
    CANARY_FAILED = "canary_failed"
    """The update did not change the adapter as expected, or changed the base."""
    SCORING_FAILED = "scoring_failed"
    """The updated student could not be scored, or a score is missing or outside its range."""
    NON_FINITE = "non_finite"
    MISSING_REPLICATES = "missing_replicates"


REFUSALS = frozenset({RewardFailure.PARSE_FAILED, RewardFailure.OVER_BUDGET, RewardFailure.LEAKED})
"""Failures caused by the teacher's output."""

_SCORES = {"accuracy": "accuracy", "probability": "mean_probability", "token_probability": "mean_token_probability"}
"""Attribute of `Scores` for each metric."""


class Scores(Protocol):
    """Scores of one update with one seed; None where not measured."""

    @property
    def failure(self) -> RewardFailure | None:
        """If set, the scores are ignored."""

    @property
    def accuracy(self) -> float | None:
        """In [0, 1]; see `RewardConfig.metric`, as for the next two."""

    @property
    def mean_probability(self) -> float | None:
        """In [0, 1]."""

    @property
    def mean_token_probability(self) -> float | None:
        """In [0, 1]."""

    @property
    def forgetting(self) -> float | None:
        """Retention accuracy before minus after the update, in [-1, 1]."""


def reward_of(replicates: Sequence[Scores], config: RewardConfig) -> float | RewardFailure:
    """Return the mean reward of the successful updates, on the metric's scale minus the retention penalty.

    Without any, return the most common failure; ties go to the earliest in the pipeline.
    """
    scored = [_value_of(replicate, config) for replicate in replicates]
    if values := [value for value in scored if not isinstance(value, RewardFailure)]:
        return fmean(values)
    failures = [value for value in RewardFailure for found in scored if found == value]
    return max(failures, key=failures.count, default=RewardFailure.MISSING_REPLICATES)


def _value_of(scores: Scores, config: RewardConfig) -> float | RewardFailure:
    if scores.failure is not None:
        return scores.failure
    score: float | None = getattr(scores, _SCORES[config.metric])
    forgetting = scores.forgetting if config.retention_weight > 0.0 else 0.0
    if score is None or forgetting is None:
        return RewardFailure.SCORING_FAILED
    if not (math.isfinite(score) and math.isfinite(forgetting)):
        return RewardFailure.NON_FINITE
    if not (0.0 <= score <= 1.0 and -1.0 <= forgetting <= 1.0):
        return RewardFailure.SCORING_FAILED
    return score - config.retention_weight * forgetting


def leave_one_out_advantages(rewards: Sequence[float | None]) -> list[float | None]:
    """Return each reward minus the mean of its group's other rewards (RLOO, arXiv 2402.14740); None without others.

    Equals G / (G - 1) times the deviation from the group mean.
    """
    known = [reward for reward in rewards if reward is not None]
    if len(known) < 2:
        return [None] * len(rewards)
    mean, scale = fmean(known), len(known) / (len(known) - 1)
    return [None if reward is None else scale * (reward - mean) for reward in rewards]


def has_spread(rewards: Sequence[float | None]) -> bool:
    """Return whether two rewards of a group differ; None is ignored."""
    known = [reward for reward in rewards if reward is not None]
    return len(known) > 1 and max(known) - min(known) > _TIE


class LineGains(NamedTuple):
    """Gains of the non-blank lines of a completion; a question and its answer count as one line."""

    gains: tuple[float, ...]
    """By line, on the reward's scale."""
    token_lines: tuple[int | None, ...]
    """By token, the index of its line; None for special tokens and blank lines."""


def line_gains(
    token_ids: Sequence[int],
    decode: Callable[[Sequence[int]], str],
    questions: Sequence[Question],
    gains: Sequence[float],
) -> LineGains:
    """Return the gains of a completion's lines, given the student's gain by question (Q,) on the reward's scale.

    An answer below its question shares the credit, since the words that tell which question a pair is about are mostly
    the question's, while what the student learns is the answer. `decode` must omit special tokens.
    """
    texts: list[str] = []
    numbers: dict[int | None, int] = {}
    labelled = False
    for place, line in enumerate(decode(token_ids).split("\n")):
        if not line.strip():
            continue
        read = classify(line)
        if texts and (labelled or read.kind is Kind.ANSWER):
            texts[-1] += f" {line}"
        else:
            texts.append(line)
        numbers[place] = len(texts) - 1
        labelled = read.kind in (Kind.QUESTION, Kind.ANSWER) and not read.text
    token_lines = tuple(map(numbers.get, _token_lines(token_ids, decode)))
    return LineGains(tuple(attributed_gains(texts, questions, gains)), token_lines)


def attributed_gains(lines: Sequence[str], questions: Sequence[Question], gains: Sequence[float]) -> list[float]:
    """Return for each line (L,) the sum of the gains (Q,) of the questions attributed to it, divided by Q."""
    found = [0.0] * len(lines)
    for line, gain in zip(attributed_lines(lines, questions), gains, strict=True):
        if line is not None:
            found[line] += gain / len(questions)
    return found


def attributed_lines(lines: Sequence[str], questions: Sequence[Question]) -> list[int | None]:
    """Return for each question (Q,) the index of the first line that answers it best; None where no line does.

    A line matches the questions with the highest word overlap, in which a word of question and answer weighs
    log(Q / number of questions with it). Each question then takes the matching line of the highest overlap.
    """
    of_questions = [_words(f"{q.question} {q.answer}") for q in questions]
    frequency = Counter(word for words in of_questions for word in words)
    rarity = {word: math.log(len(questions) / count) for word, count in frequency.items()}
    best: list[tuple[float, int | None]] = [(-math.inf, None)] * len(questions)
    for number, line in enumerate(lines):
        of_line = _words(line)
        overlaps = [math.fsum(rarity[word] for word in sorted(words & of_line)) for words in of_questions]
        most = max(overlaps, default=0.0)
        for i, overlap in enumerate(overlaps):
            if most > _TIE and overlap > most - _TIE and overlap > best[i][0] + _TIE:
                best[i] = (overlap, number)
    return [line for _, line in best]


def line_advantages(gains: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return each line's gain (K, ragged L) minus the mean at its position in the other self-edits, 0 without any."""
    columns = [
        [row[position] for row in gains if position < len(row)] for position in range(max(map(len, gains), default=0))
    ]

    def advantage(gain: float, column: Sequence[float]) -> float:
        return gain - (math.fsum(column) - gain) / (len(column) - 1) if len(column) > 1 else 0.0

    return [[advantage(gain, column) for gain, column in zip(row, columns, strict=False)] for row in gains]


def _token_lines(token_ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[int | None]:
    """Return for each token the index of its line; None for tokens without text. A newline ends its own line."""
    found: list[int | None] = []
    before = ""
    for end in range(1, len(token_ids) + 1):
        text = decode(token_ids[:end])
        found.append(before.count("\n") if len(text) > len(before) else None)
        before = text
    return found


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.casefold()))
