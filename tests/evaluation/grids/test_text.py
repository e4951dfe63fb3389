"""Grids as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.grids.tasks import Grid, GridPair
from evaluation.grids.text import output_spans, read_grid, write_grid, write_pairs, write_query
from tests.evaluation.grids.strategies import grids


@given(grids(30), st.sampled_from(["", "\n", "\n\nInput:\n", "\nno", "\n<end>"]))
def test_what_is_written_is_read_whatever_follows(grid: Grid, after: str) -> None:
    text = write_grid(grid)
    assert read_grid(text + after) == grid
    assert read_grid("\n \n" + text.replace("\n", " \n")) == grid


@given(st.text(max_size=60))
def test_reading_never_fails_and_gives_grids_alone(text: str) -> None:
    found = read_grid(text)
    assert found is None or read_grid(write_grid(found)) == found


@pytest.mark.parametrize(
    "text", ["", "\n", "no grid", "12\n3", "1" * 31, "\n".join("1" * 31), "Output:\n12", "-1", "\u0661\u0662"]
)
def test_what_is_no_grid_is_none(text: str) -> None:
    assert read_grid(text) is None


def test_prompt_shows_pairs_and_ends_where_the_output_starts() -> None:
    pair = GridPair(input=((1, 0),), output=((0, 1),))
    assert write_pairs([pair]) == "Input:\n10\nOutput:\n01"
    assert write_query([pair], ((2, 0),)) == "Input:\n10\nOutput:\n01\nInput:\n20\nOutput:\n"
    assert write_query([], ((2, 0),)) == "Input:\n20\nOutput:\n"


@given(st.lists(st.tuples(grids(4), grids(4)), max_size=4), grids(4))
def test_spans_are_those_of_the_demonstrations_outputs(pairs: list[tuple[Grid, Grid]], asked: Grid) -> None:
    shown = [GridPair(input=one, output=other) for one, other in pairs]
    text = write_query(shown, asked)
    assert [text[start:end] for start, end in output_spans(text)] == [write_grid(pair.output) for pair in shown]
