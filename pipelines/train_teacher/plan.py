"""The plan of a run of `train-teacher`: its stages, made from the configuration before anything is opened."""

from __future__ import annotations

from typing import Any

from pipelines.plan import Plan, Stage, Step
from pipelines.train_teacher import sources
from pipelines.train_teacher.config import TrainTeacherConfig
from pipelines.train_teacher.sources import Variant
from pipelines.train_teacher.warm_start import WarmStartConfig
from teacher.algorithms.algorithm import Algorithm

POOLED = 3
"""Self-edits whose lines fill the budget of one at equal tokens: enough for a trained one that is twice as long."""


def plan_run(config: TrainTeacherConfig) -> Plan:
    """Return the stages of a run: warm start, rounds, variants, transfer."""
    start = [] if config.warm_start is None else [plan_warm_start(config.warm_start, config.teacher.learning)]
    variants = (plan_variant(config, variant) for variant in config.listed)
    return (*start, *plan_rounds(config), *variants, *_plan_transfer(config))


def plan_warm_start(settings: WarmStartConfig, like: Algorithm) -> Stage:
    """Return the stage of the supervised steps before the first round."""
    return Stage("warm start", (Step("learn", settings.documents),), settings.learning(like))


def plan_rounds(config: TrainTeacherConfig) -> list[Stage]:
    """Return the stages of the teacher's rounds."""
    loop, samples, checks = config.loop, config.teacher.samples, config.loop.development
    documents, kept = loop.documents, config.teacher.learning.max_examples(samples)
    tried = Step("update", documents, samples * loop.replicates)
    size = config.data.development_documents, 0 if checks is None else checks.edits
    check = Step("sample", *size), Step("update", *size)
    stages = []
    if config.warm_start is not None and checks is not None and loop.rounds:
        stages.append(Stage("development of the warm start", check))
    for number in range(loop.rounds):
        steps = (Step("sample", documents, samples), tried, Step("score", documents), Step("learn", documents, kept))
        stages.append(Stage(f"round {number}", steps, number))
        if checks is not None and (number == loop.rounds - 1 or (number + 1) % checks.every == 0):
            stages.append(Stage(f"development {number}", check, number))
    return stages


def plan_variant(config: TrainTeacherConfig, variant: Variant) -> Stage:
    """Return the stage of one variant: what is sampled for it, and what is trained and scored."""
    after, tests, source = config.comparison, config.data.test_documents, variant.source

    def update(documents: int, each: int, **more: Any) -> Step:
        return Step("update", documents, each, questions="comparison", **more)

    def taught(documents: int) -> tuple[Step, ...]:
        return Step("sample", documents, after.drawn), update(documents, after.edits)

    steps: tuple[Step, ...]
    match source:
        case sources.BaseStudent():
            steps = (Step("score", tests, questions="comparison"),)
        case sources.RawPassage():
            steps = (update(tests, 1, trains_on="passage"),)
        case sources.BestPrompt():
            steps = taught(config.data.development_documents) * len(source.prompts) + taught(tests)
        case sources.TeacherSource():
            steps = taught(tests)
        case sources.ExternalGenerator():
            steps = (Step("sample", tests, after.tried, writer="external"), update(tests, after.edits))
        case sources.FixedSpecification():
            tried = len(source.choices)
            spec = Step("update", source.tasks, tried, trains_on="specification")
            steps = (spec, update(tests, 1, trains_on="specification"))
        case sources.Control(kind="null_edit"):
            steps = (update(tests, 1, trains_on="line"),)
        case sources.Control(kind="oracle"):
            steps = (update(tests, 1),)
        case sources.Control(kind="equal_tokens"):
            steps = (Step("sample", tests, POOLED * after.edits), update(tests, after.edits))
        case _:
            steps = (update(tests, after.edits),)
    return Stage(f"variant {variant.name}", steps, variant)


def _is_taught(source: sources.Source) -> bool:
    """Return whether a local teacher writes a variant's self-edits."""
    return isinstance(source, sources.TeacherSource | sources.BestPrompt)


def transferred_variants(config: TrainTeacherConfig) -> list[Variant]:
    """Return the variants whose self-edits are tried on the other student."""

    def is_tried(source: Any) -> bool:
        oracle = isinstance(source, sources.Control) and source.kind == "oracle"
        return oracle or isinstance(source, sources.RawPassage) or _is_taught(source)

    return [variant for variant in config.listed if is_tried(variant.source)]


def _plan_transfer(config: TrainTeacherConfig) -> list[Stage]:
    """Return the stage in which the same self-edits are tried on another student; none without such a student."""
    after, tests = config.comparison, config.data.test_documents
    if after.transfer is None:
        return []
    steps = [Step("score", tests, questions="comparison")]
    for variant in transferred_variants(config):
        passage = isinstance(variant.source, sources.RawPassage)
        each = 1 if passage or isinstance(variant.source, sources.Control) else after.edits
        steps.append(Step("update", tests, each, trains_on="passage" if passage else "edit", questions="comparison"))
    return [Stage("transfer", tuple(steps), after.transfer)]
