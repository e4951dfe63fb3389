"""Random grids, transformations and small tasks."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from evaluation.grids.grids import (
    COLOURS,
    MIRROR,
    ORIENTATIONS,
    Grid,
    GridPair,
    GridTask,
    GridTest,
    Transformation,
    chain,
    enlargement,
    recolouring,
    shift,
    tiling,
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
    st.builds(shift, st.integers(-9, 9), st.integers(-9, 9)),
    st.permutations(range(COLOURS)).map(recolouring),
    st.builds(enlargement, SMALL, SMALL),
    st.builds(tiling, SMALL, SMALL, mirrored=st.booleans()),
)
TRANSFORMATIONS: st.SearchStrategy[Transformation] = st.one_of(
    SINGLE, st.lists(SINGLE, min_size=1, max_size=3).map(lambda steps: chain(*steps))
)


def mirror_task(*tests: Grid, family: str = "") -> GridTask:
    """Return a task whose rule is to mirror left to right."""
    shown = tuple(GridPair(input=g, output=MIRROR.apply(g)) for g in (((1, 2), (3, 4)), ((5, 6), (7, 8))))
    asked = tuple(GridTest(input=grid, output=MIRROR.apply(grid)) for grid in tests)
    return GridTask(id="m", demonstrations=shown, tests=asked, family=family)
