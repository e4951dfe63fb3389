"""Spaces of specifications: every combination once, written as the parser reads it back."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from evaluation.microgrids.specs import SPACE
from teacher.parser import parse_self_edit
from teacher.spec_space import SpecSpace, edit_of, write_spec

SMALL = SpecSpace(orientations=("none", "all"), colourings=(0,), learning_rate=(0.01, 0.02), epochs=(2,))


def test_choices_are_all_combinations_in_order() -> None:
    assert list(SMALL.choices()) == [
        {"orientations": o, "colourings": 0, "learning_rate": rate, "epochs": 2}
        for o in ("none", "all")
        for rate in (0.01, 0.02)
    ]
    assert len({edit.digest for edit in SPACE.edits()}) == len(list(SPACE.choices()))


@given(st.sampled_from(list(SPACE.choices())))
def test_specifications_parse_back(choice: dict[str, object]) -> None:
    assert parse_self_edit(write_spec(choice)).edit == edit_of(choice)


@given(st.sampled_from(list(SPACE.choices())))
def test_pieces_put_every_specification_together(choice: dict[str, object]) -> None:
    pieces, text = SPACE.pieces(), write_spec(choice)
    for _ in SPACE.fields:
        (piece,) = [piece for piece in pieces if text.startswith(piece)]
        text = text.removeprefix(piece)
    assert text == ""


def test_fields_without_values_are_in_no_specification() -> None:
    (edit,) = SpecSpace(orientations=("flip",), colourings=()).edits()
    assert edit.training is None
    assert write_spec(next(iter(SpecSpace(orientations=("flip",), colourings=()).choices()))) == (
        '{"orientations": "flip"}'
    )


def test_draws_are_even() -> None:
    rng = random.Random(0)
    counts = Counter(write_spec(SMALL.draw(rng)) for _ in range(400))
    assert len(counts) == 4
    assert min(counts.values()) > 70


@pytest.mark.parametrize("values", [{"learning_rate": (0.5,)}, {"epochs": (0,)}, {"orientations": ("left",)}, {"x": 1}])
def test_values_outside_their_ranges_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SpecSpace.model_validate(values)
