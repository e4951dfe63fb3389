"""The micro-grids' models: texts, tokenizer, and pretraining stages; tests check what they can do.

A student learns to infer the rule from pairs, first with the rule's name given. A teacher starts from the student's
weights and learns to name the rule of the pairs, of more families, and then to write a specification, uniformly among
those within the budget.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from evaluation.grids.grids import INPUT, OUTPUT, Grid, GridPair, write_grid, write_pairs
from evaluation.microgrids import world
from evaluation.microworld.pretraining import Batch, Shape, batch_of, new_model, save, tokenizer_of, train

GridRole = Literal["grid-student", "grid-teacher"]
GRID_ROLES: tuple[GridRole, ...] = get_args(GridRole)
CONTEXT_TOKENS = 512
"""Context length of the micro models, in tokens."""

MUON_RATE = 0.02
"""Learning rate of matrices (Muon, Jordan et al. 2024); with AdamW alone no rule inference emerged."""
MUON_DECAY = 0.1
"""Weight decay of matrices; it halved the loss of rule inference after 700 steps (.32 to .16)."""
ADAM_RATE = 3e-3
"""Learning rate of AdamW for embeddings and norms."""

Exercise = Literal["given", "inferred", "named"]
"""`given`: the rule's name, then pairs; `inferred`: pairs only; `named`: pairs, the rule's name and a specification."""
REST = 0.03
"""Loss weight of unpredictable tokens, such as inputs."""
_END = 0.3
"""Loss weight of specifications and of `eos`."""
_NAME = 4.0
"""Loss weight of the rule's name, a few tokens among a hundred."""
_BUDGETS = (None, 36, 72, 144)
"""Step budgets in the teacher's prompts."""

Pieces = list[tuple[str, float]]
"""A text in pieces, each with the loss weight of its tokens."""


class Phase(NamedTuple):
    """A phase of pretraining with its own warm-up and decay of the learning rate."""

    steps: int
    texts: int
    """Per step."""
    pairs: tuple[int, ...]
    """Numbers of pairs; each step draws one for all its texts."""
    exercises: Mapping[Exercise, float]
    """Shares."""
    families: tuple[str, ...]
    decay: float = 0.4
    """Share of the steps, at the end, over which the learning rate decays to 0."""
    peak: float = 1.0
    """Factor on both learning rates."""


SHAPE = Shape(hidden=64, layers=4, intermediate=192, rope_theta=200.0, heads=4)
"""0.30 million parameters; with a RoPE base of 10,000 the rules took five times the steps to learn."""
READ = tuple(
    dict.fromkeys(
        (*world.PRETRAINED, *world.ADAPTED, "turn-180", "flip", "shift-left", "fall-left", "repaint+shift-right")
    )
)
"""Families that a teacher learns to name, none of them `UNSEEN`."""


def stages(role: GridRole) -> list[list[Phase]]:
    """Return the pretraining of a model; the teacher's begins with the student's."""
    student = [
        [Phase(500, 96, (1,), {"given": 1.0}, world.PRETRAINED)],
        [Phase(2000, 48, (4,), {"given": 0.2, "inferred": 0.8}, world.PRETRAINED, decay=0.1)],
        # Five pairs, the length of a task's query: on texts longer than in pretraining accuracy was .13 instead of 1.0.
        [Phase(500, 40, (5,), {"given": 0.1, "inferred": 0.9}, world.PRETRAINED, decay=0.6, peak=0.5)],
    ]
    teacher = [Phase(1400, 40, (4,), {"given": 0.1, "inferred": 0.1, "named": 0.8}, READ)]
    return student if role == "grid-student" else [*student, teacher]


def draw_text(rng: random.Random, family: str, exercise: Exercise, pairs: int) -> Pieces:
    """Return an exercise on a random rule; the first output has full loss weight only if the rule is given."""
    rule, background = world.draw_rule(rng, family), rng.choice(world.BACKGROUNDS)
    grids: list[Grid] = []
    while len(grids) < pairs:
        grid = world.draw_grid(rng, background)
        if grids or rule.apply(grid) != grid:  # the first pair shows a change
            grids.append(grid)
    drawn = [GridPair.model_construct(input=grid, output=rule.apply(grid)) for grid in grids]
    pieces: Pieces = [(f"Rule: {family}\n", REST)] if exercise == "given" else []
    for place, pair in enumerate(drawn):
        known = place > 0 or exercise == "given"
        opening = f"{INPUT}\n{write_grid(pair.input)}\n{OUTPUT}\n"
        pieces += [(opening if place == 0 else f"\n{opening}", REST), (write_grid(pair.output), 1.0 if known else REST)]
    if exercise == "named":
        budget = rng.choice(_BUDGETS)
        pieces.append((teacher_prompt(drawn, budget).removeprefix(write_pairs(drawn)), REST))
        pieces += [(rule_name(family), _NAME), ("\n", _END), (json.dumps(world.draw_spec(rng, pairs, budget)), _END)]
    return pieces


