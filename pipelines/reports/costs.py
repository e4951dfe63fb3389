"""Cost of a run before it starts: the steps of its plan, summed with sizes from checkpoints on disk.

FLOPs are useful ones, two for each multiply-add, attention left out (small at these lengths). A token costs 2 P to
read forward through P parameters. Training a LoRA adapter of L parameters on frozen weights costs 4 P + 6 L a token: a
forward pass and the backward pass through the activations at 2 P each, without the weight gradients that make full
training 6 P, and all three for the adapter: the usual count of Kaplan et al. (arXiv 2001.08361, section 2.1), less the
frozen third.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from evaluation.common.checkpoints import local_model, weight_shapes
from evaluation.common.errors import ModelError
from evaluation.domains import domain_of
from evaluation.engines.endpoint import EndpointConfig
from evaluation.graders import JudgeGrading
from evaluation.tasks import DataSplit
from pipelines.plan import Plan, Step, UpdateSize
from pipelines.settings import LoopSettings
from student.config import WHOLE_DEPTH, TargetModules, UpdateRecipe, select_layers
from teacher.samplers.openai import OpenAISampling
from teacher.self_edit import edit_of

if TYPE_CHECKING:
    from rich.table import Table

CPU_FLOPS_PER_SECOND = 15e9
"""Useful FLOP/s of float32 models of about a million parameters on two AVX2 cores, as measured; rough: small steps
are bound by overheads, and larger models reach several times more."""

PASSAGE_TOKENS = 160
"""Assumed length of a passage: a SQuAD paragraph's median of 700 characters."""
QUESTIONS = 8
"""Assumed questions of a document."""
QUESTION_TOKENS, _JUDGE_TOKENS, _PROMPT_TOKENS = 24, 160, 32
"""Assumed lengths of a question with its answer, of a judge's instructions, and of a prompt around a passage."""
_NOT_LINEAR = ("embed", "wte", "wpe", "norm", "lm_head", "output_layer")


class ModelSize(NamedTuple):
    """Parameters of a checkpoint, and of one LoRA adapter on it."""

    parameters: int
    adapter: int

    @property
    def forward_flops(self) -> float:
        """Useful FLOPs of reading one token through the model with its adapter."""
        return 2.0 * (self.parameters + self.adapter)

    @property
    def training_flops(self) -> float:
        """Useful FLOPs of training the adapter on one token."""
        return 4.0 * self.parameters + 6.0 * self.adapter


def model_size(
    name: str, rank: int, targets: TargetModules, depth: tuple[float, float] = WHOLE_DEPTH
) -> ModelSize | None:
    """Return the size of a checkpoint from the headers of its safetensors files; None without such files.

    A layer's adapter of rank R has R * (D_in + D_out) parameters; for `targets` and `depth` see `UpdateRecipe`.
    """
    place = local_model(name)
    try:
        shapes = {} if place is None else weight_shapes(place)
    except ModelError:
        return None
    if not shapes:
        return None
    linears = [
        weight.removesuffix(".weight")
        for weight, shape in shapes.items()
        if len(shape) == 2 and weight.endswith(".weight") and not any(part in weight for part in _NOT_LINEAR)
    ]
    adapted = [shapes[f"{name}.weight"] for name in select_layers(linears, targets, depth)]
    return ModelSize(sum(map(math.prod, shapes.values())), sum(rank * (rows + columns) for rows, columns in adapted))


class EndpointCost(NamedTuple):
    """Calls of an endpoint, at most, retries left out."""

    role: str
    """`teacher`, `external` or `judge`."""
    endpoint: EndpointConfig
    calls: int
    tokens: int
    """Prompts and completions."""
    cost: float | None
    """In the endpoint's currency; None without prices."""

    @property
    def text(self) -> str:
        """Model, calls, tokens, price and budget."""
        limits = [] if self.endpoint.budget_tokens is None else [f"{self.endpoint.budget_tokens:,} tokens"]
        if self.endpoint.budget_cost is not None:
            limits.append(f"{self.endpoint.budget_cost:,.2f} {self.endpoint.currency}")
        price = "" if self.cost is None else f", {self.cost:,.2f} {self.endpoint.currency}"
        budget = f"budget {' and '.join(limits)}" if limits else "no budget"
        return f"{self.endpoint.model}: {self.calls:,} calls, {self.tokens:,} tokens{price} ({budget})"


