"""Pretraining of the micro-grids' models: texts, tokenizer, recipes and builds.

A student has to find the rule from pairs alone; the name of the rule before them at times lets it learn what rules do
before it can tell which one it sees. A teacher starts from the student's weights and learns in addition to name the
rule of the pairs that it read, of more families, and to write a random specification after it, all that are within the
budget being equally likely.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from evaluation.grids.grids import INPUT, OUTPUT, Grid, GridPair, write_grid, write_pairs
from evaluation.microgrids.world import (
    ADAPTED,
    BACKGROUNDS,
    FAMILIES,
    PRETRAINED,
    SPACE,
    Kind,
    draw_grid,
    draw_rule,
    draw_spec,
    kind_of,
)
from evaluation.microworld.pretraining import Batch, Shape, batch_of, build_model, tokenizer_of, train

if TYPE_CHECKING:
    import torch

GridRole = Literal["grid-student", "grid-teacher"]
GRID_ROLES: tuple[GridRole, ...] = get_args(GridRole)
"""Both come with the package."""
CONTEXT_TOKENS = 512
"""Longest text that the micro models take, in tokens."""

MUON_RATE = 0.02
"""Step size for matrices (Muon, Jordan et al. 2024). With AdamW alone, inferring a rule had not begun after as many
steps as this took to master half of the rules."""
MUON_DECAY = 0.1
"""Weight decay of matrices. Without it a model learned ever slower the longer it had been trained: after 700 steps of
inferring rules the loss was .32, and with it .16 (with twice the heads, which alone changed nothing by step 300)."""
ADAM_RATE = 3e-3
"""Step size of AdamW for embeddings and norms."""

Exercise = Literal["told", "shown", "named"]
"""`told`: the rule's name, then pairs; `shown`: pairs alone; `named`: pairs, the rule's name and a specification."""
REST = 0.03
"""Loss weight of what cannot be known, such as inputs."""
_END = 0.3
"""Loss weight of specifications and of the end of a text."""
_NAME = 4.0
"""Loss weight of the rule's name, which is a few tokens among a hundred."""
_BUDGETS = (None, 36, 72, 144)
"""Steps that a teacher's prompt may allow; the specification is random within them."""


Pieces = list[tuple[str, float]]
"""A text in pieces, each with the weight of its tokens in the loss."""


class Phase(NamedTuple):
    """A stretch of pretraining, with its own warm-up and decay of the step size."""

    steps: int
    texts: int
    """In each step."""
    pairs: tuple[int, ...]
    """Numbers of pairs, one of which all texts of a step have."""
    exercises: Mapping[Exercise, float]
    """Share of each kind."""
    families: tuple[str, ...]
    decay: float = 0.4
    """Share of the steps, at the end, over which the step size falls to 0."""
    peak: float = 1.0
    """Factor on both step sizes."""


SHAPE = Shape(hidden=64, layers=4, intermediate=192, rope_theta=200.0, heads=4)
"""0.30 million parameters. Texts are short, and with the usual base of 10,000 what the named rules do took five times
the steps to learn."""
READ = tuple(
    dict.fromkeys((*PRETRAINED, *ADAPTED, "turn-180", "flip", "shift-left", "fall-left", "repaint+shift-right"))
)
"""Families that a teacher learns to name: neighbours of those that are kept from everybody, but none of them."""


def student_stages() -> list[list[Phase]]:
    """Return the pretraining of a student, with which a teacher begins as well."""
    return [
        [Phase(500, 96, (1,), {"told": 1.0}, PRETRAINED)],
        [Phase(2000, 48, (4,), {"told": 0.2, "shown": 0.8}, PRETRAINED, decay=0.1)],
        # One pair more, as tasks have it: four are shown and one is asked for, and what is longer than any text of the
        # pretraining is read badly (.13 instead of 1.0 right).
        [Phase(500, 40, (5,), {"told": 0.1, "shown": 0.9}, PRETRAINED, decay=0.6, peak=0.5)],
    ]


def teacher_stages() -> list[list[Phase]]:
    """Return the pretraining of a teacher, after the student's."""
    return [*student_stages(), [Phase(1400, 40, (4,), {"told": 0.1, "shown": 0.1, "named": 0.8}, READ)]]


def draw_text(rng: random.Random, family: str, exercise: Exercise, pairs: int) -> Pieces:
    """Return an exercise on a random rule of a family.

    The output of the first of its `pairs` carries full loss only where the rule is told.
    """
    drawn = _draw_pairs(rng, family, pairs)
    pieces: Pieces = [(f"Rule: {family}\n", REST)] if exercise == "told" else []
    for place, pair in enumerate(drawn):
        known = place > 0 or exercise == "told"
        opening = f"{INPUT}\n{write_grid(pair.input)}\n{OUTPUT}\n"
        pieces += [(opening if place == 0 else f"\n{opening}", REST), (write_grid(pair.output), 1.0 if known else REST)]
    if exercise == "named":
        budget = rng.choice(_BUDGETS)
        pieces.append((teacher_prompt(drawn, budget).removeprefix(write_pairs(drawn)), REST))
        pieces += [(rule_name(family), _NAME), ("\n", _END), (json.dumps(draw_spec(rng, pairs, budget)), _END)]
    return pieces


def _draw_pairs(rng: random.Random, family: str, count: int) -> list[GridPair]:
    """Return pairs of a random rule, the first of which it changes."""
    rule, background = draw_rule(rng, family), rng.choice(BACKGROUNDS)
    grids: list[Grid] = []
    while len(grids) < count:
        grid = draw_grid(rng, background)
        if grids or rule.apply(grid) != grid:
            grids.append(grid)
    return [GridPair.model_construct(input=grid, output=rule.apply(grid)) for grid in grids]


