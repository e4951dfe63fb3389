"""The self-edit: what a teacher writes for a task, and the only thing that teacher and student share."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from evaluation.digests import digest_json


class Implication(BaseModel):
    """One line to learn: a statement, or a question with its answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str = Field(min_length=1)
    """The statement, or the question."""
    answer: str | None = None
    """The answer when `text` is a question that has one; None for a statement."""


class AugmentationSpec(BaseModel):
    """Which transformations of a grid task's demonstrations to train on (arXiv 2506.10943, section 3.2)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    use_basic_augmentations: bool = False
    """Rotations, flips, transpose, translation."""
    use_size_augmentations: bool = False
    """Enlargements."""
    use_chain_augmentations: bool = False
    """Two transformations in a row."""
    use_repeat_augmentations: bool = False
    """Tilings."""


class TrainingSpec(BaseModel):
    """Hyperparameters that a teacher may choose for the update; None leaves one to the run's recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: float | None = Field(default=None, ge=1e-6, le=0.1)
    """Peak step size of Adam, in [1e-6, 0.1]."""
    epochs: int | None = Field(default=None, ge=1, le=100)
    """Passes over the training sequences, in [1, 100]."""
    rank: int | None = Field(default=None, ge=1, le=256)
    """LoRA rank, in [1, 256]."""
    loss_on: Literal["all", "answer"] | None = None
    """Tokens that carry loss: all of a sequence, or those of the answer where a sequence has one."""


class SelfEdit(BaseModel):
    """What a teacher wrote for one task, parsed; each part is optional, and at least one is present."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    implications: tuple[Implication, ...] = ()
    """Lines to learn, in the order written."""
    augmentations: AugmentationSpec | None = None
    training: TrainingSpec | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content (64 hex digits)."""
        return digest_json(self.model_dump(mode="json"))
