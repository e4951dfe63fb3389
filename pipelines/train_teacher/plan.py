"""The plan of a run of `train-teacher`: its stages, made from the configuration before anything is opened."""

from __future__ import annotations

from typing import Any, Literal

from evaluation.domains import domain_of
from evaluation.tasks import PARAPHRASES
from pipelines.plan import Plan, Stage, Step
from pipelines.train_teacher import sources
from pipelines.train_teacher.config import TrainTeacherConfig
from pipelines.train_teacher.sources import Variant
from pipelines.train_teacher.warm_start import WarmStartConfig
from teacher.algorithms.algorithm import Algorithm

POOLED = 3
"""Completions whose lines fill the budget of one self-edit at equal tokens: enough for a trained one that is twice as
long."""
APPLIED = 4
"""Strategies of Active Reading that are applied for one self-edit."""


def plan_run(config: TrainTeacherConfig) -> Plan:
    """Return the stages of a run: warm start, rounds, variants, known questions, transfer."""
    start = [] if config.warm_start is None else [plan_warm_start(config.warm_start, config.teacher.learning)]
    variants = (plan_variant(config, variant) for variant in config.listed)
    return (*start, *plan_rounds(config), *variants, *_plan_known(config), *_plan_transfer(config))


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


def written(config: TrainTeacherConfig, variant: Variant) -> int:
    """Return how many self-edits a model writes for each document of a variant."""
    after = config.comparison
    if variant.equal_tokens:
        return after.edits * pooled(variant.source)
    return after.tried if isinstance(variant.source, sources.ExternalGenerator) else after.drawn


def pooled(source: sources.Source) -> int:
    """Return how many self-edits of a source give the lines of one at equal tokens."""
    return -(-POOLED // _completions(source))


def _completions(source: sources.Source) -> int:
    """Return how many completions give the lines of one self-edit."""
    mixed = len(source.prompts) if isinstance(source, sources.MixedPrompts) else 1
    return APPLIED if isinstance(source, sources.ActiveReading) else mixed


def plan_variant(config: TrainTeacherConfig, variant: Variant) -> Stage:
    """Return the stage of one variant: what is sampled for it, and what is trained and scored."""
    after, tests, source = config.comparison, config.data.test_documents, variant.source

    def update(documents: int, each: int, **more: Any) -> Step:
        return Step("update", documents, each, questions="comparison", **more)

    def taught(documents: int, drawn: int = written(config, variant)) -> tuple[Step, ...]:
        listed = isinstance(source, sources.ActiveReading)
        writer: Literal["external", "student", "teacher"]
        writer = "external" if isinstance(source, sources.ExternalGenerator) else "teacher"
        writer = "student" if isinstance(source, sources.OwnQuestions) else writer
        sample = Step("sample", documents, drawn * (_completions(source) + listed), writer=writer)
        asked = (Step("score", documents, drawn),) if isinstance(source, sources.AskFirst) else ()
        return sample, *asked, update(documents, after.edits)

    steps: tuple[Step, ...]
    match source:
        case sources.BaseStudent():
            steps = (Step("score", tests, questions="comparison"),)
        case sources.RawPassage():
            steps = (update(tests, 1, trains_on="passage"),)
        case sources.BestPrompt():
            steps = taught(config.data.development_documents, after.drawn) * len(source.prompts) + taught(tests)
        case sources.PassageInContext() | sources.Retrieval():
            steps = (Step("read", tests, questions="comparison"),)
        case sources.FixedSpecification():
            tried = len(source.choices)
            spec = Step("update", source.tasks, tried, trains_on="specification")
            steps = (spec, update(tests, 1, trains_on="specification"))
        case sources.Control(kind="null_edit"):
            steps = (update(tests, 1, trains_on="line"),)
        case sources.Control(kind="oracle"):
            steps = (update(tests, 1),)
        case sources.Control():
            steps = (update(tests, after.edits),)
        case _:
            steps = taught(tests)
    return Stage(f"variant {variant.name}", steps, variant)


def _plan_known(config: TrainTeacherConfig) -> list[Stage]:
    """Return the stage that finds what the base does not know; none where questions have no other words."""
    if domain_of(config.data).shows_document:
        return []
    each = len(PARAPHRASES) + (not config.sources(sources.BaseStudent))
    return [Stage("known questions", (Step("score", config.data.test_documents, each, questions="comparison"),))]


def _is_taught(variant: Variant) -> bool:
    """Return whether a teacher that is no baseline, or the best prompt, writes a variant's self-edits as they are."""
    return not variant.equal_tokens and isinstance(variant.source, sources.TeacherSource | sources.BestPrompt)


def transferred_variants(config: TrainTeacherConfig) -> list[Variant]:
    """Return the variants whose self-edits are tried on the other student."""

    def is_tried(variant: Variant) -> bool:
        source = variant.source
        oracle = isinstance(source, sources.Control) and source.kind == "oracle"
        return oracle or isinstance(source, sources.RawPassage) or _is_taught(variant)

    return [variant for variant in config.listed if is_tried(variant)]


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
