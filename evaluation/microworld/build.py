"""The micro-world's models: tokenizer, batches, and pretraining stages; tests check what they can do."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from evaluation.microworld import world
from evaluation.microworld.pretraining import Batch, Shape, batch_of, new_model, save, sharpen, tokenizer_of, train
from evaluation.microworld.texts import (
    Text,
    bound_values,
    repeated_words,
    student_lines,
    student_readings,
    teacher_edits,
)

if TYPE_CHECKING:
    from torch import Tensor

Role = Literal["student", "teacher", "small-student"]
CONTEXT_TOKENS = 1024
"""Context length of the micro models, in tokens."""
CONTENT_WEIGHT = 4.0
"""Loss weight of name and value tokens: a tenth of the tokens, nearly all of the information."""
LEARNING_RATE = 2e-3
"""Peak learning rate of AdamW; copying emerged after 350 steps (with Muon at 0.02 or 0.05 not within 450)."""
TEACHER_SHARPNESS = 1.5
"""Factor on the pretrained teacher's logits, so that it can be sampled on-policy at temperature 1: unsharpened, over a
tenth of the probability mass stays on names absent from the passage and every seventh sampled line is broken."""
SHAPES: dict[Role, Shape] = {
    "student": Shape(hidden=128, layers=4, intermediate=384),
    "teacher": Shape(hidden=128, layers=4, intermediate=384),
    "small-student": Shape(hidden=96, layers=3, intermediate=288),
}
"""0.97 million parameters each; 0.47 million for the small student, which tests transfer of rewards to another student.
With 96 dimensions a student learned facts, but never reading comprehension."""
LONG_EDITS = (8, 14)
"""Minimum and maximum lines per edit while binding is learned."""
_LATER = 1_000_000
"""Seed offset of the second stage's texts."""
_FRAME = (
    "Passage: x\nImplications:\n- x\nRewritten passages:\n- x\nQuestions and answers:\n"
    "- Question: x\nAnswer: x Answer: x"
)
"""Every word of the prompt templates."""


def build_tokenizer() -> Any:
    """Return the `PreTrainedTokenizerFast` of the micro-world (about 1,100 tokens, deterministic)."""
    from tokenizers import pre_tokenizers

    # With the prefix space, a name is the same token at the start and in the middle of a text.
    split = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)
    words = {piece for text in _world_texts() for piece, _ in split.pre_tokenize_str(text)}
    return tokenizer_of(sorted(words), split, CONTEXT_TOKENS)


def _world_texts() -> list[str]:
    """Return texts that contain every word of the world in every possible position."""
    sentences = [_FRAME, *world.FILLERS, *itertools.chain(*world.OPENINGS.values())]
    for attributes in world.ATTRIBUTES.values():
        for forms in attributes.values():
            sentences += [*forms.passage, *forms.statements, forms.anonymous, *forms.questions]
    texts = [text.format(name="x", value="x") if "{" in text else text for text in sentences]
    return [*texts, *(f"- {text}" for text in texts), *world.WORDS]


def content_tokens(tokenizer: Any) -> Tensor:
    """Return the mask (V,) of name and value tokens."""
    import torch

    content = torch.zeros(len(tokenizer), dtype=torch.bool)
    content[tokenizer.convert_tokens_to_ids([f"Ġ{word}" for word in world.WORDS])] = True
    return content


def batch_of_texts(
    texts: Sequence[Text],
    tokenizer: Any,
    content: Tensor,
    content_weight: float = CONTENT_WEIGHT,
    choice_weight: float = 0.0,
) -> Batch:
    """Return a batch with loss weight 0 on the context, 1 on the target, `content_weight` on its names and values."""
    import torch

    plain = batch_of([((text.given, 0.0), (text.learned, 1.0)) for text in texts], tokenizer)
    weights = plain.weights * torch.where(content[plain.ids], content_weight, 1.0)
    return Batch(plain.ids, weights, content, choice_weight)


class Phase(NamedTuple):
    """A phase of pretraining: text streams, each with its number of texts per step."""

    steps: int
    streams: tuple[tuple[Iterator[Text], int], ...]
    content_weight: float = CONTENT_WEIGHT
    """Loss weight of name and value tokens; above 1 it biases the frequencies of the kinds of line."""
    choice_weight: float = 0.0
    """See `Batch.choice_weight`."""


def pretrain(model: Any, tokenizer: Any, phases: Sequence[Phase], *, report: Callable[[str], None]) -> None:
    """Train a micro Llama in place; linear warm-up over 50 steps, linear decay over the last 40 %."""
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


def _looking_up(seed: int, pool: world.Pool) -> list[Phase]:
    """Return the first phases of both models: copying, then looking up values by name."""
    copying = repeated_words(seed)

    def binding(largest: int, attributes: int) -> tuple[Iterator[Text], int]:
        return bound_values(seed, pool, largest=largest, attributes=attributes), 40

    return [
        Phase(220, ((copying, 64),)),
        Phase(150, (binding(2, 1),)),
        Phase(250, (binding(4, 1),)),
        Phase(250, (binding(4, 2), (copying, 4))),
    ]


def stages(role: Role, seed: int) -> list[list[Phase]]:
    """Return the pretraining of a model.

    The student learns look-up, then facts and reading comprehension; the small student facts alone (reading exercises
    lowered its accuracy on prose-only entities from .89 to .74). The teacher learns look-up, true edits, then a mixture
    of useful and useless lines; plain likelihood left 13 to 20 % of the mass on names absent from the passage, hence
    the last stage's choice weight.
    """

    def facts(seed: int, steps: int) -> Phase:
        readings = student_readings(seed, questions=8)
        return Phase(steps, ((student_lines(seed), 200), (readings, 8), (repeated_words(seed), 4)))

    if role == "student":
        return [[*_looking_up(seed, "context"), facts(seed, 1900)], [facts(seed + _LATER, 1000)]]
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
    """Pretrain one micro model on one thread, save it in `out / role` and return that directory.

    A seed fixes texts and initial weights; rounding may differ between processors.
    """
    import torch

    torch.set_num_threads(1)
    tokenizer = build_tokenizer()
    model = new_model(SHAPES[role], tokenizer, seed)
    for phases in stages(role, seed):
        pretrain(model, tokenizer, phases, report=partial(print, role, flush=True))
    if role == "teacher":
        sharpen(model, TEACHER_SHARPNESS)
    return save(model, tokenizer, out / role)
