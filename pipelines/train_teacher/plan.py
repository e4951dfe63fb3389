"""The plan of a run of `train-teacher`: its stages, made from the configuration before anything is opened."""

from __future__ import annotations

from typing import Any

from pipelines.plan import Plan, Stage, Step
from pipelines.train_teacher import sources
from pipelines.train_teacher.config import TrainTeacherConfig
from pipelines.train_teacher.sources import Variant
from teacher.rewards import RewardConfig

POOLED = 3
"""Self-edits whose lines fill the budget of one at equal tokens: enough for a trained one that is twice as long."""


def plan_run(config: TrainTeacherConfig) -> Plan:
    """Return the stages of a run: rounds, the rounds of the proxy control, variants, curves, transfer, oracle."""
    stages = plan_rounds(config, config.teacher.reward)
    if any(source.state == "proxy" for source in config.sources(sources.TeacherSource)):
        stages += plan_rounds(config, proxy_reward(config))
    stages += [plan_variant(config, variant) for variant in config.listed]
    stages += [*_plan_curves(config), *_plan_transfer(config)]
    stages += [plan_oracle(source) for source in config.sources(sources.FixedSpecification) if source.oracle_tasks]
    return tuple(stages)


def proxy_reward(config: TrainTeacherConfig) -> RewardConfig:
    """Return the reward of the control that learns without updates of a student."""
    return config.teacher.reward.model_copy(update={"metric": "proxy"})


def plan_rounds(config: TrainTeacherConfig, reward: RewardConfig) -> list[Stage]:
    """Return the stages of one teacher's rounds; with the proxy reward no student is updated."""
    loop, samples, checks = config.loop, config.teacher.samples, config.loop.development
    documents, kept = loop.documents, config.teacher.learning.max_examples(samples)
    proxy = reward.metric == "proxy"
    prefix = "proxy " if proxy else ""
    tried = Step("read", documents, samples) if proxy else Step("update", documents, samples * loop.replicates)
    stages = []
    for number in range(loop.rounds):
        steps = (Step("sample", documents, samples), tried, Step("score", documents), Step("learn", documents, kept))
        stages.append(Stage(f"{prefix}round {number}", steps, number))
        if checks is not None and (number == loop.rounds - 1 or (number + 1) % checks.every == 0):
            size = config.data.development_documents, checks.edits
            scored = Step("read" if proxy else "update", *size)
            stages.append(Stage(f"{prefix}development {number}", (Step("sample", *size), scored), number))
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
        case sources.OwnQuestions():
            steps = (Step("sample", tests, after.drawn, writer="student"), update(tests, after.edits))
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
        case sources.Control(kind="equal_tokens"):
            steps = (Step("sample", tests, POOLED * after.edits), update(tests, after.edits))
        case _:
            steps = (update(tests, after.edits),)
    return Stage(f"variant {variant.name}", steps, variant)


def _is_taught(source: sources.Source) -> bool:
    """Return whether a local teacher writes a variant's self-edits, the one that learns from the proxy left out."""
    teacher = isinstance(source, sources.TeacherSource) and source.state != "proxy"
    return teacher or isinstance(source, sources.BestPrompt)


def _plan_curves(config: TrainTeacherConfig) -> list[Stage]:
    """Return a stage for each variant with a curve of accuracy against tokens."""
    plan, tests = config.comparison.curve, config.data.test_documents
    if plan is None:
        return []
    steps = Step("sample", tests, plan.samples), *(Step("update", tests, questions="comparison") for _ in plan.tokens)
    taught = [variant for variant in config.listed if _is_taught(variant.source)]
    return [Stage(f"curve {v.name}", steps, v) for v in sorted(taught, key=lambda v: v.name == "fixed_kind")]


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


def plan_oracle(source: sources.FixedSpecification) -> Stage:
    """Return the stage of the oracle: every specification on some test tasks, then the best of each."""
    tried = len(source.choices)
    steps = (
        Step("update", source.oracle_tasks, tried, trains_on="specification"),
        Step("update", source.oracle_tasks, 1, trains_on="specification", questions="comparison"),
    )
    return Stage("specification oracle", steps, source)
