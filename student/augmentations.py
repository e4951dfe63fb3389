"""Test-time training data of a grid task: its demonstrations, each asked for in turn, under transformations.

An example leaves one demonstration out, shows the others and asks for the output of the one left out: that is what the
student is asked with the test inputs, so it can be trained without them (arXiv 2411.07279). Test inputs are never
read here. Each example is shown again under every transformation that the self-edit's specification chooses, applied to
inputs and outputs alike.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from evaluation.grids.tasks import LONGEST_SIDE, Grid, GridPair, GridTask
from evaluation.grids.text import write_grid, write_query
from evaluation.grids.transformations import (
    AS_IT_IS,
    FLIP,
    MIRROR,
    ORIENTATIONS,
    TRANSPOSE,
    TURNS,
    Chain,
    Enlargement,
    Tiling,
    Transformation,
    distinct,
    random_recolouring,
    random_shift,
)
from teacher.self_edit import AugmentationSpec, Implication, SelfEdit

MOST_EXAMPLES = 250
"""SEAL's cap on the examples of a task."""

_TWICE = Enlargement(2, 2)
_REFLECTED = (Tiling(1, 2, mirrored=True), Tiling(2, 1, mirrored=True))
SIZES: tuple[Transformation, ...] = (_TWICE, Enlargement(2, 1), Enlargement(1, 2))
CHAINS: tuple[Transformation, ...] = tuple(Chain((o, _TWICE)) for o in (*TURNS, MIRROR, FLIP, TRANSPOSE))
REPEATS: tuple[Transformation, ...] = (Tiling(2, 1), Tiling(1, 2), Tiling(2, 2))
CHOSEN: Mapping[str, tuple[Transformation, ...]] = {
    "none": (),
    "mirror": (MIRROR,),
    "flip": (FLIP,),
    "transpose": (TRANSPOSE,),
    "turns": TURNS,
    "all": ORIENTATIONS[1:],
}
"""By `AugmentationSpec.orientations`, what is shown beside the task as it is."""


class Example(NamedTuple):
    """A task made of demonstrations alone: some are shown, one is asked for."""

    shown: tuple[GridPair, ...]
    asked: GridPair


class Examples(NamedTuple):
    """What a specification makes of a task."""

    lines: tuple[Implication, ...]
    """A question and its answer for each example, in the order made; no two alike."""
    too_large: int
    """Examples with a grid above the largest allowed size, which are left out."""
    left_out: int
    """Examples beyond the cap, left out at random."""

    @property
    def note(self) -> str:
        """What became of the examples that are not trained on; empty when there are none."""
        counts = {"with a grid above the largest size": self.too_large, f"beyond {MOST_EXAMPLES}": self.left_out}
        told = [f"{count} {why}" for why, count in counts.items() if count]
        return f"examples left out: {', '.join(told)}" if told else ""


def basic(rng: random.Random) -> tuple[Transformation, ...]:
    """Return SEAL's eleven basic transformations: turns, flips, four reflections, a random shift, transpose."""
    reflected = (*_REFLECTED, Chain((MIRROR, _REFLECTED[0])), Chain((FLIP, _REFLECTED[1])))
    return (*TURNS, FLIP, MIRROR, *reflected, random_shift(rng), TRANSPOSE)


def transformations_of(spec: AugmentationSpec, rng: random.Random) -> list[Transformation]:
    """Return the transformations that a specification chooses, the task as it is first, none twice."""
    chosen: list[Transformation] = [AS_IT_IS, *CHOSEN[spec.orientations]]
    chosen += basic(rng) if spec.use_basic_augmentations else ()
    chosen += SIZES if spec.use_size_augmentations else ()
    chosen += CHAINS if spec.use_chain_augmentations else ()
    chosen += REPEATS if spec.use_repeat_augmentations else ()
    return distinct(chosen)


def most_examples(spec: AugmentationSpec, demonstrations: int) -> int:
    """Return how many examples a specification makes of so many demonstrations, equal ones counted each, at most.

    Grids that become too large are not made, and equal examples are trained on once: there may be fewer.
    """
    left_out = demonstrations * (1 if spec.leave_out == 1 else demonstrations)
    shown = len(transformations_of(spec, random.Random(0)))
    return min(left_out * shown * (1 + spec.colourings), MOST_EXAMPLES)


