"""Grid puzzles as in ARC (arXiv 1911.01547): a rule shown by a few pairs of grids, to be applied to test inputs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt

from evaluation.digests import digest_json

COLOURS = 10
"""Cells are 0 to 9; 0 is the background."""
LONGEST_SIDE = 30


def grid_mistakes(rows: tuple[tuple[int, ...], ...]) -> Iterator[str]:
    """Yield all that keeps rows from being a grid."""
    widths = sorted({len(row) for row in rows})
    if len(widths) > 1:
        yield f"rows of {', '.join(map(str, widths))} cells, allowed are rows of equal length"
    sides = len(rows), max(widths, default=0)
    if not all(1 <= side <= LONGEST_SIDE for side in sides):
        yield f"{sides[0]} x {sides[1]} cells, allowed are 1 to {LONGEST_SIDE} each way"
    wrong = sorted({cell for row in rows for cell in row if not 0 <= cell < COLOURS})
    if wrong:
        yield f"the colours {', '.join(map(str, wrong))}, allowed are 0 to {COLOURS - 1}"


def _checked(rows: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    mistakes = list(grid_mistakes(rows))
    if mistakes:
        raise ValueError("got " + "; ".join(mistakes))
    return rows


Grid: TypeAlias = tuple[tuple[int, ...], ...]
"""Rows of cells, H x W, as plain numbers."""

CheckedGrid = Annotated[tuple[tuple[StrictInt, ...], ...], AfterValidator(_checked)]
"""A grid that is rectangular, with 1 to 30 rows and columns and colours 0 to 9."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GridPair(_Frozen):
    """A grid and what the rule makes of it."""

    input: CheckedGrid
    output: CheckedGrid


class GridTest(_Frozen):
    """A grid to apply the rule to."""

    input: CheckedGrid
    output: CheckedGrid | None = None
    """The gold output; None where it is not known, so that the task can be answered and not scored."""


class GridTask(_Frozen):
    """One adaptation problem: infer a rule from demonstrations and apply it."""

    id: str = Field(min_length=1)
    """Unique within a data set."""
    demonstrations: tuple[GridPair, ...] = Field(min_length=1)
    """What a teacher reads and a student is adapted on."""
    tests: tuple[GridTest, ...] = Field(min_length=1)
    """Never shown to the teacher and never trained on."""
    source: str = ""
    """Where the task came from."""
    family: str = ""
    """Name of the rule's family where the world knows it; splits and tables use it, nothing else does."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of demonstrations and tests (64 hex digits); the id is no part of it."""
        shown = [[pair.input, pair.output] for pair in self.demonstrations]
        return digest_json({"demonstrations": shown, "tests": [[test.input, test.output] for test in self.tests]})

    @property
    def is_scored(self) -> bool:
        """Whether the gold output of every test is known."""
        return all(test.output is not None for test in self.tests)
