"""The reward model: a ridge regression of rewards on what can be told of a self-edit without an update.

It is refitted each round on all rewards so far, and serves screening alone: the teacher never learns from what it
predicts. Leaks are none of its features, so that it cannot come to prefer self-edits that hold evaluation questions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from teacher.gates import EditFacts

FEATURES: tuple[str, ...] = (
    "coverage",
    "log_tokens",
    "log_lines",
    "repetition",
    "questions_share",
    "support",
    "proxy",
)
"""Names of the features (F), in order."""

ROWS_PER_FEATURE = 2
"""Usable rows for each feature below which there is no fit: with fewer, a regression mostly follows the noise."""


def features(facts: EditFacts, proxy: float | None) -> tuple[float, ...]:
    """Return the features (F,) of a self-edit, in the order of `FEATURES`.

    Lengths enter as log(1 + length), since one line more means less to a long self-edit than to a short one.

    Args:
        facts: What can be told from its text; a coverage of None counts as 0.
        proxy: Mean gold-answer probability with the self-edit in context, in [0, 1]; None, where it was not asked for,
            counts as 0.
    """
    return (
        facts.coverage or 0.0,
        math.log1p(facts.tokens),
        math.log1p(facts.lines),
        facts.repetition,
        facts.questions_share,
        facts.support,
        proxy or 0.0,
    )


@dataclass(frozen=True, slots=True)
class RewardModel:
    """A fitted regression."""

    weights: tuple[float, ...]
    """Reward per unit of each feature (F,)."""
    rows: int
    """Usable rows that the fit rests on."""

    @classmethod
    def fit(
        cls,
        groups: Sequence[str],
        rows: Sequence[Sequence[float]],
        rewards: Sequence[float | None],
        *,
        penalty: float = 1.0,
    ) -> RewardModel | None:
        """Return the ridge regression (Hoerl and Kennard 1970, Technometrics 12) of rewards within documents.

        Features and rewards are taken less their group's mean (the within, or fixed-effects, estimator): documents
        differ in how hard they are, and only differences between the self-edits of one document are to be told. The
        centred features are then divided by their standard deviations, so that the penalty weighs on all alike.

        Args:
            groups: For each of N rows the id of its group, such as a document in a round.
            rows: Features (N, F), F at least 1.
            rewards: None, or one that is not finite, leaves the row out.
            penalty: On the squared weights of standardized features, above 0.

        Returns:
            None when there are fewer than `ROWS_PER_FEATURE` * F usable rows, those with a reward whose group has
            another one with a reward.

        Raises:
            ValueError: The arguments differ in length, or `penalty` is not above 0.
        """
        if not penalty > 0.0:
            raise ValueError(f"penalty: got {penalty}, allowed is above 0")
        members: dict[str, list[tuple[Sequence[float], float]]] = {}
        for group, row, reward in zip(groups, rows, rewards, strict=True):
            if reward is not None and math.isfinite(reward):
                members.setdefault(group, []).append((row, reward))
        # Rewards are a last column, so that all are centred in one go.
        centred = [r for group in members.values() if len(group) > 1 for r in _centred([[*x, y] for x, y in group])]
        if not centred or len(centred) < ROWS_PER_FEATURE * (len(centred[0]) - 1):
            return None
        return cls(_ridge([r[:-1] for r in centred], [r[-1] for r in centred], penalty), len(centred))

    def predict(self, rows: Sequence[Sequence[float]]) -> list[float]:
        """Return the expected reward of each row up to a constant of its document: only differences mean something.

        Args:
            rows: Features (N, F), F as fitted.

        Raises:
            ValueError: A row has not as many features as the fit.
        """
        return [math.fsum(w * value for w, value in zip(self.weights, row, strict=True)) for row in rows]


def _ridge(rows: Sequence[Sequence[float]], rewards: Sequence[float], penalty: float) -> tuple[float, ...]:
    """Return the weights (F,) of centred features (N, F) for centred rewards (N,)."""
    from sklearn.linear_model import Ridge  # takes a second, and is needed only where a run screens by regression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    model = Ridge(alpha=penalty, fit_intercept=False).fit(scaler.fit_transform(rows), rewards)
    return tuple(float(weight / scale) for weight, scale in zip(model.coef_, scaler.scale_, strict=True))


def _centred(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return rows less their mean row, to 12 decimals."""
    means = [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]
    # Rounded, because a column that is constant in all groups but for 1e-16 would be standardized like the others.
    return [[round(value - mean, 12) for value, mean in zip(row, means, strict=True)] for row in rows]