def leave_out(demonstrations: Sequence[GridPair], count: int) -> Iterator[Example]:
    """Yield the examples that leave 1, or 1 and 2, of the demonstrations out, the last one left out being asked for.

    Args:
        demonstrations: At least one; with one alone there is one example that shows nothing.
        count: 1 or 2; examples that would show nothing are not made for the sake of the second.
    """
    places = range(len(demonstrations))
    for asked in places:
        others = [i for i in places if i != asked]
        yield Example(tuple(demonstrations[i] for i in others), demonstrations[asked])
        if count == 2 and len(others) > 1:
            for second in others:
                shown = tuple(demonstrations[i] for i in others if i != second)
                yield Example(shown, demonstrations[asked])


def build_examples(task: GridTask, spec: AugmentationSpec | None, seed: int, *, most: int = MOST_EXAMPLES) -> Examples:
    """Return the training data of a task, the same for the same arguments.

    Args:
        task: Its demonstrations alone are read.
        spec: None trains on the demonstrations as they are.
        seed: Of random shifts, colours, orders and of what the cap leaves out.
        most: Examples, at least 1.
    """
    spec = spec or AugmentationSpec()
    rng = random.Random(seed)
    transformations = transformations_of(spec, rng)
    made = [
        changed
        for example in leave_out(task.demonstrations, spec.leave_out)
        for transformation in transformations
        for changed in _shown_as(example, transformation, spec, rng)
    ]
    fitting = [example for example in made if all(_fits(grid) for grid in _grids(example))]
    lines = tuple(dict.fromkeys(map(_line, fitting)))
    left_out = max(len(lines) - most, 0)
    if left_out:
        lines = tuple(lines[i] for i in sorted(rng.sample(range(len(lines)), most)))
    return Examples(lines, too_large=len(made) - len(fitting), left_out=left_out)


def _shown_as(
    example: Example, transformation: Transformation, spec: AugmentationSpec, rng: random.Random
) -> Iterator[Example]:
    """Yield an example under a transformation, and as often in other colours as the specification says."""
    keep = (0,) if spec.keep_background else ()
    yield _ordered(_changed(example, transformation), spec, rng)
    for _ in range(spec.colourings):
        coloured = Chain((transformation, random_recolouring(rng, keep=keep)))
        yield _ordered(_changed(example, coloured), spec, rng)


def _changed(example: Example, transformation: Transformation) -> Example:
    def pair(given: GridPair) -> GridPair:
        # Not checked: a grid may become too large, which is counted and not refused.
        return GridPair.model_construct(
            input=transformation.apply(given.input), output=transformation.apply(given.output)
        )

    return Example(tuple(map(pair, example.shown)), pair(example.asked))


def _ordered(example: Example, spec: AugmentationSpec, rng: random.Random) -> Example:
    shown = list(example.shown)
    if spec.permute_demonstrations:
        rng.shuffle(shown)
    return Example(tuple(shown), example.asked)


def _grids(example: Example) -> Iterable[Grid]:
    return (grid for pair in (*example.shown, example.asked) for grid in (pair.input, pair.output))


def _fits(grid: Grid) -> bool:
    return len(grid) <= LONGEST_SIDE and len(grid[0]) <= LONGEST_SIDE


def _line(example: Example) -> Implication:
    return Implication(text=write_query(example.shown, example.asked.input), answer=write_grid(example.asked.output))


class TrainedOn(NamedTuple):
    """A self-edit as it is trained on."""

    edit: SelfEdit
    note: str
    """`Examples.note`."""


def with_examples(edit: SelfEdit, puzzle: GridTask, seed: int) -> TrainedOn:
    """Return a self-edit whose lines are the training data that its specification makes of a puzzle.

    A self-edit without any specification is left as it is: its lines, such as the bare demonstrations, are what it has.
    Lines beside a specification are trained on after the examples.

    Args:
        edit: What the teacher wrote.
        puzzle: Its demonstrations are read.
        seed: Of everything random in the examples.
    """
    if edit.augmentations is None and edit.training is None:
        return TrainedOn(edit, "")
    examples = build_examples(puzzle, edit.augmentations, seed)
    whole = SelfEdit(
        implications=(*examples.lines, *edit.implications), augmentations=edit.augmentations, training=edit.training
    )
    return TrainedOn(whole, examples.note)
