"""The micro-world's models: tokenizer, batches, recipes and builds. Two of them ship with the package.

Each stage has its own warm-up and decay, and is saved when it ends, so that a killed build goes on with the next one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from evaluation.microworld.pretraining import Batch, Shape, batch_of, build_model, sharpen, tokenizer_of, train
from evaluation.microworld.texts import (
    Text,
    bound_values,
    repeated_words,
    student_lines,
    student_readings,
    teacher_edits,
)
from evaluation.microworld.world import ATTRIBUTES, FILLERS, NAME_PARTS, OPENINGS, VALUES, Pool

if TYPE_CHECKING:
    from torch import Tensor

Role = Literal["student", "teacher", "small-student"]
ROLES: tuple[Role, ...] = get_args(Role)
SHIPPED: tuple[Role, ...] = ("student", "teacher")
"""Those that come with the package."""
CONTEXT_TOKENS = 1024
"""Longest text that the micro models take, in tokens."""
CONTENT_WEIGHT = 4.0
"""Weight of name and value tokens in the loss: they are a tenth of the tokens and nearly all of the information."""
LEARNING_RATE = 2e-3
"""Peak step size of AdamW. Copying formed after 350 steps with it; Muon at 0.02 and 0.05 had not formed it by 450."""
TEACHER_SHARPNESS = 1.5
"""Factor on the pretrained teacher's logits. However long it is trained, a tenth and more of its bets stay on names
that the passage does not have (170 first names share 128 dimensions), and unsharpened sampling breaks each seventh
line. Sharpened, it can be sampled at temperature 1, where its learning is on-policy."""
SHAPES: dict[Role, Shape] = {
    "student": Shape(hidden=128, layers=4, intermediate=384),
    "teacher": Shape(hidden=128, layers=4, intermediate=384),
    "small-student": Shape(hidden=96, layers=3, intermediate=288),
}
"""0.97 million parameters each, and 0.47 of the small one, another student to which rewards are transferred. At 96
dimensions a student learned facts, but never to read an answer from a passage."""
LONG_EDITS = (8, 14)
"""Fewest and most lines of an edit while binding is learned: a passage costs the same however much is asked of it."""
_LATER = 1_000_000
"""Added to the seed of a later stage's texts, so that it sees new ones."""
_FRAME = (
    "Passage: x\nImplications:\n- x\nRewritten passages:\n- x\nQuestions and answers:\n"
    "- Question: x\nAnswer: x Answer: x"
)
"""All the words that prompts put around passages, questions and answers."""


def build_tokenizer() -> Any:
    """Return the tokenizer as a `transformers.PreTrainedTokenizerFast` (about 1,100 tokens, deterministic)."""
    from tokenizers import pre_tokenizers

    # The prefix space makes a name the same token at the start of a text as in the middle of it.
    split = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)
    words = {piece for text in _world_texts() for piece, _ in split.pre_tokenize_str(text)}
    return tokenizer_of(sorted(words), split, CONTEXT_TOKENS)


def _world_texts() -> list[str]:
    """Return texts in which every word of the world occurs in every position that it can take."""
    sentences = [_FRAME, *FILLERS, *itertools.chain(*OPENINGS.values())]
    for attributes in ATTRIBUTES.values():
        for forms in attributes.values():
            sentences += [*forms.passage, *forms.statements, forms.anonymous, *forms.questions]
    texts = [text.format(name="x", value="x") if "{" in text else text for text in sentences]
    words = [*itertools.chain(*VALUES.values()), *itertools.chain(*itertools.chain(*NAME_PARTS.values()))]
    return texts + [f"- {text}" for text in texts] + words


def content_tokens(tokenizer: Any) -> Tensor:
    """Return a mask (V,) of the tokens that are names or values."""
    import torch

    words = itertools.chain(*VALUES.values(), *(part for parts in NAME_PARTS.values() for part in parts))
    content = torch.zeros(len(tokenizer), dtype=torch.bool)
    content[tokenizer.convert_tokens_to_ids([f"Ġ{word}" for word in words])] = True
    return content


def batch_of_texts(
    texts: Sequence[Text],
    tokenizer: Any,
    content: Tensor,
    content_weight: float = CONTENT_WEIGHT,
    choice_weight: float = 0.0,
) -> Batch:
    """Return the batch of texts: weight 0 on what is given, 1 on what is learned, `content_weight` on its content."""
    import torch

    plain = batch_of([((text.given, 0.0), (text.learned, 1.0)) for text in texts], tokenizer)
    weights = plain.weights * torch.where(content[plain.ids], content_weight, 1.0)
    return Batch(plain.ids, weights, content, choice_weight)


