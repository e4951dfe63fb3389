"""What a run will cost, told before it starts: counts from the configuration, and sizes from checkpoints on disk.

FLOPs are useful ones, two for each multiply-add, attention left out (small at these lengths). A token costs 2 P to
read forward through P parameters. Training a LoRA adapter of L parameters on frozen weights costs 4 P + 6 L a token: a
forward pass and the backward pass through the activations at 2 P each, without the weight gradients that make full
training 6 P, and all three for the adapter. So says the usual count of Kaplan et al. (arXiv 2001.08361, section 2.1),
less the frozen third.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pydantic import BaseModel, ConfigDict

from evaluation.data_config import GridData
from evaluation.endpoints.config import EndpointConfig
from evaluation.grader_config import JudgeGrading
from pipelines.config import RunConfig
from pipelines.model_sizes import ModelSize, model_size, training_flops
from pipelines.workload import Work, count_work, tried_steps
from student.config import UpdateRecipe
from teacher.config import GroupRelativeConfig, LearningConfig, OpenAISampling

if TYPE_CHECKING:
    from rich.table import Table

CPU_FLOPS_PER_SECOND = 15e9
"""Useful FLOP/s of float32 models of about a million parameters on two AVX2 cores, as measured; rough: small steps
are bound by overheads, and larger models reach several times more."""

PASSAGE_TOKENS = 160
"""Assumed length of a passage: a SQuAD paragraph's median of 700 characters."""
QUESTIONS = 8
"""Assumed questions of a document."""

QUESTION_TOKENS = 24
"""Assumed length of a question with its answer."""
_JUDGE_TOKENS = 160
"""Of a judge's instructions."""
PROMPT_TOKENS = 32
"""Assumed length of what a prompt puts around a passage."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FlopEstimate(_Frozen):
    """Useful floating-point operations by stage, at most."""

    sampling: float
    """The teacher writes."""
    updates: float
    """The student takes self-edits into adapters."""
    scoring: float
    """The student answers questions."""
    learning: float
    """The teacher learns."""

    @property
    def total(self) -> float:
        """All stages."""
        return self.sampling + self.updates + self.scoring + self.learning


class EndpointCost(_Frozen):
    """What an endpoint is asked for, at most, retries left out."""

    role: str
    """`teacher`, `external` or `judge`."""
    model: str
    calls: int
    tokens: int
    """Prompts and completions."""
    cost: float | None
    """In `currency`; None without prices."""
    currency: str
    budget: str
    """What the run may spend, in words; empty where there is no limit."""


class CostEstimate(_Frozen):
    """What a run will do, at most: edits that end before the longest allowed length cost less."""

    teacher_parameters: int | None
    """None where it cannot be told without a download or an import."""
    student_parameters: int | None
    teacher_samples: int
    """Completions, over all rounds and the comparison."""
    student_updates: int
    """Adapters trained, over all rounds and the comparison."""
    optimizer_steps: int
    """Of all student updates."""
    training_tokens: int
    """Of all student updates, over all epochs, without padding."""
    teacher_steps: int
    """Optimizer steps of the teacher."""
    learning_tokens: int
    """Completion tokens that the teacher learns from, over all epochs."""
    passage_tokens: int
    """Assumed tokens of a passage."""
    questions: int
    """Assumed questions of a document."""
    endpoints: tuple[EndpointCost, ...]
    """What endpoints are asked for; empty where none is."""
    flops: FlopEstimate | None
    """None where a model's size is not known."""
    minutes: float | None
    """At `CPU_FLOPS_PER_SECOND`; None on another device or where a model's size is not known."""


