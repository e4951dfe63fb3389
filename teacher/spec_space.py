"""A small space of specifications for grid tasks, all of which can be tried on a task."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field

from teacher.self_edit import AugmentationSpec, LossOn, Orientations, SelfEdit, TrainingSpec


class SpecSpace(BaseModel):
    """Values of each field, in the order in which a specification gives them; every combination is in the space.

    A field without values is in no specification, and the recipe decides. Ranges are those of `AugmentationSpec` and
    `TrainingSpec`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    orientations: tuple[Orientations, ...] = get_args(Orientations)
    colourings: tuple[Annotated[int, Field(ge=0, le=16)], ...] = (0, 8)
    loss_on: tuple[LossOn, ...] = ()
    learning_rate: tuple[Annotated[float, Field(ge=1e-6, le=0.1)], ...] = ()
    epochs: tuple[Annotated[int, Field(ge=1, le=100)], ...] = ()

    @property
    def fields(self) -> dict[str, tuple[Any, ...]]:
        """The values by field, without fields that have none."""
        named = ((name, getattr(self, name)) for name in type(self).model_fields)
        return {name: values for name, values in named if values}

    def choices(self) -> Iterator[dict[str, Any]]:
        """Yield every specification, the last field varying fastest."""
        for values in itertools.product(*self.fields.values()):
            yield dict(zip(self.fields, values, strict=True))

    def edits(self) -> list[SelfEdit]:
        """Return the self-edit of every specification."""
        return [edit_of(choice) for choice in self.choices()]

    def draw(self, rng: random.Random) -> dict[str, Any]:
        """Return a random specification, all equally likely."""
        return {name: rng.choice(values) for name, values in self.fields.items()}

    def pieces(self) -> list[str]:
        """Return the texts that every specification is put together from (`write_spec`), one for each value."""
        last = len(self.fields) - 1
        return [
            f"{'{' if place == 0 else ', '}{json.dumps(name)}: {json.dumps(value)}{'}' if place == last else ''}"
            for place, (name, values) in enumerate(self.fields.items())
            for value in values
        ]


def write_spec(choice: dict[str, Any]) -> str:
    """Return a specification as a line of JSON, which the parser of self-edits reads."""
    return json.dumps(choice)


def edit_of(choice: dict[str, Any]) -> SelfEdit:
    """Return the self-edit of a specification.

    Raises:
        pydantic.ValidationError: A value is outside its range.
    """
    shown = {name: value for name, value in choice.items() if name in AugmentationSpec.model_fields}
    trained = {name: value for name, value in choice.items() if name in TrainingSpec.model_fields}
    return SelfEdit(augmentations=AugmentationSpec(**shown), training=TrainingSpec(**trained) if trained else None)