class Phase(NamedTuple):
    """A stretch of pretraining: streams with the number of texts that each gives to a step."""

    steps: int
    streams: tuple[tuple[Iterator[Text], int], ...]
    content_weight: float = CONTENT_WEIGHT
    """Weight of name and value tokens. Above 1 it tilts what is written where a name and another word may both come, so
    a phase that teaches how often each kind of line is written takes 1."""
    choice_weight: float = 0.0
    """Weight of which name or value is written, given that one is; see `Batch.choice_weight`."""


def pretrain(model: Any, tokenizer: Any, phases: Sequence[Phase], *, report: Callable[[str], None]) -> None:
    """Train a micro Llama in place through `phases`, with warm-up over 50 steps and decay over the last 40 %."""
    import torch

    content, total = content_tokens(tokenizer), sum(phase.steps for phase in phases)

    def batch(stream: Iterator[Text], count: int, phase: Phase) -> Batch:
        texts = list(itertools.islice(stream, count))
        return batch_of_texts(texts, tokenizer, content, phase.content_weight, phase.choice_weight)

    def steps() -> Iterator[tuple[float, list[Batch]]]:
        each = (phase for phase in phases for _ in range(phase.steps))
        for step, phase in enumerate(each):
            factor = min(1.0, (step + 1) / 50, (total - step) / (0.4 * total))
            yield factor, [batch(stream, count, phase) for stream, count in phase.streams]

    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    train(model, [optimizer], steps(), total, report)


def _looking_up(seed: int, pool: Pool) -> list[Phase]:
    """Return the phases that both models begin with: copying, then looking values up by name."""
    copying = repeated_words(seed)

    def binding(largest: int, attributes: int) -> tuple[Iterator[Text], int]:
        return bound_values(seed, pool, largest=largest, attributes=attributes), 40

    return [
        Phase(220, ((copying, 64),)),
        Phase(150, (binding(2, 1),)),
        Phase(250, (binding(4, 1),)),
        Phase(250, (binding(4, 2), (copying, 4))),
    ]


def _facts(seed: int, steps: int) -> Phase:
    return Phase(
        steps, ((student_lines(seed), 200), (student_readings(seed, questions=8), 8), (repeated_words(seed), 4))
    )


def stages(role: Role, seed: int) -> list[list[Phase]]:
    """Return a model's pretraining.

    The student learns to look up, then facts, with passages to be questioned on beside them. The small one learns facts
    alone: reading never formed at its size, and the exercises in it took half of each step (of the entities that it
    only saw in prose it answered .74 instead of .89). The teacher learns to look up, true edits, then useful and
    useless lines mixed. In the mixture it has to spread its bets over the passage's names without leaving any on other
    names: plain likelihood alone left 13 to 20 % there; the last stage gives that choice a weight of its own.
    """
    if role == "student":
        return [[*_looking_up(seed, "context"), _facts(seed, 1900)], [_facts(seed + _LATER, 1000)]]
    if role == "small-student":
        counts = ((seed, 3400), (seed + _LATER, 1600))
        return [[Phase(steps, ((student_lines(of), 240),))] for of, steps in counts]
    copying, mixed = repeated_words(seed), teacher_edits(seed, clean=False)
    return [
        [
            *_looking_up(seed, "teacher"),
            Phase(700, ((teacher_edits(seed, clean=True, length=LONG_EDITS), 16), (copying, 4))),
            Phase(1500, ((mixed, 24),), content_weight=1.0),
        ],
        [Phase(900, ((teacher_edits(seed + _LATER, clean=False), 24),), content_weight=1.0, choice_weight=4.0)],
    ]


def build_one(role: Role, out: Path, seed: int) -> Path:
    """Pretrain one micro model, save it under `out / role` and return that directory; see `build_model`."""
    tokenizer, planned = build_tokenizer(), stages(role, seed)

    def train_stage(model: Any, number: int, report: Callable[[str], None]) -> None:
        pretrain(model, tokenizer, planned[number - 1], report=report)
        if role == "teacher" and number == len(planned):
            sharpen(model, TEACHER_SHARPNESS)

    described = [(role, [(p.steps, [count for _, count in p.streams], *p[2:]) for p in stage]) for stage in planned]
    return build_model(out / role, tokenizer, SHAPES[role], seed, described, train_stage)