def estimate(config: RunConfig, *, passage_tokens: int = PASSAGE_TOKENS, questions: int = QUESTIONS) -> CostEstimate:
    """Return what a run with `config` will do, at most; reads headers of local checkpoints and loads nothing.

    Args:
        config: The run.
        passage_tokens: Tokens of a passage, at most; the documents themselves are not opened.
        questions: Questions of a document, at most.
    """
    work = count_work(config)
    recipe, policy = config.student.update, config.teacher.policy
    written = config.teacher.sampling.max_new_tokens
    passage = min(passage_tokens, recipe.max_sequence_tokens)
    grids = isinstance(config.data, GridData)
    # On grid tasks each example of a specification, and each question, is as long as the demonstrations.
    asked = passage_tokens if grids else QUESTION_TOKENS
    edit_cost = update_cost(recipe, lines=max(1, written // 2), tokens=written, passage=passage)
    if grids:
        steps = min(recipe.step_budget or recipe.max_steps, recipe.max_steps)
        edit_cost = UpdateCost(steps, steps * recipe.batch_size * passage)
    tried = tried_steps(config)
    whole = work.edit_updates - tried.updates
    passage_cost = update_cost(recipe.model_copy(update={"include_passage": False}), lines=1, tokens=passage, passage=0)
    teacher = model_size(config.teacher.model, policy.rank, "all-linear")
    student = model_size(config.student.model, recipe.rank, recipe.target_modules, recipe.depth)
    training_tokens = whole * edit_cost.tokens + work.passage_updates * passage_cost.tokens
    training_tokens += tried.steps * recipe.batch_size * passage
    flops = None
    if teacher is not None and student is not None:
        updates = work.edit_updates + work.passage_updates
        read = passage_tokens + PROMPT_TOKENS + written
        flops = FlopEstimate(
            sampling=work.samples * read * forward_flops(teacher),
            updates=training_tokens * training_flops(student),
            scoring=(updates + work.documents) * questions * asked * forward_flops(student),
            learning=work.examples * read * _learning(teacher, config.teacher.learning),
        )
    epochs, minibatch = config.teacher.learning.epochs, config.teacher.learning.minibatch_size
    return CostEstimate(
        teacher_parameters=teacher.parameters if teacher else None,
        student_parameters=student.parameters if student else None,
        teacher_samples=work.samples,
        student_updates=work.edit_updates + work.passage_updates,
        optimizer_steps=whole * edit_cost.steps + work.passage_updates * passage_cost.steps + tried.steps,
        training_tokens=training_tokens,
        teacher_steps=config.loop.rounds * epochs * math.ceil(work.round_examples / minibatch),
        learning_tokens=work.examples * written * epochs,
        passage_tokens=passage_tokens,
        questions=questions,
        endpoints=tuple(_endpoint_costs(config, work, passage_tokens, questions)),
        flops=flops,
        minutes=minutes_of(flops, config.device),
    )


def minutes_of(flops: FlopEstimate | None, device: str) -> float | None:
    """Return the time of so many FLOPs on a CPU; None on another device, or where they are not known."""
    return flops.total / CPU_FLOPS_PER_SECOND / 60 if flops is not None and device == "cpu" else None


def cost_table(cost: CostEstimate, config: RunConfig) -> Table:
    """Return the estimate for the terminal."""
    kept = " Self-edits that come again (loop.remember) take no update." if config.loop.remember else ""
    caption = (
        f"For passages of up to {cost.passage_tokens} tokens and {cost.questions} questions a document; edits that end "
        f"early cost less.{kept}"
    )
    rows = {
        "Teacher": f"{config.teacher.model}, {told_parameters(cost.teacher_parameters)}",
        "Student": f"{config.student.model}, {told_parameters(cost.student_parameters)}",
        "Self-edits sampled": f"{cost.teacher_samples:,}",
        "Student updates": f"{cost.student_updates:,}",
        "Student optimizer steps": f"{cost.optimizer_steps:,}",
        "Student training tokens": f"{cost.training_tokens:,}",
        "Teacher optimizer steps": f"{cost.teacher_steps:,}",
        "Teacher learning tokens": f"{cost.learning_tokens:,}",
    }
    return quantity_table(
        f"Cost of {config.name}", caption, rows | common_rows(cost.endpoints, cost.flops, cost.minutes)
    )


def quantity_table(title: str, caption: str, rows: Mapping[str, str]) -> Table:
    """Return quantities as a table; how rough its time is is added to the caption."""
    from rich.text import Text

    from pipelines.report import plain_table

    rough = "The time is rough: measured with models of a million parameters, two cores."
    table = plain_table(title=title, caption=f"{caption} {rough}")
    table.add_column("Quantity", no_wrap=True)
    table.add_column("At most", justify="right", overflow="fold")
    for name, value in rows.items():
        table.add_row(Text(name), Text(value))
    return table


def common_rows(endpoints: Sequence[EndpointCost], flops: FlopEstimate | None, minutes: float | None) -> dict[str, str]:
    """Return the rows that every table of costs ends with: endpoints, FLOPs by stage, and time."""
    rows = {}
    for asked in endpoints:
        price = "" if asked.cost is None else f", {asked.cost:,.2f} {asked.currency}"
        limit = f" (budget {asked.budget})" if asked.budget else " (no budget)"
        rows[f"Endpoint: {asked.role}"] = f"{asked.model}: {asked.calls:,} calls, {asked.tokens:,} tokens{price}{limit}"
    if flops is not None and flops.total:
        rows["Useful FLOPs"] = f"{flops.total:.1e}"
        stages = flops.model_dump().items()
        rows |= {f"  {stage}": f"{100 * value / flops.total:.0f} %" for stage, value in stages if value}
    told = "unknown" if minutes is None else f"{minutes:,.0f} min" if minutes >= 1 else "under 1 min"
    rows[f"Time at {CPU_FLOPS_PER_SECOND / 1e9:.0f} GFLOP/s"] = told
    return rows


def _endpoint_costs(config: RunConfig, work: Work, passage_tokens: int, questions: int) -> Iterator[EndpointCost]:
    """Yield what each endpoint of the run is asked for."""
    read = passage_tokens + PROMPT_TOKENS
    sampling, external, grading = config.teacher.sampling, config.comparison.external, config.grading
    tests = config.data.test_documents
    if isinstance(sampling, OpenAISampling):
        yield endpoint_cost("teacher", sampling.endpoint, work.samples, read, sampling.max_new_tokens)
    if external is not None:
        calls = config.comparison.tried * tests
        yield endpoint_cost("external", external.sampling.endpoint, calls, read, external.sampling.max_new_tokens)
    if grading is not None and isinstance(grading.grader, JudgeGrading):
        judge = grading.grader
        students = work.edit_updates + work.passage_updates + work.documents
        if config.grading_for("rewards") is None:
            students -= work.reward_updates + work.reward_documents
        students += tests if config.comparison.joint_update is not None else 0
        answers = questions * students
        seen = _JUDGE_TOKENS + QUESTION_TOKENS + grading.max_new_tokens
        yield endpoint_cost("judge", judge.endpoint, answers * judge.repeats, seen, judge.max_tokens)


def endpoint_cost(role: str, endpoint: EndpointConfig, calls: int, read: int, written: int) -> EndpointCost:
    """Return what an endpoint is asked for.

    Args:
        role: Of the endpoint.
        endpoint: Its address, prices and budget.
        calls: To be made.
        read: Tokens of a prompt.
        written: Tokens of a completion, at most.
    """
    limits = [] if endpoint.budget_tokens is None else [f"{endpoint.budget_tokens:,} tokens"]
    limits += [] if endpoint.budget_cost is None else [f"{endpoint.budget_cost:,.2f} {endpoint.currency}"]
    return EndpointCost(
        role=role,
        model=endpoint.model,
        calls=calls,
        tokens=calls * (read + written),
        cost=endpoint.cost(calls * read, calls * written),
        currency=endpoint.currency,
        budget=" and ".join(limits),
    )


class UpdateCost(NamedTuple):
    """What one update takes, at most."""

    steps: int
    """Of the optimizer."""
    tokens: int
    """Trained on, over all epochs, without padding."""


def update_cost(recipe: UpdateRecipe, *, lines: int, tokens: int, passage: int) -> UpdateCost:
    """Return the steps and tokens of one update, at most.

    A line's list mark and line break in the completion make room for the tokens that open and close it in training.

    Args:
        recipe: Of the update.
        lines: Training sequences.
        tokens: Of all of them together.
        passage: Of the document's own text, which is one more sequence where the recipe says so.
    """
    sequences = lines + recipe.include_passage
    passes = min(recipe.epochs, recipe.max_steps)
    return UpdateCost(recipe.total_steps(sequences), passes * (tokens + passage * recipe.include_passage))


def forward_flops(model: ModelSize) -> float:
    """Return the useful FLOPs of reading one token through a model with an adapter."""
    return 2.0 * (model.parameters + model.adapter)


def _learning(model: ModelSize, learning: LearningConfig) -> float:
    """Return the FLOPs for a token of an example: training and the reference each epoch, old probabilities once."""
    old = forward_flops(model) if isinstance(learning, GroupRelativeConfig) else 0.0
    return old + learning.epochs * (training_flops(model) + 2.0 * model.parameters)


def told_parameters(number: int | None) -> str:
    """Return a number of parameters in words."""
    if number is None:
        return "size unknown"
    return f"{number / 1e9:.2f} billion parameters" if number >= 1e9 else f"{number / 1e6:.2f} million parameters"
