"""Agreement of graders on the same answers: share of equal verdicts, and Cohen's kappa."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluation.common.data import Frozen
from evaluation.graders import (
    ExactGrading,
    GoldTokenRecallGrading,
    GradeItem,
    GraderConfig,
    TokenF1Grading,
    build_grader,
)


class GraderAgreement(Frozen):
    """How far two graders agree."""

    first: str
    """Type of a grader, such as `exact`."""
    second: str
    answers: int
    """Answers on which both have a verdict, at least 1."""
    equal: float
    """Share of them with equal verdicts, in [0, 1]."""
    kappa: float | None
    """Cohen's kappa (1960, Educational and Psychological Measurement 20), in [-1, 1]: agreement beyond that of
    independent verdicts with the same shares of right answers; None if all verdicts are the same."""


def rule_verdicts(items: Sequence[GradeItem], configured: GraderConfig) -> dict[str, tuple[bool | None, ...]]:
    """Return the verdicts of the rules other than the configured grader, with default thresholds, by type."""
    kinds = (ExactGrading(), GoldTokenRecallGrading(), TokenF1Grading())
    rules = [rule for rule in kinds if rule.type != configured.type]
    return {r.type: tuple(grade.correct for grade in build_grader(r, Path()).grade(items)) for r in rules}


def agreements(verdicts: Mapping[str, Sequence[bool | None]]) -> tuple[GraderAgreement, ...]:
    """Return the agreement of each pair of graders that have common verdicts; None is no verdict."""
    from sklearn.metrics import cohen_kappa_score  # takes a second

    found = []
    for first, second in itertools.combinations(verdicts, 2):
        both = zip(verdicts[first], verdicts[second], strict=True)
        pairs = [(a, b) for a, b in both if a is not None and b is not None]
        if not pairs:
            continue
        sides = [a for a, _ in pairs], [b for _, b in pairs]
        kappa = float(cohen_kappa_score(*sides)) if len(set(itertools.chain(*pairs))) > 1 else None
        equal = sum(a == b for a, b in pairs) / len(pairs)
        found.append(GraderAgreement(first=first, second=second, answers=len(pairs), equal=equal, kappa=kappa))
    return tuple(found)
