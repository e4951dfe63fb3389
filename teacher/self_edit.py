"""The self-edit: a teacher's parsed output for a task, and the only type that teacher and student share."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from pydantic import Field

from evaluation.common.data import Frozen, digest_json
from evaluation.grids.augmentations import AugmentationSpec as AugmentationSpec
from evaluation.grids.augmentations import augmentations_of
from evaluation.tasks import LossOn as LossOn


class Implication(Frozen):
    """One training line: a statement, or a question with its answer."""

    text: str = Field(min_length=1)
    """The statement or the question."""
    answer: str | None = None
    """The answer to the question in `text`; None for a statement."""

    @property
    def line(self) -> str:
        """Statement, or question and answer, on one line."""
        return self.text if self.answer is None else f"Question: {self.text} Answer: {self.answer}"


class TrainingSpec(Frozen):
    """Hyperparameters of the update that a teacher may choose; None falls back to the run's recipe."""

    learning_rate: float | None = Field(default=None, ge=1e-6, le=0.1)
    """Peak step size of Adam, in [1e-6, 0.1]."""
    epochs: int | None = Field(default=None, ge=1, le=100)
    """Passes over the training sequences, in [1, 100]."""
    rank: int | None = Field(default=None, ge=1, le=256)
    """LoRA rank, in [1, 256]."""
    loss_on: LossOn | None = None
    """Tokens that carry loss: `all`, `answer` (where there is one), or `outputs` (also those of demonstrations)."""


class SelfEdit(Frozen):
    """A parsed self-edit; each part is optional, at least one is present."""

    implications: tuple[Implication, ...] = ()
    """Training lines in the order written."""
    augmentations: AugmentationSpec | None = None
    training: TrainingSpec | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content (64 hex digits)."""
        return digest_json(self.model_dump(mode="json"))


def edit_of(choice: Mapping[str, Any]) -> SelfEdit:
    """Return the self-edit with the given fields of augmentations and training, in one flat mapping.

    Raises:
        ValueError: A field is unknown, or a value is outside its range.
    """
    shown, trained = AugmentationSpec.model_fields, TrainingSpec.model_fields
    if unknown := sorted(set(choice) - set(shown) - set(trained)):
        raise ValueError(f"specification: got the fields {unknown}, allowed are {[*shown, *trained]}")
    training = {name: value for name, value in choice.items() if name in trained}
    return SelfEdit(augmentations=augmentations_of(choice), training=TrainingSpec(**training) if training else None)
