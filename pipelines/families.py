"""Accuracy by family of rules, where the world knows the families of its grid tasks."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.statistics import known_mean
from evaluation.tasks import KnowledgeTask, Split
from pipelines.results import FamilyRecord, VariantRecord


def by_family(variants: Sequence[VariantRecord], split: Split) -> dict[str, FamilyRecord]:
    """Return the accuracy of each variant by family of the test tasks; empty where no family is known.

    Families that training has come first, then those that it has not.
    """
    learned = {_family(task) for task in split.train}
    members: dict[str, list[str]] = {}
    for task in split.test:
        if _family(task):
            members.setdefault(_family(task), []).append(task.id)
    found = {
        family: FamilyRecord(tasks=len(names), held_out=family not in learned, accuracy=_means(variants, names))
        for family, names in members.items()
    }
    return dict(sorted(found.items(), key=lambda item: item[1].held_out))


def _means(variants: Sequence[VariantRecord], names: Sequence[str]) -> dict[str, float]:
    means = {v.name: known_mean(v.accuracy[name] for name in names if name in v.accuracy) for v in variants}
    return {name: mean for name, mean in means.items() if mean is not None}


def _family(task: KnowledgeTask) -> str:
    return "" if task.puzzle is None else task.puzzle.family
