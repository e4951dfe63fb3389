"""How a self-edit is taken into a student's weights: the recipe of an update."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from evaluation.common.data import LoraShape
from teacher.self_edit import LossOn, TrainingSpec

Objective = Literal["likelihood", "context_distillation"]
"""What an update minimises; see `UpdateRecipe.objective`."""
TargetModules = Literal["all-linear"] | tuple[str, ...]
"""Which linear layers get LoRA factors; see `UpdateRecipe.target_modules`."""
PASSAGE_TEMPLATE = "Passage: {context}\n"
"""What stands before a question to put a passage in its context; the micro-student was pretrained to answer from it."""
MAX_GRADIENT_NORM = 1.0
"""Largest Euclidean norm of an adapter's gradients, as in transformers' Trainer."""
WHOLE_DEPTH = (0.0, 1.0)
"""All blocks of a model, and what is outside of any."""


class UpdateRecipe(LoraShape):
    """Hyperparameters of one update: LoRA (arXiv 2106.09685) trained with AdamW (arXiv 1711.05101).

    There is no weight decay, and gradients of an adapter are scaled down to norm 1.
    """

    rank: int = Field(default=8, ge=1, le=256)
    alpha: float = Field(default=16.0, gt=0.0, le=4096.0)
    learning_rate: float = Field(default=5e-3, gt=0.0, le=1.0)
    """Peak step size of AdamW, in (0, 1]."""
    epochs: int = Field(default=16, ge=1, le=1000)
    """Passes over the training sequences, in [1, 1000]."""
    batch_size: int = Field(default=8, ge=1, le=1024)
    """Sequences in one optimizer step, in [1, 1024]; the last step of an epoch takes what is left."""
    max_steps: int = Field(default=256, ge=1, le=100_000)
    """Hard cap on optimizer steps, in [1, 100000]; the schedule decays over the capped number."""
    step_budget: int | None = Field(default=None, ge=1, le=100_000)
    """Most optimizer steps that a self-edit's epochs and lines may take, in [1, 100000]; one that takes more is refused
    before any training. None refuses none, and `max_steps` cuts."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the step size rises from 0, at least 0, before it falls linearly to 0; 0 starts at the peak."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's first and second moments, each in [0, 1)."""
    loss_on: LossOn = "all"
    """Tokens that carry loss: all of a sequence, those of the answer, or those of all outputs that the question shows
    and of the answer; a statement keeps all either way."""
    objective: Objective = "likelihood"
    """`likelihood`: cross-entropy of the written tokens. `context_distillation` (arXiv 2209.15189): KL divergence from
    what the base predicts with the passage in its context, at a question's answer (`loss_on` `all` is `answer` here)
    and from a statement's fifth token on."""
    target_modules: TargetModules = "all-linear"
    """`all-linear`: PEFT's, every linear layer of the text part but the output head; else suffixes such as `q_proj`."""
    depth: tuple[float, float] = WHOLE_DEPTH
    """Blocks of the model that get factors, from and to, each in [0, 1] of its depth: of L blocks, number i (from 0) is
    at (i + 0.5) / L. `[0.5, 1.0]` is the upper half, whose updates cost less and may forget less."""
    include_passage: bool = False
    """Append the document's own text as one more sequence, as SEAL does (arXiv 2506.10943)."""
    title_prefix: bool = False
    """Put the document's title on a line of its own before each statement and before the passage, as SEAL does."""
    max_sequence_tokens: int = Field(default=1024, ge=2)
    """Longest training sequence in tokens, at least 2; a longer one is left out and recorded, never cut."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not all(0.0 <= beta < 1.0 for beta in self.adam_betas):
            raise ValueError(f"adam_betas must each be in [0, 1), got {self.adam_betas}")
        if self.target_modules != "all-linear" and not self.target_modules:
            raise ValueError("target_modules must name at least one module, or be 'all-linear'")
        if not 0.0 <= self.depth[0] <= self.depth[1] <= 1.0:
            raise ValueError(f"depth must rise within [0, 1], got {list(self.depth)}")
        return self

    @property
    def scale(self) -> float:
        """Factor of the product of A and B: alpha / rank."""
        return self.alpha / self.rank

    def with_spec(self, spec: TrainingSpec | None) -> UpdateRecipe:
        """Return the recipe with what the self-edit's training spec sets; None changes nothing.

        `alpha` stays, so a lower rank means a larger scale.

        Raises:
            pydantic.ValidationError: The result is outside the recipe's ranges.
        """
        chosen: dict[str, Any] = {} if spec is None else spec.model_dump(exclude_none=True)
        return UpdateRecipe.model_validate({**self.model_dump(), **chosen}) if chosen else self

    def total_steps(self, sequences: int) -> int:
        """Return the number of optimizer steps for so many training sequences, at most `max_steps`."""
        return min(self.max_steps, self.uncapped_steps(sequences))

    def uncapped_steps(self, sequences: int) -> int:
        """Return the same without the cap."""
        return self.epochs * -(-sequences // self.batch_size)

    def learning_rate_at(self, step: int, total: int) -> float:
        """Return the step size of step `step`, in [0, total), as transformers' `get_linear_schedule_with_warmup`."""
        if step < self.warmup_steps:
            return self.learning_rate * step / max(1, self.warmup_steps)
        return self.learning_rate * max(0.0, (total - step) / max(1, total - self.warmup_steps))


def select_layers(names: Sequence[str], target_modules: TargetModules, depth: tuple[float, float]) -> list[str]:
    """Return which of a model's linear layers (such as `model.layers.3.mlp.up_proj`) get factors, in the order given.

    For the choice see `UpdateRecipe`; a layer outside of any block is meant only where the whole depth is.
    """
    blocks = {name: next((int(part) for part in name.split(".") if part.isdigit()), None) for name in names}
    count = 1 + max((block for block in blocks.values() if block is not None), default=0)

    def is_within(block: int | None) -> bool:
        return depth == WHOLE_DEPTH if block is None else depth[0] <= (block + 0.5) / count <= depth[1]

    named = names if target_modules == "all-linear" else [n for n in names if _fits_any(n, target_modules)]
    return [name for name in named if is_within(blocks[name])]


def unknown_names(names: Collection[str], target_modules: TargetModules) -> list[str]:
    """Return the names or ends that fit no layer."""
    ends = () if target_modules == "all-linear" else target_modules
    return [end for end in ends if not any(_fits_any(name, (end,)) for name in names)]


def _fits_any(name: str, ends: Sequence[str]) -> bool:
    return any(name == end or name.endswith(f".{end}") for end in ends)
