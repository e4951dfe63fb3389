"""Random grids and transformations for property tests."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from evaluation.grids.tasks import COLOURS, Grid
from evaluation.grids.transformations import (
    ORIENTATIONS,
    Chain,
    Enlargement,
    Recolouring,
    Shift,
    Tiling,
    Transformation,
)


@st.composite
def grids(draw: st.DrawFn, longest: int = 8) -> Grid:
    """Return a random grid of up to `longest` rows and columns."""
    height, width = draw(st.integers(1, longest)), draw(st.integers(1, longest))
    rng = random.Random(draw(st.integers(0, 2**32)))
    return tuple(tuple(rng.randrange(COLOURS) for _ in range(width)) for _ in range(height))


SMALL = st.integers(1, 3)
SINGLE: st.SearchStrategy[Transformation] = st.one_of(
    st.sampled_from(ORIENTATIONS),
    st.builds(Shift, st.integers(-9, 9), st.integers(-9, 9)),
    st.permutations(range(COLOURS)).map(lambda colours: Recolouring(tuple(colours))),
    st.builds(Enlargement, SMALL, SMALL),
    st.builds(Tiling, SMALL, SMALL, st.booleans()),
)
TRANSFORMATIONS: st.SearchStrategy[Transformation] = st.one_of(
    SINGLE, st.lists(SINGLE, max_size=3).map(lambda steps: Chain(tuple(steps)))
)
