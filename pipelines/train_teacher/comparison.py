"""The comparison: variants with intervals and paired tests, by group, by other measures, and on another student."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from evaluation.agreement import agreements
from evaluation.statistics import (
    bootstrap_mean,
    compare,
    kept_share,
    known_mean,
    known_means,
    mcnemar_test,
)
from evaluation.tasks import KnowledgeTask, Split
from pipelines.loop.loop import Loop
from pipelines.plan import Stage
from pipelines.records import (
    GraderComparison,
    GroupAccuracy,
    Transfer,
    UnknownComparison,
    VariantComparison,
    VariantScores,
)
from pipelines.train_teacher import sources
from pipelines.train_teacher.config import TransferConfig
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
    variants: Sequence[VariantScores],
    intervals: Mapping[str, Any],
    unknown: Unknown | None = None,
    pairs: Sequence[tuple[str, str]] = (),
) -> VariantComparison:
    """Return the variants with their intervals and paired gains, over the documents that all of them could score.

    `intervals` are `confidence`, `resamples` and `seed` of all bootstrap intervals, `unknown` the questions that the
    base does not know, if it was asked, and `pairs` the differences to report, by default those of `pairs_of`.
    """
    pairs = pairs or pairs_of([variant.name for variant in variants])
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
    resampling = {"confidence": intervals["confidence"], "resamples": intervals["resamples"]}
    return kept_share([(kept, whole)], np.random.default_rng(intervals["seed"]), **resampling)


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


class Unknown(NamedTuple):
    """What the base student does not know."""

    questions: Mapping[str, tuple[bool, ...]]
    """By document id, per comparison question: the base fails it in every phrasing. Documents that it could not be
    scored on are missing."""
    phrasings: int
    """Phrasings of a question at most."""


def find_unknown(comparing: Comparing, stage: Stage) -> Unknown:
    """Return the test questions that the base student fails as they are and in all other words."""
    loop, test = comparing.loop, comparing.split.test
    listed = {v.name for v in comparing.config.listed if isinstance(v.source, sources.BaseStudent)}
    scored = next((v.verdicts for v in comparing.scored if v.name in listed), None)
    with loop.reporter.step(stage.steps[0], stage.name):
        if scored is None:
            scored = {u.document_id: u.verdicts for u in loop.base(test, "comparison") if u.failure is None}
        others = {u.document_id: u.verdicts for u in loop.base(test, "paraphrases") if u.failure is None}
    counts = {task.id: [len(q.rephrased) for q in task.comparison_questions] for task in test}
    asked = [name for name in counts if name in scored and name in others]
    return Unknown(
        {name: failed_in_all(scored[name], others[name], counts[name]) for name in asked},
        1 + max(itertools.chain.from_iterable(counts.values()), default=0),
    )


def failed_in_all(
    asked: Sequence[bool | None], rephrased: Sequence[bool | None], counts: Sequence[int]
) -> tuple[bool, ...]:
    """Return per question whether all verdicts are wrong, its own and those of its `counts` paraphrases in a row."""
    others = iter(rephrased)
    return tuple(
        all(verdict is False for verdict in (first, *itertools.islice(others, count)))
        for first, count in zip(asked, counts, strict=True)
    )


def with_unknown(variant: VariantScores, unknown: Unknown) -> VariantScores:
    """Return a variant with its accuracy on the unknown questions by document, where there are such questions."""
    updates = [u for candidate in variant.candidates for u in candidate.replicates if u.failure is None]
    answered = [(u.document_id, u.verdicts) for u in updates] or list(variant.verdicts.items())
    found: dict[str, list[float | None]] = {name: [] for name in variant.accuracy if name in unknown.questions}
    for name, verdicts in answered:
        if name in found:
            pairs = zip(verdicts, unknown.questions[name], strict=True)
            found[name].append(known_mean(right for right, asked in pairs if asked))
    return variant.model_copy(update={"unknown": known_means(found)})


def compare_unknown(
    variants: Sequence[VariantScores],
    unknown: Unknown,
    documents: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    intervals: Mapping[str, Any],
) -> UnknownComparison | None:
    """Return the variants on the unknown questions of the documents that all of them could score; None without any."""
    asked = {name: unknown.questions[name] for name in documents if name in unknown.questions}
    here = {name: each for name, each in asked.items() if any(each)}
    found = {v.name: {name: v.unknown[name] for name in here if name in v.unknown} for v in variants}
    scores = {name: values for name, values in found.items() if values}
    if not scores or not set.intersection(*map(set, scores.values())):
        return None
    compared = compare(scores, pairs, **intervals)
    return UnknownComparison(
        phrasings=unknown.phrasings,
        questions=sum(map(len, asked.values())),
        unknown=sum(map(sum, here.values())),
        documents=len(compared.documents),
        variants=compared.variants,
        gains={name.replace("_teacher", ""): gain for name, gain in compared.gains.items()},
    )


def compare_graders(variants: Sequence[VariantScores]) -> GraderComparison | None:
    """Return all graders on the answers of all variants; None without answers as texts."""
    graded = [variant for variant in variants if variant.grades]
    if not graded:
        return None
    shares = {
        grader: {v.name: share for v in graded if (share := known_mean(v.grades[grader])) is not None}
        for grader in graded[0].grades
    }
    verdicts = {grader: [*itertools.chain.from_iterable(v.grades[grader] for v in graded)] for grader in shares}
    return GraderComparison(configured=next(iter(shares)), accuracy=shares, agreement=agreements(verdicts))
