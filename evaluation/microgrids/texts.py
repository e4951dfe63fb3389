"""What the micro-grids' models are pretrained on: pairs in a row, with the name of the rule before or after, or not.

A student has to find the rule from pairs alone; being told the name of the rule at times lets it learn what rules do
before it can tell which one it sees. A teacher learns in addition to name the rule of what it read, and to write a
random specification after it, all that are within the budget being equally likely.
"""

from __future__ import annotations

import random
from typing import Literal, NamedTuple

from evaluation.grids.tasks import Grid, GridPair
from evaluation.grids.text import INPUT, OUTPUT, write_grid, write_pairs
from evaluation.microgrids.rules import draw_grid, draw_rule, kind_of
from evaluation.microgrids.specs import draw_spec
from evaluation.microgrids.world import BACKGROUNDS
from evaluation.tasks import Document
from teacher.prompts import prompt_template
from teacher.spec_space import write_spec

Exercise = Literal["told", "shown", "named"]
"""`told`: the rule's name, then pairs; `shown`: pairs alone; `named`: pairs, the rule's name and a specification."""

REST = 0.03
"""Weight of what cannot be known, such as inputs."""
_END = 0.3
_NAME = 4.0
"""Weight of the rule's name, which is a few tokens among a hundred."""
_BUDGETS = (None, 36, 72, 144)
"""Steps that a teacher's prompt may allow; what it writes is random within them."""


class GridText(NamedTuple):
    """A text in pieces, each with the weight of its tokens in the loss."""

    pieces: tuple[tuple[str, float], ...]
    family: str
    exercise: Exercise


def draw_text(rng: random.Random, family: str, exercise: Exercise, pairs: int) -> GridText:
    """Return an exercise on a random rule of a family.

    Args:
        rng: Makes all choices.
        family: Of the rule.
        exercise: What is given and what is asked.
        pairs: Shown, at least 1; the output of the first one carries loss only where the rule is told.
    """
    drawn = _draw_pairs(rng, family, pairs)
    pieces: list[tuple[str, float]] = [(f"Rule: {family}\n", REST)] if exercise == "told" else []
    for place, pair in enumerate(drawn):
        known = place > 0 or exercise == "told"
        opening = f"{INPUT}\n{write_grid(pair.input)}\n{OUTPUT}\n"
        pieces += [(opening if place == 0 else f"\n{opening}", REST), (write_grid(pair.output), 1.0 if known else REST)]
    if exercise == "named":
        budget = rng.choice(_BUDGETS)
        prompt = teacher_prompt(drawn, budget)
        pieces.append((prompt.removeprefix(write_pairs(drawn)), REST))
        pieces += [(rule_name(family), _NAME), ("\n", _END), (write_spec(draw_spec(rng, pairs, budget)), _END)]
    return GridText(tuple(pieces), family, exercise)


def rule_name(family: str) -> str:
    """Return how a teacher names the rules of a family: what they are about, then which ones, as in `places: shift-up`.

    A family that it never read has no name that it knows, but what its rules are about it can tell all the same.
    """
    return f"{kind_of(family)}: {family}"


def teacher_prompt(pairs: list[GridPair], budget: int | None) -> str:
    """Return the micro teacher's prompt for some pairs."""
    document = Document(id="pairs", text=write_pairs(pairs))
    return prompt_template("micro-grid-spec").render(document, budget)


def _draw_pairs(rng: random.Random, family: str, count: int) -> list[GridPair]:
    """Return pairs of a random rule, the first of which it changes."""
    rule, background = draw_rule(rng, family), rng.choice(BACKGROUNDS)
    grids: list[Grid] = []
    while len(grids) < count:
        grid = draw_grid(rng, background)
        if grids or rule.apply(grid) != grid:
            grids.append(grid)
    return [GridPair.model_construct(input=grid, output=rule.apply(grid)) for grid in grids]