class CostEstimate(NamedTuple):
    """Work of a run, at most: self-edits that end before the longest allowed length cost less."""

    teacher: ModelSize | None
    """None where it is not known without a download."""
    student: ModelSize | None
    counts: dict[str, int]
    """By quantity, over all epochs: self-edits, updates, optimizer steps, training tokens without padding, and tokens
    that the teacher learns from."""
    endpoints: tuple[EndpointCost, ...]
    flops: dict[str, float] | None
    """Useful FLOPs by stage; None where a model's size is not known."""

    @property
    def minutes(self) -> float | None:
        """Time at `CPU_FLOPS_PER_SECOND`; None without FLOPs."""
        return None if self.flops is None else sum(self.flops.values()) / CPU_FLOPS_PER_SECOND / 60


def _step_cost(step: Step, subject: Any, settings: LoopSettings, data: DataSplit | None) -> tuple[int, int]:
    """Return optimizer steps and training tokens of a step's updates, at most."""
    recipe, written = settings.student.update, settings.teacher.sampling.max_new_tokens
    passage = min(PASSAGE_TOKENS, recipe.max_sequence_tokens)
    if isinstance(subject, UpdateSize):
        recipe, lines, tokens = subject
    elif step.trains_on == "passage":
        recipe, lines, tokens = recipe.model_copy(update={"include_passage": False}), 1, passage
    elif step.trains_on == "line":
        lines, tokens = 1, QUESTION_TOKENS
    elif data is None or not domain_of(data).shows_document:
        # A line's mark and break in the completion make room for the tokens that open and close it in training.
        lines, tokens = max(1, written // 2), written
    else:  # each line of an expanded specification is as long as the document
        steps = step.total * min(recipe.step_budget or recipe.max_steps, recipe.max_steps)
        if step.trains_on == "specification" and step.each > 1:
            steps = step.documents * _steps_of_all(getattr(subject, "source", subject).choices, recipe, data)
        return steps, steps * recipe.batch_size * passage
    sequences, passes = lines + recipe.include_passage, min(recipe.epochs, recipe.max_steps)
    return (
        step.total * recipe.total_steps(sequences),
        step.total * passes * (tokens + passage * recipe.include_passage),
    )


def _steps_of_all(choices: Sequence[Mapping[str, Any]], recipe: UpdateRecipe, data: DataSplit) -> int:
    """Return the optimizer steps of updates with every specification; those over budget take none."""
    edits, limit = [edit_of(choice) for choice in choices], recipe.step_budget
    lines = [domain_of(data).count_lines(data, edit.augmentations) or 1 for edit in edits]
    steps = [recipe.with_spec(e.training).uncapped_steps(count) for e, count in zip(edits, lines, strict=True)]
    return sum(min(each, recipe.max_steps) for each in steps if limit is None or each <= limit)


def estimate(
    plan: Plan,
    settings: LoopSettings,
    data: DataSplit | None = None,
    external: OpenAISampling | None = None,
) -> CostEstimate:
    """Return the cost of a plan, at most; reads headers of local checkpoints and loads nothing.

    Args:
        plan: Of a run or a night.
        settings: Teacher, student and grading.
        data: Of the run, whose domain decides the length of lines; None is documents with questions.
        external: How the steps of an external writer are sampled.
    """
    kinds: dict[str, list[Step]] = {"sample": [], "update": [], "score": [], "read": [], "learn": []}
    update_steps = update_tokens = 0
    for stage in plan:
        for step in stage.steps:
            kinds[step.kind].append(step)
            if step.kind == "update":
                steps, tokens = _step_cost(step, stage.subject, settings, data)
                update_steps, update_tokens = update_steps + steps, update_tokens + tokens
    totals = {kind: sum(step.total for step in found) for kind, found in kinds.items()}
    samples = sum(step.total for step in kinds["sample"] if step.writer == "teacher")
    recipe, learning = settings.student.update, settings.teacher.learning
    minibatches = sum(math.ceil(step.total / learning.minibatch_size) for step in kinds["learn"])
    written, flops = settings.teacher.sampling.max_new_tokens, None
    teacher = model_size(settings.teacher.model, settings.teacher.policy.rank, "all-linear")
    student = model_size(settings.student.model, recipe.rank, recipe.target_modules, recipe.depth)
    if teacher is not None and student is not None:
        whole = data is not None and domain_of(data).shows_document
        asked = QUESTIONS * (PASSAGE_TOKENS if whole else QUESTION_TOKENS)
        read = PASSAGE_TOKENS + _PROMPT_TOKENS + written
        old_policy = teacher.forward_flops if learning.uses_old_policy else 0.0
        per_token = old_policy + learning.epochs * (teacher.training_flops + 2.0 * teacher.parameters)
        scored = (totals["update"] + totals["score"]) * asked + totals["read"] * (asked + QUESTIONS * written)
        flops = {
            "sampling": samples * read * teacher.forward_flops,
            "updates": update_tokens * student.training_flops,
            "scoring": scored * student.forward_flops,
            "learning": totals["learn"] * read * per_token,
        }
    return CostEstimate(
        teacher=teacher,
        student=student,
        counts={
            "Self-edits sampled": samples,
            "Student updates": totals["update"],
            "Student optimizer steps": update_steps,
            "Student training tokens": update_tokens,
            "Teacher optimizer steps": learning.epochs * minibatches,
            "Teacher learning tokens": totals["learn"] * written * learning.epochs,
        },
        endpoints=tuple(_endpoints(kinds, settings, external)),
        flops=flops,
    )


def _endpoints(
    kinds: Mapping[str, Sequence[Step]], settings: LoopSettings, external: OpenAISampling | None
) -> Iterator[EndpointCost]:
    """Yield the calls of each endpoint."""

    def cost(role: str, endpoint: EndpointConfig, calls: int, read: int, written: int) -> EndpointCost:
        price = endpoint.cost(calls * read, calls * written)
        return EndpointCost(role, endpoint, calls, calls * (read + written), price)

    for role, sampling in (("teacher", settings.teacher.sampling), ("external", external)):
        if isinstance(sampling, OpenAISampling):
            calls = sum(step.total for step in kinds["sample"] if step.writer == role)
            yield cost(role, sampling.endpoint, calls, PASSAGE_TOKENS + _PROMPT_TOKENS, sampling.max_new_tokens)
    grading = settings.grading
    if grading is not None and isinstance(grading.grader, JudgeGrading):
        graded = [s for s in (*kinds["update"], *kinds["score"]) if settings.grading_for(s.questions) is not None]
        calls = sum(step.total for step in graded) * QUESTIONS * grading.grader.repeats
        seen = _JUDGE_TOKENS + QUESTION_TOKENS + grading.max_new_tokens
        yield cost("judge", grading.grader.endpoint, calls, seen, grading.grader.max_tokens)


def cost_table(cost: CostEstimate, settings: LoopSettings) -> Table:
    """Return the estimate for the terminal."""
    from rich.text import Text

    from pipelines.reports.format import plain_table

    rows = {
        "Teacher": f"{settings.teacher.model}, {_parameters(cost.teacher)}",
        "Student": f"{settings.student.model}, {_parameters(cost.student)}",
        **{quantity: f"{count:,}" for quantity, count in cost.counts.items()},
        **{f"Endpoint: {each.role}": each.text for each in cost.endpoints},
    }
    total = 0.0 if cost.flops is None else sum(cost.flops.values())
    if cost.flops is not None and total:
        rows["Useful FLOPs"] = f"{total:.1e}"
        rows |= {f"  {stage}": f"{100 * value / total:.0f} %" for stage, value in cost.flops.items() if value}
    minutes = cost.minutes if settings.device == "cpu" else None
    time = "unknown" if minutes is None else f"{minutes:,.0f} min" if minutes >= 1 else "under 1 min"
    rows[f"Time at {CPU_FLOPS_PER_SECOND / 1e9:.0f} GFLOP/s"] = time
    table = plain_table(
        title=f"Cost of {settings.name}",
        caption=f"Upper bounds for passages of {PASSAGE_TOKENS} tokens and {QUESTIONS} questions a document; repeated "
        "or short self-edits cost less. The time is rough: measured with models of a million parameters, two cores.",
    )
    table.add_column("Quantity", no_wrap=True)
    table.add_column("At most", justify="right", overflow="fold")
    for name, value in rows.items():
        table.add_row(Text(name), Text(value))
    return table


def _parameters(size: ModelSize | None) -> str:
    if size is None:
        return "size unknown"
    millions = size.parameters / 1e6
    return f"{millions / 1e3:.2f} billion parameters" if millions >= 1e3 else f"{millions:.2f} million parameters"
