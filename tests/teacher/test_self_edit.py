"""Specifications as flat mappings: parse back, and are rejected outside their ranges."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher.parsing.parser import parse_self_edit
from teacher.self_edit import edit_of

CHOICES = st.fixed_dictionaries(
    {"orientations": st.sampled_from(["none", "mirror", "all"]), "colourings": st.integers(0, 16)},
    optional={
        "learning_rate": st.sampled_from([0.01, 0.05]),
        "epochs": st.integers(1, 100),
        "loss_on": st.sampled_from(["answer", "outputs", "all"]),
    },
)


@given(CHOICES)
def test_specifications_parse_back(choice: dict[str, object]) -> None:
    edit = edit_of(choice)
    assert parse_self_edit(json.dumps(choice)).edit == edit
    assert (edit.training is None) == (set(choice) == {"orientations", "colourings"})


@pytest.mark.parametrize("choice", [{"learning_rate": 0.5}, {"epochs": 0}, {"orientations": "left"}, {"x": 1}])
def test_values_outside_their_ranges_and_unknown_fields_are_refused(choice: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"learning_rate|epochs|orientations|x"):
        edit_of(choice)
