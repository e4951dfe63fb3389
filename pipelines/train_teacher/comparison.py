"""The comparison: variants with intervals and paired tests, by group, and on another student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.statistics import (
    bootstrap_mean,
    compare,
    kept_share,
    known_means,
    mcnemar_test,
)
from evaluation.tasks import KnowledgeTask, Split
from pipelines.loop.loop import Loop
from pipelines.plan import Stage
from pipelines.records import GroupAccuracy, Transfer, VariantComparison, VariantScores
from pipelines.train_teacher import sources
from pipelines.train_teacher.config import TransferConfig
from pipelines.train_teacher.measures import Unknown, compare_graders, compare_unknown
from pipelines.train_teacher.plan import transferred_variants
from pipelines.train_teacher.sources import BASELINE_TEACHER, TRAINED_TEACHER, WARM_STARTED_TEACHER
from pipelines.train_teacher.variants import Comparing

_OF_THE_TRAINED = (
    *(WARM_STARTED_TEACHER, BASELINE_TEACHER, "fixed_kind", "fixed_kind_equal_tokens", "fixed_spec"),
    *("external_generator", "raw_passage", "base", "other_document"),
)
PAIRS = (
    *((TRAINED_TEACHER, name) for name in _OF_THE_TRAINED),
    *((WARM_STARTED_TEACHER, name) for name in (BASELINE_TEACHER, "raw_passage", "base")),
    *((BASELINE_TEACHER, name) for name in ("raw_passage", "base")),
    *((name, "base") for name in ("null_edit", "other_document")),
    *((name, TRAINED_TEACHER) for name in ("trained_teacher_distilled", "passage_in_context", "retrieval", "oracle")),
)
"""Differences that are reported, where both variants are there; variants of other names are compared with the trained
teacher."""


def pairs_of(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the differences to report between variants, in the order of tables."""
    known = {name for pair in PAIRS for name in pair}
    more = [(TRAINED_TEACHER, name) for name in names if name not in known]
    return [pair for pair in (*PAIRS, *more) if set(names).issuperset(pair)]


def compare_variants(
    variants: Sequence[VariantScores], intervals: Mapping[str, Any], unknown: Unknown | None = None
) -> VariantComparison:
    """Return the variants with their intervals and paired gains, over the documents that all of them could score.

    `intervals` are `confidence`, `resamples` and `seed` of all bootstrap intervals, `unknown` the questions that the
    base does not know, if it was asked.
    """
    pairs = pairs_of([variant.name for variant in variants])
    accuracies = {variant.name: variant.accuracy for variant in variants}
    found = compare(accuracies, pairs, **intervals)
    verdicts = {variant.name: variant.verdicts for variant in variants}
    return VariantComparison(
        documents=len(found.documents),
        variants=found.variants,
        gains={gain_name(name): interval for name, interval in found.gains.items()},
        confidence=intervals["confidence"],
        minimum_detectable={gain_name(name): value for name, value in found.minimum_detectable.items()},
        tests={
            gain_name(name): found.tests[name].model_copy(update={"mcnemar": _mcnemar(verdicts[a], verdicts[b])})
            for a, b in pairs
            if (name := f"{a}_minus_{b}") in found.tests
        },
        forgetting={
            variant.name: bootstrap_mean(list(variant.forgetting.values()), bounds=(-1.0, 1.0), **intervals)
            for variant in variants
            if variant.forgetting
        },
        token_probability={
            variant.name: bootstrap_mean([variant.token_probability[name] for name in found.documents], **intervals)
            for variant in variants
            if variant.token_probability.keys() >= set(found.documents)
        },
        unknown=None if unknown is None else compare_unknown(variants, unknown, found.documents, pairs, intervals),
        graders=compare_graders(variants),
    )


def _mcnemar(a: Mapping[str, Sequence[bool | None]], b: Mapping[str, Sequence[bool | None]]) -> float | None:
    """Return the p-value over the questions that both variants have a verdict on; None where there is none."""
    pairs = [
        (x, y)
        for document in sorted(a.keys() & b.keys())
        for x, y in zip(a[document], b[document], strict=True)
        if x is not None and y is not None
    ]
    return mcnemar_test([x for x, _ in pairs], [y for _, y in pairs]) if pairs else None


def gain_name(name: str) -> str:
    """Return the short name of a difference: `trained_minus_untrained`."""
    return name.replace("_teacher", "")


def transfer(comparing: Comparing, stage: Stage) -> Transfer:
    """Return the comparison on a student that no teacher was trained with, updated with the same self-edits."""
    config = comparing.config
    plan: TransferConfig = stage.subject
    student = config.student.model_copy(update={"model": plan.model, "update": plan.update or config.student.update})
    other_config = config.model_copy(update={"student": student})
    loop = comparing.loop
    with Loop(other_config, loop.work_dir, loop.tasks.values(), loop.probes, loop.reporter) as other_loop:
        other = Comparing(other_config, other_loop, comparing.split, comparing.states, comparing.diagnostics)
        base = next((v for v in config.listed if isinstance(v.source, sources.BaseStudent)), sources.STANDARD["base"])
        other.add(Stage(stage.name, stage.steps[:1], base))
        there = {variant.name for variant in comparing.scored}
        for variant, step in zip(transferred_variants(config), stage.steps[1:], strict=True):
            if variant.name in there:
                with loop.reporter.step(step, f"transfer of {variant.name}"):
                    edits = comparing.edits_of(variant.name)
                    other.scored.append(other.score_edits(variant, edits, comparing.split.test))
    found = compare_variants(other.scored, comparing.intervals)
    return Transfer(
        label=plan.label,
        model=plan.model,
        variants=found.variants,
        gains=found.gains,
        kept=_kept_gain(comparing.scored, other.scored, comparing.intervals),
        document_accuracy={variant.name: variant.accuracy for variant in other.scored},
    )


def _kept_gain(here: Sequence[VariantScores], there: Sequence[VariantScores], intervals: Mapping[str, Any]) -> Any:
    """Return the share of the teacher's gain that is kept on the other student; None where it cannot be told."""
    pair = (TRAINED_TEACHER, BASELINE_TEACHER)
    sides = [{v.name: v.accuracy for v in variants if v.name in pair} for variants in (there, here)]
    if any(len(side) < 2 for side in sides):
        return None
    shared = sorted(set.intersection(*(set(scores) for side in sides for scores in side.values())))
    kept, whole = ([side[TRAINED_TEACHER][d] - side[BASELINE_TEACHER][d] for d in shared] for side in sides)
    return kept_share(kept, whole, **intervals)


def by_group(variants: Sequence[VariantScores], split: Split) -> dict[str, GroupAccuracy]:
    """Return the accuracy of each variant by group of the test tasks; empty where no group is known.

    Groups that occur in training come first.
    """
    learned = {task.group for task in split.train}
    members: dict[str, list[KnowledgeTask]] = {}
    for task in split.test:
        if task.group:
            members.setdefault(task.group, []).append(task)
    found = {
        group: GroupAccuracy(
            tasks=len(tasks),
            held_out=group not in learned,
            accuracy=known_means({v.name: [v.accuracy.get(task.id) for task in tasks] for v in variants}),
        )
        for group, tasks in members.items()
    }
    return dict(sorted(found.items(), key=lambda item: item[1].held_out))
