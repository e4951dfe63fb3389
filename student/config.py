"""How a self-edit is taken into a student's weights: the recipe of an update."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from teacher.self_edit import LossOn, TrainingSpec

TargetModules = Literal["all-linear"] | tuple[str, ...]
"""Which linear layers get LoRA factors; see `UpdateRecipe.target_modules`."""


WHOLE_DEPTH = (0.0, 1.0)
"""All blocks of a model, and what is outside of any."""


class UpdateRecipe(BaseModel):
    """Hyperparameters of one update: LoRA (arXiv 2106.09685) trained with AdamW (arXiv 1711.05101)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(default=8, ge=1, le=256)
    """LoRA rank R, in [1, 256]."""
    alpha: float = Field(default=16.0, gt=0.0, le=1024.0)
    """LoRA scale: the factors' product is multiplied by alpha / rank; in (0, 1024]."""
    learning_rate: float = Field(default=5e-3, gt=0.0, le=1.0)
    """Peak step size of AdamW, in (0, 1]."""
    epochs: int = Field(default=16, ge=1, le=1000)
    """Passes over the training sequences, in [1, 1000]."""
    batch_size: int = Field(default=8, ge=1, le=1024)
    """Sequences in one optimizer step, in [1, 1024]; the last step of an epoch takes what is left."""
    max_steps: int = Field(default=256, ge=1, le=100_000)
    """Hard cap on optimizer steps, in [1, 100000]; the schedule decays over the capped number."""
    step_budget: int | None = Field(default=None, ge=1, le=100_000)
    """Optimizer steps that a self-edit may ask for by its epochs and lines, in [1, 100000]; one that asks for more is
    refused before any training. None refuses none, and `max_steps` cuts."""
    schedule: Literal["linear", "constant"] = "linear"
    """Step size after the warm-up: `linear` falls to 0 just after the last step, `constant` stays."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the step size rises from 0; 0 starts at the peak."""
    max_gradient_norm: float | None = Field(default=1.0, gt=0.0)
    """Gradients of one adapter are scaled down to this Euclidean norm; None leaves them."""
    weight_decay: float = Field(default=0.0, ge=0.0, le=1.0)
    """Decoupled weight decay of AdamW, in [0, 1]; 0 is none."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's first and second moments, each in [0, 1)."""
    adam_epsilon: float = Field(default=1e-8, gt=0.0, le=1e-2)
    """Added to AdamW's denominator, in (0, 0.01]."""
    loss_on: LossOn = "all"
    """Tokens that carry loss: all of a sequence, those of the answer, or on grid tasks those of all outputs, the
    demonstrations' among them; a statement keeps all either way."""
    target_modules: TargetModules = "all-linear"
    """`all-linear`: every linear layer but the output head, as in PEFT; else name suffixes such as `q_proj`."""
    depth: tuple[float, float] = WHOLE_DEPTH
    """Blocks of the model that get factors, from and to, each in [0, 1] of its depth: of L blocks, number i (from 0) is
    at (i + 0.5) / L. `[0.5, 1.0]` is the upper half, whose updates cost less and may forget less."""
    include_passage: bool = False
    """Append the document's own text as one more sequence, as SEAL does (arXiv 2506.10943)."""
    title_prefix: bool = False
    """Put the document's title on a line of its own before each statement and before the passage, as SEAL does."""
    max_sequence_tokens: int = Field(default=1024, ge=2)
    """Longest training sequence, in tokens; a longer one is left out and recorded, never cut."""

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
        return min(self.max_steps, self.asked_steps(sequences))

    def asked_steps(self, sequences: int) -> int:
        """Return the number of optimizer steps that so many training sequences ask for, without any cap."""
        return self.epochs * -(-sequences // self.batch_size)

    def learning_rate_at(self, step: int, total: int) -> float:
        """Return the step size of optimizer step `step`, in [0, total), as transformers' schedules give it.

        Same as `get_linear_schedule_with_warmup` and `get_constant_schedule_with_warmup`.
        """
        if step < self.warmup_steps:
            return self.learning_rate * step / max(1, self.warmup_steps)
        if self.schedule == "constant":
            return self.learning_rate
        return self.learning_rate * max(0.0, (total - step) / max(1, total - self.warmup_steps))
