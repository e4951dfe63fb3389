"""Cost of a run before it starts: a fold over the steps of its plan, with sizes from checkpoints on disk.

FLOPs are useful ones, two for each multiply-add, attention left out (small at these lengths). A token costs 2 P to
read forward through P parameters. Training a LoRA adapter of L parameters on frozen weights costs 4 P + 6 L a token: a
forward pass and the backward pass through the activations at 2 P each, without the weight gradients that make full
training 6 P, and all three for the adapter: the usual count of Kaplan et al. (arXiv 2001.08361, section 2.1), less the
frozen third.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from evaluation.common.checkpoints import linear_layers, local_model, weight_shapes
from evaluation.common.errors import ModelError
from evaluation.domains import domain_of
from evaluation.engines.endpoint import EndpointConfig
from evaluation.graders import JudgeGrading
from evaluation.tasks import DataSplit
from pipelines.plan import Plan, Stage, Step, UpdateSize
from pipelines.settings import LoopSettings
from student.config import WHOLE_DEPTH, TargetModules, UpdateRecipe, select_layers
from teacher.algorithms.algorithm import Algorithm
from teacher.samplers.openai import OpenAISampling
from teacher.self_edit import edit_of

if TYPE_CHECKING:
    from rich.table import Table

CPU_FLOPS_PER_SECOND = 15e9
"""Useful FLOP/s of float32 models of about a million parameters on two AVX2 cores, as measured; rough: small steps
are bound by overheads."""
_LARGE_CPU_FLOPS_PER_SECOND = 40e9
"""The same from `_LARGE` parameters on, as measured with a model of 135 million parameters."""
_LARGE = 1e7
GPU_FLOPS_PER_SECOND = 1e14
"""Assumed useful FLOP/s of a data-centre GPU in bfloat16, a tenth to a third of its peak; not measured."""
_TRAINED_BYTES = 16
"""Of a trained parameter in float32: the value, its gradient, and AdamW's two moments."""
_PARAMETERS = {"gpt2": 1.24e8, "phi-2": 2.78e9, "phi-3-mini": 3.82e9, "phi-3.5-mini": 3.82e9, "phi-4": 1.47e10}
"""Of well-known models whose names do not say it."""
_IN_NAME = re.compile(r"(?<![\dx.])(\d+(?:\.\d+)?)([bm])(?![a-z])")

PASSAGE_TOKENS = 160
"""Assumed length of a passage: a SQuAD paragraph's median of 700 characters."""
QUESTIONS = 8
"""Assumed questions of a document."""
QUESTION_TOKENS, _JUDGE_TOKENS, _PROMPT_TOKENS = 24, 160, 32
"""Assumed lengths of a question with its answer, of a judge's instructions, and of a prompt around a passage."""

_QUANTITIES = (
    "Self-edits sampled",
    "Student updates",
    "Student optimizer steps",
    "Student training tokens",
    "Teacher optimizer steps",
    "Teacher learning tokens",
)


class ModelSize(NamedTuple):
    """Parameters of a checkpoint, and of one LoRA adapter on it."""

    parameters: int
    adapter: int
    estimated: bool = False
    """Whether it is by the model's name alone."""

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
    """Return the size of a model by the headers of its weights, or else its name; None where neither tells.

    A layer's adapter of rank R has R * (D_in + D_out) parameters; for `targets` and `depth` see `UpdateRecipe`.
    """
    place = local_model(name)
    try:
        shapes = {} if place is None else weight_shapes(place)
    except (ModelError, OSError, ValueError, LookupError):
        return None
    if shapes:
        adapted = [shapes[f"{name}.weight"] for name in select_layers(linear_layers(shapes), targets, depth)]
        adapter = sum(rank * (rows + columns) for rows, columns in adapted)
        return ModelSize(sum(map(math.prod, shapes.values())), adapter)
    plain = name.rpartition("/")[2].lower()
    known = [size for prefix, size in _PARAMETERS.items() if plain.startswith(prefix)]
    if found := _IN_NAME.search(plain):
        known = [float(found[1]) * (1e9 if found[2] == "b" else 1e6)]
    # On all linear layers; fitted to Qwen2.5 of 0.5, 1.5 and 7 billion parameters.
    return ModelSize(int(known[0]), int(rank * 2.5e6 * (known[0] / 7.6e9) ** 0.56), estimated=True) if known else None


