"""Which kind of lines the next piece of a corpus is of: even shares of the tokens, or where a student learns the most.

The bandit is Thompson sampling on the gain per token: a kind's posterior is normal, around the ratio of its gains to
its tokens, with one pseudo-observation at the mean of all kinds. The spread is pooled over kinds, because each has few
observations. Older ones lose half their weight each round: a gain is marginal, and falls as a document's lines grow.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from evaluation.common.data import derive_seed
from pipelines.records import Record

MEMORY = 0.5
"""Weight that an observation keeps from one round to the next."""
PER_TOKENS = 1000.0
"""Gains are reported for so many tokens."""


class Trial(Record):
    """A piece of one kind, tried on the student."""

    kind: str
    round: int
    tokens: int
    """At least 1."""
    gain: float
    """Mean score of the section's questions after the update, less that without the piece, in [-1, 1]."""


class KindGain(Record):
    """What the student gained from a kind."""

    kind: str
    pieces: int
    """Tried on the student."""
    gain: float
    """Mean over the pieces, in [-1, 1]."""
    per_tokens: float
    """Gain for 1,000 tokens: the ratio of sums."""
    error: float
    """Standard error of `per_tokens` (delta method); 0 for a single piece."""


def gains_of(trials: Sequence[Trial]) -> tuple[KindGain, ...]:
    """Return the gain of each kind, all rounds alike, the highest per token first."""
    by_kind: dict[str, list[Trial]] = {}
    for trial in trials:
        by_kind.setdefault(trial.kind, []).append(trial)
    found = []
    for kind, mine in by_kind.items():
        tokens, gain = sum(t.tokens for t in mine), sum(t.gain for t in mine)
        rest = sum((t.gain - gain / tokens * t.tokens) ** 2 for t in mine)
        error = math.sqrt(rest * len(mine) / max(1, len(mine) - 1)) / tokens
        rate = {"per_tokens": PER_TOKENS * gain / tokens, "error": PER_TOKENS * error}
        found.append(KindGain(kind=kind, pieces=len(mine), gain=gain / len(mine), **rate))
    return tuple(sorted(found, key=lambda each: -each.per_tokens))


class _Arm(NamedTuple):
    weight: float
    tokens: float
    gain: float


def draw_kinds(kinds: Sequence[str], trials: Sequence[Trial], count: int, round_: int, seed: int) -> list[str]:
    """Return the kinds of the next `count` pieces by Thompson sampling; without trials, each in turn."""
    if not trials:
        return [kinds[i % len(kinds)] for i in range(count)]
    arms = {kind: _Arm(0.0, 0.0, 0.0) for kind in kinds}
    spread = degrees = 0.0
    rate = sum(t.gain for t in trials) / sum(t.tokens for t in trials)
    for kind in kinds:
        mine = [(MEMORY ** (round_ - t.round), t) for t in trials if t.kind == kind]
        arm = _Arm(*(math.fsum(w * x for w, x in ((w, of(t)) for w, t in mine)) for of in _SUMS))
        own = arm.gain / arm.tokens if mine else rate
        spread += math.fsum(w * (t.gain - own * t.tokens) ** 2 for w, t in mine)
        degrees += max(0.0, arm.weight - MEMORY) if mine else 0.0
        arms[kind] = arm
    variance = spread / degrees if degrees else 0.0
    typical = sum(t.tokens for t in trials) / len(trials)
    rng = random.Random(derive_seed(seed, "kinds", round_))

    def drawn(arm: _Arm) -> float:
        tokens = arm.tokens + typical
        mean = (arm.gain + rate * typical) / tokens
        return rng.gauss(mean, math.sqrt(variance * (arm.weight + 1.0)) / tokens)

    return [max(kinds, key=lambda kind: drawn(arms[kind])) for _ in range(count)]


_SUMS = (lambda _: 1.0, lambda trial: trial.tokens, lambda trial: trial.gain)


def even_kinds(kinds: Sequence[str], spent: Mapping[str, int], pieces: Mapping[str, int], count: int) -> list[str]:
    """Return the kinds of the next `count` pieces that bring all kinds to the same number of tokens.

    `spent` are the tokens kept so far, and `pieces` their number, by kind; a kind without any is as long as the others.
    Of one that yields little, at most eight times as many pieces are written as of the others.
    """
    rates = [spent[kind] / pieces[kind] for kind in kinds if spent.get(kind)]
    whole = sum(rates) / len(rates) if rates else 1.0
    size = {kind: max(whole / 8, spent.get(kind, 0) / pieces[kind]) if pieces.get(kind) else whole for kind in kinds}
    tokens = {kind: size[kind] * pieces.get(kind, 0) for kind in kinds}
    chosen = []
    for _ in range(count):
        kind = min(kinds, key=lambda each: tokens[each])
        tokens[kind] += size[kind]
        chosen.append(kind)
    return chosen
