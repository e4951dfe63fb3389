"""Test-time training data of a grid task: leave-one-out examples (arXiv 2411.07279), augmented by a specification.

An example shows all demonstrations but one and asks for its output. It is repeated under every transformation of the
self-edit's specification, applied to inputs and outputs alike.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import Field

from evaluation.common.data import Frozen
from evaluation.grids import grids
from evaluation.tasks import Expansion, Line

MOST_EXAMPLES = 250
"""Maximum number of examples per task, as in SEAL."""

Orientations = Literal["none", "mirror", "flip", "transpose", "turns", "all"]
"""`mirror`: left to right; `flip`: top to bottom; `turns`: by 90, 180 and 270 degrees; `all`: all seven others."""


class AugmentationSpec(Frozen):
    """Augmentations of a grid task's demonstrations; the `use_` fields are SEAL's (arXiv 2506.10943, section 3.2)."""

    use_basic_augmentations: bool = False
    """Turns, flips, transpose, reflections, translation."""
    use_size_augmentations: bool = False
    """Enlargements."""
    use_chain_augmentations: bool = False
    """Two transformations in a row."""
    use_repeat_augmentations: bool = False
    """Tilings."""
    orientations: Orientations = "none"
    """Additional orientations."""
    colourings: int = Field(default=0, ge=0, le=16)
    """Additional random recolourings of each example, in [0, 16]."""
    keep_background: bool = True
    """Exclude colour 0 from recolouring."""
    permute_demonstrations: bool = True
    """Shuffle the demonstrations of each example."""
    leave_out: int = Field(default=1, ge=1, le=2)
    """Demonstrations held out of an example, one of which is the question, in [1, 2]; 2 yields more examples."""


def augmentations_of(choice: Mapping[str, Any]) -> AugmentationSpec:
    """Return the augmentations of a specification, ignoring training fields; pydantic.ValidationError if invalid."""
    return AugmentationSpec(**{name: v for name, v in choice.items() if name in AugmentationSpec.model_fields})


_TWICE = grids.enlargement(2, 2)
_REFLECTED = (grids.tiling(1, 2, mirrored=True), grids.tiling(2, 1, mirrored=True))
SIZES = (_TWICE, grids.enlargement(2, 1), grids.enlargement(1, 2))
CHAINS = tuple(grids.chain(one, _TWICE) for one in (*grids.TURNS, grids.MIRROR, grids.FLIP, grids.TRANSPOSE))
REPEATS = (grids.tiling(2, 1), grids.tiling(1, 2), grids.tiling(2, 2))
CHOSEN: Mapping[str, tuple[grids.Transformation, ...]] = {
    "none": (),
    "mirror": (grids.MIRROR,),
    "flip": (grids.FLIP,),
    "transpose": (grids.TRANSPOSE,),
    "turns": grids.TURNS,
    "all": grids.ORIENTATIONS[1:],
}
"""Additional transformations by `AugmentationSpec.orientations`."""


class Example(NamedTuple):
    """A training example made of demonstrations."""

    shown: tuple[grids.GridPair, ...]
    asked: grids.GridPair


def basic(rng: random.Random) -> tuple[grids.Transformation, ...]:
    """Return SEAL's eleven basic transformations: turns, flips, four reflections, a random shift, transpose."""
    reflected = (*_REFLECTED, grids.chain(grids.MIRROR, _REFLECTED[0]), grids.chain(grids.FLIP, _REFLECTED[1]))
    return (*grids.TURNS, grids.FLIP, grids.MIRROR, *reflected, grids.random_shift(rng), grids.TRANSPOSE)


def transformations_of(spec: AugmentationSpec, rng: random.Random) -> list[grids.Transformation]:
    """Return the distinct transformations of a specification, the identity first."""
    chosen = [
        grids.IDENTITY,
        *CHOSEN[spec.orientations],
        *(basic(rng) if spec.use_basic_augmentations else ()),
        *(SIZES if spec.use_size_augmentations else ()),
        *(CHAINS if spec.use_chain_augmentations else ()),
        *(REPEATS if spec.use_repeat_augmentations else ()),
    ]
    return list(dict.fromkeys(chosen))


def most_examples(spec: AugmentationSpec, demonstrations: int) -> int:
    """Return an upper bound of the number of examples; oversized and duplicate ones are dropped later."""
    left_out = demonstrations * (1 if spec.leave_out == 1 else demonstrations)
    shown = len(transformations_of(spec, random.Random(0)))
    return min(left_out * shown * (1 + spec.colourings), MOST_EXAMPLES)


def leave_out(demonstrations: Sequence[grids.GridPair], count: int) -> Iterator[Example]:
    """Yield the leave-one-out examples, and those that leave out two if `count` is 2 and something is left to show."""
    places = range(len(demonstrations))
    for asked in places:
        others = [i for i in places if i != asked]
        yield Example(tuple(demonstrations[i] for i in others), demonstrations[asked])
        if count == 2 and len(others) > 1:
            for second in others:
                yield Example(tuple(demonstrations[i] for i in others if i != second), demonstrations[asked])


def build_examples(demonstrations: Sequence[grids.GridPair], spec: AugmentationSpec, seed: int) -> Expansion:
    """Return the distinct training examples of a task; the note counts dropped ones.

    `seed` determines shifts, colours, orders and the sample under the cap.
    """
    rng = random.Random(seed)
    keep = (0,) if spec.keep_background else ()
    made = []
    transformations = transformations_of(spec, rng)
    for example, transformation in itertools.product(leave_out(demonstrations, spec.leave_out), transformations):
        made.append(_changed(example, transformation, spec, rng))
        for _ in range(spec.colourings):
            recoloured = grids.chain(transformation, grids.random_recolouring(rng, keep=keep))
            made.append(_changed(example, recoloured, spec, rng))
    fitting = [
        example
        for example in made
        if all(
            max(len(grid), len(grid[0])) <= grids.LONGEST_SIDE
            for pair in (*example.shown, example.asked)
            for grid in (pair.input, pair.output)
        )
    ]
    queries = ((grids.write_query(example.shown, example.asked.input), example.asked.output) for example in fitting)
    lines = tuple(
        dict.fromkeys(Line(query, grids.write_grid(output), grids.output_spans(query)) for query, output in queries)
    )
    left_out = max(len(lines) - MOST_EXAMPLES, 0)
    if left_out:
        lines = tuple(lines[i] for i in sorted(rng.sample(range(len(lines)), MOST_EXAMPLES)))
    counts = {"with a grid above the largest size": len(made) - len(fitting), f"beyond {MOST_EXAMPLES}": left_out}
    dropped = ", ".join(f"{count} {why}" for why, count in counts.items() if count)
    return Expansion(lines, f"examples left out: {dropped}" if dropped else "")


def _changed(
    example: Example, transformation: grids.Transformation, spec: AugmentationSpec, rng: random.Random
) -> Example:
    def pair(given: grids.GridPair) -> grids.GridPair:
        # Not validated: oversized grids are counted and dropped later.
        return grids.GridPair.model_construct(
            input=transformation.apply(given.input), output=transformation.apply(given.output)
        )

    shown = list(map(pair, example.shown))
    if spec.permute_demonstrations:
        rng.shuffle(shown)
    return Example(tuple(shown), pair(example.asked))