class CostEstimate(NamedTuple):
    """Work of a run, at most: self-edits that end before the longest allowed length cost less."""

    teacher: ModelSize | None
    """None where it is not known without a download."""
    student: ModelSize | None
    counts: Counter[str]
    """By quantity, over all epochs: self-edits, updates, optimizer steps, training tokens without padding, and tokens
    that the teacher learns from."""
    endpoints: dict[str, tuple[EndpointConfig, int, int]]
    """By role (`teacher`, `external` or `judge`): endpoint, calls at most, retries left out, and tokens of a call."""
    flops: dict[str, float] | None
    """Useful FLOPs by stage; None where a model's size is not known."""
    rate: float
    """Assumed FLOP/s of the device."""

    @property
    def minutes(self) -> float | None:
        """Time at `rate`; None without FLOPs."""
        return None if self.flops is None else sum(self.flops.values()) / self.rate / 60


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
    plan: Plan, settings: LoopSettings, data: DataSplit | None = None, external: OpenAISampling | None = None
) -> CostEstimate:
    """Return the cost of a plan, at most; reads headers of local checkpoints and loads nothing.

    Args:
        plan: Of a run or a night.
        settings: Teacher, student and grading.
        data: Of the run, whose domain decides the length of lines; None is documents with questions.
        external: How the steps of an external writer are sampled.
    """
    recipe = settings.student.update
    teacher = model_size(settings.teacher.model, settings.teacher.policy.rank, "all-linear")
    student = model_size(settings.student.model, recipe.rank, recipe.target_modules, recipe.depth)
    sizes = (teacher or ModelSize(0, 0)), (student or ModelSize(0, 0))
    counts, calls = Counter(dict.fromkeys(_QUANTITIES, 0)), Counter[str]()
    flops = dict.fromkeys(("sampling", "updates", "scoring", "learning"), 0.0)
    for stage in plan:
        for step in stage.steps:
            _add(step, stage, settings, data, sizes, counts, flops)
            if step.kind == "sample":
                calls[step.writer] += step.total
            elif step.kind in ("update", "score") or step.questions == "comparison":
                calls["judge"] += step.total * QUESTIONS * (settings.grading_for(step.questions) is not None)
    endpoints = {}
    for role, sampling in (("teacher", settings.teacher.sampling), ("external", external)):
        if isinstance(sampling, OpenAISampling):
            each = PASSAGE_TOKENS + _PROMPT_TOKENS + sampling.max_new_tokens
            endpoints[role] = sampling.endpoint, calls[role], each
    if settings.grading is not None and isinstance(judge := settings.grading.grader, JudgeGrading):
        each = _JUDGE_TOKENS + QUESTION_TOKENS + settings.grading.max_new_tokens + judge.max_tokens
        endpoints["judge"] = judge.endpoint, calls["judge"] * judge.repeats, each
    rate = CPU_FLOPS_PER_SECOND if student is None or student.parameters < _LARGE else _LARGE_CPU_FLOPS_PER_SECOND
    rate = GPU_FLOPS_PER_SECOND if settings.device == "cuda" else rate
    known = teacher is not None and student is not None
    return CostEstimate(teacher, student, counts, endpoints, flops if known else None, rate)