def rule_name(family: str) -> str:
    """Return how a teacher names the rules of a family: the subject, then which ones, as in `places: shift-up`.

    A family that it never read has no name that it knows, but it can tell the subject all the same.
    """
    return f"{kind_of(family)}: {family}"


def teacher_prompt(pairs: Sequence[GridPair], budget: int | None) -> str:
    """Return the micro teacher's prompt for some pairs, as the template `micro-grid-spec` renders it."""
    steps = "" if budget is None else f"Steps: {budget}\n"
    return f"{write_pairs(pairs)}\n{steps}Rule: "


def draw_texts(rng: random.Random, phase: Phase) -> list[Pieces]:
    """Return the texts of one step."""
    pairs = rng.choice(phase.pairs)
    kinds, shares = list(phase.exercises), list(phase.exercises.values())
    return [
        draw_text(rng, rng.choice(phase.families), rng.choices(kinds, shares)[0], pairs) for _ in range(phase.texts)
    ]


_HEADINGS = ("Input:\n", "\nInput:\n", "\nOutput:\n", "Rule: ", "\nRule: ", "\nSteps: ")
_WORD = re.compile(r"\+|-?[a-z0-9]+")


def spec_pieces() -> list[str]:
    """Return the texts that every specification is put together from, one for each value."""
    last = len(SPACE) - 1
    return [
        f"{'{' if place == 0 else ', '}{json.dumps(name)}: {json.dumps(value)}{'}' if place == last else ''}"
        for place, (name, values) in enumerate(SPACE.items())
        for value in values
    ]


def build_tokenizer() -> Any:
    """Return the tokenizer as a `transformers.PreTrainedTokenizerFast` (about 300 tokens, deterministic).

    Each digit, line break, heading, word of a rule's name and part of a specification is a token; all else is bytes.
    """
    from tokenizers import Regex, pre_tokenizers

    rule_words = {word for family in FAMILIES for word in _WORD.findall(family)}
    kinds = {f"{kind}: " for kind in get_args(Kind)}
    pieces = sorted({*_HEADINGS, *rule_words, *kinds, *spec_pieces()}, key=lambda piece: (-len(piece), piece))
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = ["".join(part for part, _ in to_bytes.pre_tokenize_str(piece)) for piece in pieces]
    whole = Regex("|".join(re.escape(piece) for piece in pieces))
    split = pre_tokenizers.Sequence([pre_tokenizers.Split(whole, "isolated"), to_bytes])
    return tokenizer_of(words, split, CONTEXT_TOKENS)


def optimizers_of(model: Any) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices between embedding and head, and AdamW for the rest."""
    import torch

    inner = {name: p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name}
    rest = [p for name, p in model.named_parameters() if name not in inner]
    return [
        torch.optim.Muon(list(inner.values()), lr=MUON_RATE, weight_decay=MUON_DECAY, momentum=0.95),
        torch.optim.AdamW(rest, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def pretrain(model: Any, tokenizer: Any, phases: Sequence[Phase], seed: int, *, report: Callable[[str], None]) -> None:
    """Train a micro Llama in place through `phases`, each of which draws texts of its own by `seed`."""

    def steps() -> Iterator[tuple[float, list[Batch]]]:
        for number, phase in enumerate(phases, start=1):
            rng = random.Random(f"micro-grids:pretraining:{seed}:{number}")
            for step in range(phase.steps):
                # Up over 30 steps, level, and down to 0 at the end.
                left = (phase.steps - step) / max(1.0, phase.decay * phase.steps)
                factor = phase.peak * min(1.0, (step + 1) / 30, left)
                yield factor, [batch_of(draw_texts(rng, phase), tokenizer, _END)]

    train(model, optimizers_of(model), steps(), sum(phase.steps for phase in phases), report)


def renew_unseen(model: Any, tokenizer: Any, phases: Iterable[Phase], seed: int) -> None:
    """Give new embeddings, drawn by `seed`, to the tokens that no text of some phases has, in place.

    A token that never comes is made less likely at every step, so that after thousands of them all such tokens have
    embeddings in one direction. The shipped teacher began from new ones; how much that matters was not measured.
    """
    import torch

    rng = random.Random(f"micro-grids:unseen:{seed}")
    seen = {0}
    for phase in phases:
        for _ in range(20):
            seen.update(batch_of(draw_texts(rng, phase), tokenizer).ids.flatten().tolist())
    weight = model.get_input_embeddings().weight
    unseen = [i for i in range(len(weight)) if i not in seen]
    fresh = torch.empty(len(unseen), weight.shape[1])
    fresh.normal_(0.0, model.config.initializer_range, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        weight[unseen] = fresh


def build_one(role: GridRole, out: Path, seed: int) -> Path:
    """Pretrain one model, save it under `out / role` and return that directory; both models share the student's stages.

    See `evaluation.microworld.pretraining.build_model`.
    """
    tokenizer = build_tokenizer()
    stages = teacher_stages() if role == "grid-teacher" else student_stages()

    def train_stage(model: Any, number: int, report: Callable[[str], None]) -> None:
        phases = stages[number - 1]
        if number > 1 and any("named" in phase.exercises for phase in phases):
            renew_unseen(model, tokenizer, itertools.chain(*stages[: number - 1]), seed)
        pretrain(model, tokenizer, phases, seed * 1000 + number, report=report)

    return build_model(out / role, tokenizer, SHAPE, seed, stages, train_stage)