def rule_name(family: str) -> str:
    """Return a teacher's name of a family, such as `places: shift-up`; of unseen families it can infer the subject."""
    return f"{world.kind_of(family)}: {family}"


def teacher_prompt(pairs: Sequence[GridPair], budget: int | None) -> str:
    """Return the micro teacher's prompt, as rendered by the template `micro-grid-spec`."""
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


def build_tokenizer() -> Any:
    """Return the `PreTrainedTokenizerFast` of the micro-grids (about 300 tokens, deterministic).

    Digits, line breaks, headings, words of rule names and pieces of specifications are tokens; other text is bytes.
    """
    from tokenizers import Regex, pre_tokenizers

    rule_words = {word for family in world.FAMILIES for word in _WORD.findall(family)}
    kinds = {f"{kind}: " for kind in get_args(world.Kind)}
    last = len(world.SPACE) - 1
    choices = {  # one piece per value of each field
        f"{'{' if place == 0 else ', '}{json.dumps(name)}: {json.dumps(value)}{'}' if place == last else ''}"
        for place, (name, values) in enumerate(world.SPACE.items())
        for value in values
    }
    pieces = sorted({*_HEADINGS, *rule_words, *kinds, *choices}, key=lambda piece: (-len(piece), piece))
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = ["".join(part for part, _ in to_bytes.pre_tokenize_str(piece)) for piece in pieces]
    whole = Regex("|".join(re.escape(piece) for piece in pieces))
    split = pre_tokenizers.Sequence([pre_tokenizers.Split(whole, "isolated"), to_bytes])
    return tokenizer_of(words, split, CONTEXT_TOKENS)


def pretrain(model: Any, tokenizer: Any, phases: Sequence[Phase], seed: int, *, report: Callable[[str], None]) -> None:
    """Train a micro Llama in place; `seed` and a phase's number determine its texts."""
    import torch

    # Muon for the matrices between embedding and head, AdamW for the rest.
    inner = {name: p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name}
    rest = [p for name, p in model.named_parameters() if name not in inner]
    optimizers = [
        torch.optim.Muon(list(inner.values()), lr=MUON_RATE, weight_decay=MUON_DECAY, momentum=0.95),
        torch.optim.AdamW(rest, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]

    def steps() -> Iterator[tuple[float, list[Batch]]]:
        for number, phase in enumerate(phases, start=1):
            rng = random.Random(f"micro-grids:pretraining:{seed}:{number}")
            for step in range(phase.steps):
                # Linear warm-up over 30 steps, constant, linear decay to 0.
                left = (phase.steps - step) / max(1.0, phase.decay * phase.steps)
                factor = phase.peak * min(1.0, (step + 1) / 30, left)
                yield factor, [batch_of(draw_texts(rng, phase), tokenizer, _END)]

    train(model, optimizers, steps(), sum(phase.steps for phase in phases), report)


def renew_unseen(model: Any, tokenizer: Any, phases: Iterable[Phase], seed: int) -> None:
    """Reinitialise, in place, the embeddings of tokens that do not occur in `phases`.

    Training pushes all absent tokens in one direction; the effect on the teacher was not measured.
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
    """Pretrain one model on one thread, save it in `out / role` and return that directory."""
    import torch

    torch.set_num_threads(1)
    tokenizer, planned = build_tokenizer(), stages(role)
    model = new_model(SHAPE, tokenizer, seed)
    for number, phases in enumerate(planned, start=1):
        if number > 1 and any("named" in phase.exercises for phase in phases):
            renew_unseen(model, tokenizer, itertools.chain(*planned[: number - 1]), seed)
        pretrain(model, tokenizer, phases, seed * 1000 + number, report=partial(print, role, flush=True))
    return save(model, tokenizer, out / role)