def _add(
    step: Step,
    stage: Stage,
    settings: LoopSettings,
    data: DataSplit | None,
    sizes: tuple[ModelSize, ModelSize],
    counts: Counter[str],
    flops: dict[str, float],
) -> None:
    """Add a step to the counts by quantity and the FLOPs by stage; `sizes` are the teacher's and the student's."""
    (teacher, student), written, done = sizes, settings.teacher.sampling.max_new_tokens, step.total
    read = PASSAGE_TOKENS + _PROMPT_TOKENS + written
    if step.kind == "sample":
        if step.writer != "external":
            counts["Self-edits sampled"] += done
            flops["sampling"] += done * read * (student if step.writer == "student" else teacher).forward_flops
    elif step.kind == "learn":
        by = stage.subject if isinstance(stage.subject, Algorithm) else settings.teacher.learning
        counts["Teacher optimizer steps"] += by.epochs * math.ceil(done / by.minibatch_size)
        counts["Teacher learning tokens"] += by.epochs * done * written
        passes = by.epochs * (teacher.training_flops + 2.0 * teacher.parameters)
        flops["learning"] += done * read * (passes + by.uses_old_policy * teacher.forward_flops)
    else:
        whole = data is not None and domain_of(data).shows_document
        asked = QUESTIONS * (PASSAGE_TOKENS if whole else QUESTION_TOKENS)
        flops["scoring"] += done * (asked + QUESTIONS * written * (step.kind == "read")) * student.forward_flops
    if step.kind == "update":
        steps, tokens = _step_cost(step, stage.subject, settings, data)
        counts.update({_QUANTITIES[1]: done, _QUANTITIES[2]: steps, _QUANTITIES[3]: tokens})
        flops["updates"] += tokens * student.training_flops


def _memory(cost: CostEstimate, settings: LoopSettings) -> str:
    """Return the memory of models, teacher's optimizer and a full bank; activations come on top."""
    if cost.teacher is None or cost.student is None:
        return "unknown"
    weights = (cost.teacher.parameters + cost.student.parameters) * (2 if settings.dtype == "bfloat16" else 4)
    trained = cost.teacher.adapter + settings.student.bank_slots * cost.student.adapter
    parts = [size / 1e9 for size in (weights, _TRAINED_BYTES * trained)]
    return f"{sum(parts):,.1f} GB ({parts[0]:,.1f} models, {parts[1]:,.1f} adapters)"


def cost_table(cost: CostEstimate, settings: LoopSettings) -> Table:
    """Return the estimate for the terminal."""
    from rich.text import Text

    from pipelines.reports.format import plain_table

    rows = {
        "Teacher": f"{settings.teacher.model}, {_parameters(cost.teacher)}",
        "Student": f"{settings.student.model}, {_parameters(cost.student)}",
        **{quantity: f"{count:,}" for quantity, count in cost.counts.items()},
    }
    for role, (endpoint, calls, each) in cost.endpoints.items():
        budget = "no budget" if endpoint.budget_tokens is None else f"budget {endpoint.budget_tokens:,} tokens"
        rows[f"Endpoint: {role}"] = f"{endpoint.model}: {calls:,} calls, {calls * each:,} tokens ({budget})"
    if cost.flops is not None and (total := sum(cost.flops.values())):
        rows["Useful FLOPs"] = f"{total:.1e}"
        rows |= {f"  {stage}": f"{100 * value / total:.0f} %" for stage, value in cost.flops.items() if value}
    minutes = cost.minutes
    time = "unknown" if minutes is None else f"{minutes:,.0f} min" if minutes >= 1 else "under 1 min"
    rows |= {"Memory, activations apart": _memory(cost, settings), f"Time at {cost.rate / 1e9:,.0f} GFLOP/s": time}
    table = plain_table(
        title=f"Cost of {settings.name}",
        caption=f"Upper bounds for passages of {PASSAGE_TOKENS} tokens and {QUESTIONS} questions a document; repeated "
        "or short self-edits cost less. The time is rough: measured on two CPU cores, assumed for a GPU.",
    )
    table.add_column("Quantity", no_wrap=True)
    table.add_column("At most", justify="right", overflow="fold")
    for name, value in rows.items():
        table.add_row(Text(name), Text(value))
    return table


def _parameters(size: ModelSize | None) -> str:
    if size is None:
        return "size unknown"
    millions, about = size.parameters / 1e6, "about " if size.estimated else ""
    number = f"{millions / 1e3:.2f} billion" if millions >= 1e3 else f"{millions:.2f} million"
    return f"{about}{number} parameters"
