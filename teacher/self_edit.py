"""The self-edit: what a teacher writes for a task, and the only thing that teacher and student share."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, get_args

from pydantic import Field

from evaluation.common.data import Frozen, digest_json
from evaluation.grids.augmentations import AugmentationSpec as AugmentationSpec
from evaluation.grids.augmentations import Orientations, augmentations_of
from evaluation.tasks import LossOn as LossOn


class Implication(Frozen):
    """One line to learn: a statement, or a question with its answer."""

    text: str = Field(min_length=1)
    """The statement, or the question."""
    answer: str | None = None
    """The answer when `text` is a question that has one; None for a statement."""

    @property
    def line(self) -> str:
        """The statement, or the question with its answer, on one line."""
        return self.text if self.answer is None else f"Question: {self.text} Answer: {self.answer}"


class TrainingSpec(Frozen):
    """Hyperparameters that a teacher may choose for the update; None leaves one to the run's recipe."""

    learning_rate: float | None = Field(default=None, ge=1e-6, le=0.1)
    """Peak step size of Adam, in [1e-6, 0.1]."""
    epochs: int | None = Field(default=None, ge=1, le=100)
    """Passes over the training sequences, in [1, 100]."""
    rank: int | None = Field(default=None, ge=1, le=256)
    """LoRA rank, in [1, 256]."""
    loss_on: LossOn | None = None
    """Tokens that carry loss: all of a sequence, those of the answer where a sequence has one, or those of all outputs,
    the demonstrations' among them, where the domain shows such."""


class SelfEdit(Frozen):
    """What a teacher wrote for one task, parsed; each part is optional, and at least one is present."""

    implications: tuple[Implication, ...] = ()
    """Lines to learn, in the order written."""
    augmentations: AugmentationSpec | None = None
    training: TrainingSpec | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content (64 hex digits)."""
        return digest_json(self.model_dump(mode="json"))


def edit_of(choice: Mapping[str, Any]) -> SelfEdit:
    """Return the self-edit of a specification, given as fields of augmentations and training side by side.

    Raises:
        ValueError: A field is unknown, or a value is outside its range.
    """
    shown, trained = AugmentationSpec.model_fields, TrainingSpec.model_fields
    if unknown := sorted(set(choice) - set(shown) - set(trained)):
        raise ValueError(f"specification: got the fields {unknown}, allowed are {[*shown, *trained]}")
    training = {name: value for name, value in choice.items() if name in trained}
    return SelfEdit(augmentations=augmentations_of(choice), training=TrainingSpec(**training) if training else None)


def self_edit_schema() -> dict[str, Any]:
    """Return the JSON schema of a self-edit for engines with structured output; output that follows it parses back.

    Strings have at most 400 characters and lists 32 items, because a weak model may never end.
    """
    # Instead of minLength and maxLength, with which some engines write control characters into strings; counted in
    # hundreds, since xgrammar does not compile larger counts.
    text = {"type": "string", "pattern": r'^([^\x00-\x1f"\\]{1,100}){1,4}$'}
    line = _object({"text": text, "answer": {"anyOf": [text, {"type": "null"}]}})
    flags = {name: {"type": "boolean"} for name, f in AugmentationSpec.model_fields.items() if f.annotation is bool}
    choices = {
        "orientations": {"enum": list(get_args(Orientations))},
        "colourings": {"type": "integer", "minimum": 0, "maximum": 16},
        "leave_out": {"type": "integer", "minimum": 1, "maximum": 2},
    }
    augmentations = _object({name: (flags | choices)[name] for name in AugmentationSpec.model_fields})
    training = _object(
        {
            "learning_rate": {"anyOf": [{"type": "number", "minimum": 1e-6, "maximum": 0.1}, {"type": "null"}]},
            "epochs": {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 100}, {"type": "null"}]},
            "rank": {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 256}, {"type": "null"}]},
            "loss_on": {"enum": [*get_args(LossOn), None]},
        }
    )
    return _object(
        {
            "implications": {"type": "array", "items": line, "minItems": 1, "maxItems": 32},
            "augmentations": {"anyOf": [augmentations, {"type": "null"}]},
            "training": {"anyOf": [training, {"type": "null"}]},
        }
    )


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an object that has exactly these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
