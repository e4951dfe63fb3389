"""The comparison: variants with intervals and paired tests; by length, by group, on another student, with an oracle."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.statistics import (
    Interval,
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
from pipelines.records import CurvePoint, GroupAccuracy, SpecOracle, Transfer, VariantComparison, VariantScores
from pipelines.train_teacher import sources
from pipelines.train_teacher.config import TransferConfig
from pipelines.train_teacher.edits import budgeted
from pipelines.train_teacher.plan import transferred_variants
from pipelines.train_teacher.sources import BASELINE_TEACHER, TRAINED_TEACHER, Variant
from pipelines.train_teacher.variants import Comparing, best_place, specification, try_all

_OF_THE_TRAINED = (
    *(BASELINE_TEACHER, "fixed_kind", "fixed_kind_equal_tokens", "fixed_spec", "proxy_teacher", "external_generator"),
    *("raw_passage", "base", "other_document"),
)
PAIRS = (
    *((TRAINED_TEACHER, name) for name in _OF_THE_TRAINED),
    *((BASELINE_TEACHER, name) for name in ("raw_passage", "base")),
    *((name, "base") for name in ("null_edit", "other_document", "swapped_values")),
    *((name, TRAINED_TEACHER) for name in ("trained_teacher_distilled", "passage_in_context", "retrieval", "oracle")),
)
"""Differences that are reported, where both variants are there; variants of other names are compared with the trained
teacher."""


def pairs_of(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the differences to report between variants, in the order of tables."""
    known = {name for pair in PAIRS for name in pair}
    more = [(TRAINED_TEACHER, name) for name in names if name not in known]
    return [pair for pair in (*PAIRS, *more) if set(names).issuperset(pair)]


def compare_variants(variants: Sequence[VariantScores], intervals: Mapping[str, Any]) -> VariantComparison:
    """Return the variants with their intervals and paired gains, over the documents that all of them could score.

    `intervals` are `confidence`, `resamples` and `seed` of all bootstrap intervals.
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


def token_curve(comparing: Comparing, stage: Stage) -> tuple[CurvePoint, ...]:
    """Return a variant's accuracy at each length of self-edits.

    Lines of several self-edits of one teacher are used one after another (`edits.at_budget`), so that longer
    self-edits say more of what this teacher would say, and shorter ones less.
    """
    plan, loop, test = comparing.config.comparison.curve, comparing.loop, comparing.split.test
    variant: Variant = stage.subject
    assert plan is not None
    best = isinstance(variant.source, sources.BestPrompt)
    prompt = comparing.best_prompt if best else comparing.config.teacher.prompt
    state = comparing.states.get(variant.source.state) if isinstance(variant.source, sources.TeacherSource) else None
    with loop.reporter.step(stage.steps[0], stage.name):
        sampled = loop.sample(state, prompt, test, n=plan.samples, seed=loop.seed("sample", "curve")).edits
    points, count = [], comparing.count_tokens()
    for step, budget in zip(stage.steps[1:], plan.tokens, strict=True):
        made = budgeted(sampled, budget, count)
        with loop.reporter.step(step, f"{stage.name} at {budget} tokens"):
            scored = comparing.score_edits(variant, made, test).accuracy
        if scored:
            tokens = known_mean(e.tokens for e in made if e.edit is not None) or 0.0
            interval = bootstrap_mean(list(scored.values()), **comparing.intervals)
            points.append(CurvePoint(budget=budget, tokens=tokens, accuracy=interval, document_accuracy=dict(scored)))
    return tuple(points)


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


def find_oracle(comparing: Comparing, stage: Stage) -> SpecOracle | None:
    """Return the score of the best specification of each of some test tasks, and the variants' on the same tasks.

    It is the most that reading a task can gain. Like the best fixed specification it is chosen by the tests that
    rewards come from, and scored on those of the comparison. None where no task has a specification with a score.
    """
    source: sources.FixedSpecification = stage.subject
    loop, test = comparing.loop, comparing.split.test
    # Drawn at random: every n-th task would meet the same few families where families take turns.
    places = random.Random(loop.seed("oracle tasks")).sample(range(len(test)), min(source.oracle_tasks, len(test)))
    tasks = [test[place] for place in sorted(places)]
    choices = source.choices
    with loop.reporter.step(stage.steps[0], stage.name):
        table = try_all(loop, tasks, choices, "oracle")
    best = {name: choices[place] for name, scores in table.items() if (place := best_place(scores)) is not None}
    edits = [specification(name, 0, choice) for name, choice in best.items()]
    with loop.reporter.step(stage.steps[1], stage.name):
        oracle = comparing.score_edits(Variant(name="spec_oracle", label="oracle", source=source), edits, tasks)
    return _beside(comparing, oracle, {name: json.dumps(choice) for name, choice in best.items()})


def _beside(comparing: Comparing, oracle: VariantScores, chosen: Mapping[str, str]) -> SpecOracle | None:
    """Return the oracle's score with those of the variants on the same tasks."""
    variants, settings = [v for v in comparing.scored if v.accuracy], comparing.intervals
    shared = [name for name in oracle.accuracy if all(name in v.accuracy for v in variants)]
    if not shared:
        return None
    best = [oracle.accuracy[name] for name in shared]

    def interval(values: Sequence[float], low: float = 0.0) -> Interval:
        return bootstrap_mean(values, bounds=(low, 1.0), **settings)

    trained = next((v for v in variants if v.name == TRAINED_TEACHER), None)
    mine = None if trained is None else [trained.accuracy[name] for name in shared]
    return SpecOracle(
        tasks=len(shared),
        oracle=interval(best),
        variants={v.name: interval([v.accuracy[name] for name in shared]) for v in variants},
        share=None if mine is None else kept_share(mine, best, **settings),
        regret=None if mine is None else interval([b - m for b, m in zip(best, mine, strict=True)], -1.0),
        chosen=dict(chosen),
    )
