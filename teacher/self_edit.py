"""The self-edit: a teacher's parsed output for a task, and the only type that teacher and student share."""

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


def self_edit_schema() -> dict[str, Any]:
    """Return the JSON schema of a self-edit for structured output; conforming output parses back.

    Strings are limited to 400 characters and lists to 32 items, because a weak model may never terminate.
    """
    # A pattern instead of minLength and maxLength, with which some engines write control characters into strings; it
    # counts in hundreds because xgrammar does not compile larger counts.
    text = {"type": "string", "pattern": r'^([^\x00-\x1f"\\]{1,100}){1,4}$'}
    line = _object({"text": text, "answer": _nullable(text)})
    choices: dict[str, dict[str, Any]] = {
        "orientations": {"enum": list(get_args(Orientations))},
        "colourings": {"type": "integer", "minimum": 0, "maximum": 16},
        "leave_out": {"type": "integer", "minimum": 1, "maximum": 2},
    }
    augmentations = _object({name: choices.get(name, {"type": "boolean"}) for name in AugmentationSpec.model_fields})
    training = _object(
        {
            "learning_rate": _nullable({"type": "number", "minimum": 1e-6, "maximum": 0.1}),
            "epochs": _nullable({"type": "integer", "minimum": 1, "maximum": 100}),
            "rank": _nullable({"type": "integer", "minimum": 1, "maximum": 256}),
            "loss_on": {"enum": [*get_args(LossOn), None]},
        }
    )
    return _object(
        {
            "implications": {"type": "array", "items": line, "minItems": 1, "maxItems": 32},
            "augmentations": _nullable(augmentations),
            "training": _nullable(training),
        }
    )


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an object with exactly these properties."""
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}
