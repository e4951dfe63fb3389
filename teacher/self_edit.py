"""The self-edit: what a teacher writes for a task, and the only thing that teacher and student share."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from evaluation.digests import digest_json


class Implication(BaseModel):
    """One line to learn: a statement, or a question with its answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str = Field(min_length=1)
    """The statement, or the question."""
    answer: str | None = None
    """The answer when `text` is a question that has one; None for a statement."""

    @property
    def line(self) -> str:
        """The statement, or the question with its answer, on one line."""
        return self.text if self.answer is None else f"Question: {self.text} Answer: {self.answer}"


Orientations = Literal["none", "mirror", "flip", "transpose", "turns", "all"]
"""`mirror`: left to right; `flip`: top to bottom; `turns`: by 90, 180 and 270 degrees; `all`: all seven others."""


class AugmentationSpec(BaseModel):
    """Which transformations of a grid task's demonstrations to train on; what each does: `student.augmentations`.

    The four `use_` fields are SEAL's (arXiv 2506.10943, section 3.2); the others choose more finely.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    use_basic_augmentations: bool = False
    """Turns, flips, transpose, reflections, translation."""
    use_size_augmentations: bool = False
    """Enlargements."""
    use_chain_augmentations: bool = False
    """Two transformations in a row."""
    use_repeat_augmentations: bool = False
    """Tilings."""
    orientations: Orientations = "none"
    """Orientations in which all is shown once more."""
    colourings: int = Field(default=0, ge=0, le=16)
    """Times that all is shown once more in other colours, drawn anew for each example, in [0, 16]."""
    keep_background: bool = True
    """Other colours leave colour 0 as it is."""
    permute_demonstrations: bool = True
    """Show the demonstrations of each example in an order of its own."""
    leave_out: int = Field(default=1, ge=1, le=2)
    """Demonstrations left out of an example, in [1, 2]: one of them is the question; 2 makes more examples."""


LossOn = Literal["all", "answer", "outputs"]


class TrainingSpec(BaseModel):
    """Hyperparameters that a teacher may choose for the update; None leaves one to the run's recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: float | None = Field(default=None, ge=1e-6, le=0.1)
    """Peak step size of Adam, in [1e-6, 0.1]."""
    epochs: int | None = Field(default=None, ge=1, le=100)
    """Passes over the training sequences, in [1, 100]."""
    rank: int | None = Field(default=None, ge=1, le=256)
    """LoRA rank, in [1, 256]."""
    loss_on: LossOn | None = None
    """Tokens that carry loss: all of a sequence, those of the answer where a sequence has one, or on grid tasks those
    of all outputs, the demonstrations' among them."""


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


def self_edit_schema(*, longest_line: int = 400, most_lines: int = 32) -> dict[str, Any]:
    """Return the JSON schema of a self-edit for engines with structured output; what follows it parses back.

    Strings and lists are bounded, because a weak model that may go on for ever does.

    Args:
        longest_line: Longest text or answer in characters, rounded up to hundreds, at least 1.
        most_lines: Most implications, at least 1.
    """
    # Instead of minLength and maxLength, with which some engines write control characters into strings; counted in
    # hundreds, since xgrammar does not compile larger counts.
    plain = r'[^\x00-\x1f"\\]'
    text = {"type": "string", "pattern": f"^({plain}{{1,100}}){{1,{math.ceil(longest_line / 100)}}}$"}
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
            "implications": {"type": "array", "items": line, "minItems": 1, "maxItems": most_lines},
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
