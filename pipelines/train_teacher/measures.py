"""Measures beside accuracy: on what the base does not know, by the gold answers' probability, by other graders."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from evaluation.agreement import agreements
from evaluation.statistics import compare, known_mean, known_means
from pipelines.plan import Stage
from pipelines.records import GraderComparison, UnknownComparison, VariantScores
from pipelines.train_teacher import sources
from pipelines.train_teacher.variants import Comparing


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
