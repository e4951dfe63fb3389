"""Tables of what the teacher learned from and what it writes: reliability, self-edits, the other student."""

from __future__ import annotations

from collections.abc import Mapping

from evaluation.statistics import known_mean
from pipelines.evidence import over_seeds
from pipelines.evidence.cells import UNKNOWN, difference, in_order, percent, plain, points, share, table, variant
from pipelines.evidence.over_seeds import LEARNED, Results
from pipelines.records import ReliabilityRecord

NOTES = {
    "tokens": ("tokens", False),
    "parsed": ("valid, %", True),
    "lines": ("lines", False),
    "coverage": ("facts covered, %", True),
    "answers": ("answers held, %", True),
    "leaked_rewards": ("reward questions held, %", True),
    "leaked_comparison": ("test questions held, %", True),
    "distinct_1": ("distinct words", False),
    "distinct_2": ("distinct word pairs", False),
}
"""Figures about self-edits: heading, and whether they are shares."""


def of_three(record: ReliabilityRecord) -> float:
    """Return the reliability of the mean of three updates, in [0, 1] (Spearman 1910; Brown 1910)."""
    between = max(record.between_variance, 0.0)
    total = between + record.within_variance / 3.0
    return between / total if total > 0.0 else 0.0


def reliability_table(results: Results) -> str:
    """Return how reliable rewards were before any learning and in the last rounds; empty where it was not measured."""
    rows = []
    for seed, result in results.items():
        measured = {f"before learning, {metric}": record for metric, record in result.pilot.items()}
        if result.reliability is not None:
            measured["last rounds"] = result.reliability
        for when, record in measured.items():
            last = when == "last rounds"
            rows.append(
                [
                    when,
                    str(seed),
                    plain(record.of_one),
                    plain(of_three(record)),
                    plain(record.of_reward) if last else UNKNOWN,
                    plain(record.runs) if last else UNKNOWN,
                    f"{result.inner_runs:,}" if last else UNKNOWN,
                ]
            )
    heads = ["", "seed", "of one update", "of three", "of the rewards learned from", "their updates", "updates in all"]
    return table(heads, sorted(rows, key=lambda row: row[0])) if rows else ""


def edits_table(results: Results) -> str:
    """Return the figures about self-edits by variant, means over seeds; empty where there are none."""
    names = in_order({name for result in results.values() for name in result.edit_notes})
    notes = [result.edit_notes for result in results.values()]
    shown = [key for key in NOTES if any(key in found.get(name, {}) for found in notes for name in names)]

    def cell(name: str, key: str) -> str:
        mean = known_mean(found.get(name, {}).get(key) for found in notes)
        if key == "tokens" and not mean:  # nobody wrote it
            return UNKNOWN
        return percent(mean) if NOTES[key][1] else plain(mean, 0 if key == "tokens" else 2)

    rows = [[variant(name), *(cell(name, key) for key in shown)] for name in names]
    return table(["self-edits", *(NOTES[key][0] for key in shown)], rows) if shown else ""


def transfer_table(results: Results) -> str:
    """Return accuracies and gains on the other student beside those on the student that rewards came from."""
    there = over_seeds.transferred(results)
    if not there:
        return ""
    both = {seed: results[seed] for seed in there}
    rows = []
    for name in in_order(set.intersection(*(set(scores) for scores in there.values()))):
        groups = [list(scores[name].values()) for scores in there.values()]
        rows.append([variant(name), share(over_seeds.accuracy(both, name)), share(over_seeds.pooled(groups, low=0.0))])
    pairs = [over_seeds.paired(scores, *LEARNED) for scores in there.values()]
    found = over_seeds.over_seeds(pairs)
    here = over_seeds.gain(both, "trained_minus_untrained")
    cells = [difference(None if gain is None else gain.bootstrap) for gain in (here, found)]
    rows.append(["trained − untrained, points", *cells])
    rows.append(["share of this gain kept, %", UNKNOWN, share(over_seeds.kept(both))])
    label = next(result.transfer.label for result in both.values() if result.transfer is not None)
    return table(["accuracy, %", "student of the rewards", label], rows)


def rounds_sentence(results: Results) -> str:
    """Return how the mean reward went from the first to the last round of each seed."""
    told = []
    for seed, result in results.items():
        known = [value for figures in result.rounds if (value := _reward(figures)) is not None]
        if len(known) > 1:
            rounds = len(result.rounds)
            told.append(f"seed {seed} {known[0]:.3f} to {known[-1]:.3f} ({points(known[-1] - known[0])}) in {rounds}")
    return f"Mean reward from the first to the last round: {'; '.join(told)}." if told else ""


def _reward(figures: Mapping[str, float | int | None]) -> float | None:
    return figures.get("mean_reward")
