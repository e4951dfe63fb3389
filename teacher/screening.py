"""Screening: which candidates are left out before any student is updated, and how well the cheap score told.

Most of a round's time goes into updates of students, and a score that costs nearly nothing (the gold answer's
probability with the self-edit in context, or a regression on features) knows many of the poor candidates beforehand.
Some of those are updated all the same, drawn at random: only they tell what screening throws away.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

_ROUNDING = 1e-9
"""Lets a share that floating point puts just below a whole number of candidates reach it, such as 0.29 of 100."""


@dataclass(frozen=True, slots=True)
class Screened:
    """What becomes of each candidate (N), in the order given."""

    run: tuple[bool, ...]
    """Students are updated with it."""
    audited: tuple[bool, ...]
    """It was to be skipped, and runs all the same."""


@dataclass(frozen=True, slots=True)
class ScreeningCheck:
    """How well a cheap score told the rewards that followed."""

    rank_correlation: float | None
    """Spearman's, within groups, in [-1, 1]."""
    audited_gap: float | None
    """Mean reward of the candidates that screening kept less that of the audited, in reward units; above 0 where the
    score tells."""


def screen(
    groups: Sequence[str],
    scores: Sequence[float | None],
    *,
    skip_share: float,
    audit_share: float,
    rng: random.Random,
) -> Screened:
    """Return which candidates run: of each group's scored ones, the worst are skipped but for those audited.

    Of n candidates with a score, the floor(skip_share * n) worst are to be skipped, of equal ones the later sampled
    first. One without a score always runs. Each candidate has one draw, in the order given and whatever its score, so
    that which of them would be audited does not depend on the scores.

    Args:
        groups: For each of N candidates the id of its document; a group need not be contiguous.
        scores: Of each candidate, larger is better; None, or one that is not finite, where it has none.
        skip_share: In [0, 1].
        audit_share: Chance that one to be skipped runs all the same, in [0, 1].
        rng: Source of the N draws.

    Raises:
        ValueError: A share is out of range, or there are not as many scores as groups.
    """
    for name, share in (("skip_share", skip_share), ("audit_share", audit_share)):
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"{name}: got {share}, allowed is [0, 1]")
    skipped: set[int] = set()
    scored: dict[str, list[tuple[float, int]]] = {}
    for i, (group, score) in enumerate(zip(groups, scores, strict=True)):
        if score is not None and math.isfinite(score):
            scored.setdefault(group, []).append((score, -i))
    for members in scored.values():
        count = math.floor(skip_share * len(members) + _ROUNDING)
        skipped.update(-negated for _, negated in sorted(members)[:count])
    drawn = [rng.random() < audit_share for _ in groups]
    audited = tuple(i in skipped and drawn[i] for i in range(len(groups)))
    return Screened(run=tuple(i not in skipped or audited[i] for i in range(len(groups))), audited=audited)


def check_screening(
    groups: Sequence[str],
    scores: Sequence[float | None],
    rewards: Sequence[float | None],
    audited: Sequence[bool],
) -> ScreeningCheck:
    """Return how well cheap scores told the rewards of the candidates that ran.

    Beware of the correlation: where candidates were skipped, the candidates that ran are mostly those with good scores,
    and over such a restricted range it is biased, as a rule towards 0 (Thorndike 1949, Personnel Selection, chapter 6).
    The audited are a random sample of those to be skipped, so the gap between them and the kept is not biased.

    Args:
        groups: For each of N candidates the id of its document.
        scores: Cheap scores, larger is better; None, or one that is not finite, where there is none.
        rewards: None, or one that is not finite, where there is none, as of the skipped.
        audited: Whether it was to be skipped and ran all the same.

    Returns:
        None for what cannot be computed: the correlation from fewer than three candidates that have score and reward
        and are not alone in their group, or without spread in either; the gap where no group has rewards of both kinds.

    Raises:
        ValueError: The arguments differ in length.
    """
    pairs: dict[str, list[tuple[float, float]]] = {}
    kinds: dict[str, tuple[list[float], list[float]]] = {}
    for group, score, reward, was_audited in zip(groups, scores, rewards, audited, strict=True):
        if reward is None or not math.isfinite(reward):
            continue
        kinds.setdefault(group, ([], []))[was_audited].append(reward)
        if score is not None and math.isfinite(score):
            pairs.setdefault(group, []).append((score, reward))
    gaps = [_mean(kept) - _mean(checked) for kept, checked in kinds.values() if kept and checked]
    return ScreeningCheck(
        rank_correlation=_within_correlation([members for members in pairs.values() if len(members) > 1]),
        audited_gap=_mean(gaps) if gaps else None,
    )


def _within_correlation(groups: Sequence[Sequence[tuple[float, float]]]) -> float | None:
    """Return the correlation of ranks within groups, less the group's mean rank, over all groups; None if undefined."""
    from scipy.stats import rankdata

    if sum(len(members) for members in groups) < 3:
        return None
    ranks: tuple[list[float], list[float]] = ([], [])
    for members in groups:
        for side, values in zip(ranks, zip(*members, strict=True), strict=True):
            side.extend(float(rank) - (len(members) + 1) / 2 for rank in rankdata(values))
    across = math.fsum(x * y for x, y in zip(*ranks, strict=True))
    spreads = [math.fsum(rank**2 for rank in side) for side in ranks]
    return across / math.sqrt(spreads[0] * spreads[1]) if min(spreads) > 0.0 else None


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
