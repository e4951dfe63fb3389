"""Which kind of lines the next piece of a corpus is of: even shares of the tokens, or where a student learns the most.

The bandit is Thompson sampling on the gain per token: a kind's posterior is normal, around the ratio of its gains to
its tokens, with one pseudo-observation at the mean of all kinds. The spread is pooled over kinds, because each has few
observations. Older ones lose half their weight each round: a gain is marginal, and falls as a document's lines grow.

A trial trains the student of a section on the lines that the section has so far and the piece, and compares it with the
one that was trained on these lines alone, with the same seeds. The questions are those of the section.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from evaluation.common.data import derive_seed
from evaluation.statistics import known_mean
from pipelines.loop.loop import Loop
from pipelines.loop.update import Trial as Update
from pipelines.records import Edit, Record, ScoredUpdate
from pipelines.write_corpus.config import Passage, Schedule
from pipelines.write_corpus.funnel import CorpusRow
from pipelines.write_corpus.write import Writer, Written
from teacher.kinds import Kind
from teacher.self_edit import Implication, SelfEdit

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


class Tried:
    """The student's trials over the rounds of a corpus."""

    def __init__(self, loop: Loop, passages: Sequence[Passage], most: int) -> None:
        """`passages` are those that kinds may be tried on, at most `most` of them in a round."""
        self._loop, self.passages, self._most = loop, list(passages), most
        self._held: dict[str, tuple[Implication, ...]] = {}
        self.trials: list[Trial] = []
        self.failed = 0
        """Trials whose update had no score."""

    def round(
        self,
        number: int,
        kinds: Sequence[Kind],
        schedule: Schedule,
        writer: Writer,
        add: Callable[[Written], list[CorpusRow]],
    ) -> None:
        """Try every kind once on each of the round's sections; what is written is added to the corpus."""
        size, most = len(self.passages), min(self._most, len(self.passages))
        chosen = [self.passages[(number * most + i) % size] for i in range(most)]
        pieces = [schedule.of(passage, kind) for passage in chosen for kind in kinds]
        kept: dict[str, dict[str, list[CorpusRow]]] = {}
        for start in range(0, len(pieces), writer.batch):
            for written in writer.write(pieces[start : start + writer.batch]):
                kept.setdefault(written.piece.passage.id, {})[written.piece.kind.name] = add(written)
        updates, places = [], []
        for passage in chosen:
            held = self._held.get(passage.id, ())
            updates.append(self._update(passage, 0, held))
            for place, (name, mine) in enumerate(kept[passage.id].items(), 1):
                if mine:
                    updates.append(self._update(passage, place, (*held, *(row.line for row in mine))))
                    places.append((passage.id, place, name))
        scored = {update.edit_id: update for update in self._loop.update(updates, "rewards")}
        for passage_id, place, name in places:
            after, before = (self._score(scored[f"{passage_id}#{i}"]) for i in (place, 0))
            if after is None or before is None:
                self.failed += 1
                continue
            tokens = max(1, sum(row.tokens for row in kept[passage_id][name]))
            self.trials.append(Trial(kind=name, round=number, tokens=tokens, gain=after - before))
        names, seed = [kind.name for kind in kinds], self._loop.seed("held", number)
        for passage, name in zip(chosen, draw_kinds(names, self.trials, len(chosen), number, seed), strict=True):
            self._held[passage.id] = (*self._held.get(passage.id, ()), *(row.line for row in kept[passage.id][name]))

    def _update(self, passage: Passage, place: int, lines: Sequence[Implication]) -> Update:
        if not lines:
            return Update(passage.id, place, None, 0)
        edit = Edit.written(passage.id, SelfEdit(implications=tuple(lines)), "", index=place)
        return self._loop.trials([edit], "corpus")[0]

    def _score(self, update: ScoredUpdate) -> float | None:
        scores = update.by_question(self._loop.settings.teacher.reward.metric)
        return known_mean(scores) if update.failure is None else None
