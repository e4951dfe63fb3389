"""Pretraining of micro models: Llama, tokenizer and weighted loss for both worlds; then the micro-world's stages.

Tests check what the models can do.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from evaluation.microworld import world
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
    from torch.optim import Optimizer

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")
_REPORT_EVERY = 100


class Shape(NamedTuple):
    """Size of a micro Llama; heads have 32 dimensions, the minimum of vLLM's CPU attention."""

    hidden: int
    layers: int
    intermediate: int
    rope_theta: float = 10_000.0
    heads: int | None = None
    """Attention heads per layer; None is `hidden // 32`."""


class Batch(NamedTuple):
    """Right-padded training texts."""

    ids: Tensor
    """(N, T) token ids."""
    weights: Tensor
    """(N, T) loss weight of each token as a target."""
    choices: Tensor | None = None
    """(V,) mask of tokens, such as names and values."""
    choice_weight: float = 0.0
    """Weight of a second loss term: the likelihood of a target given that it is one of `choices`, which sharpens which
    name is written and not how often one is."""


def batch_of(texts: Sequence[Sequence[tuple[str, float]]], tokenizer: Any, end: float = 1.0) -> Batch:
    """Return texts, given as pieces with a token weight each, as a batch with `bos` and an `eos` of weight `end`."""
    import torch

    bos, eos, pad = (getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad"))
    pieces = [piece for text in texts for piece, _ in text]
    encoded = iter(tokenizer.backend_tokenizer.encode_batch(pieces, add_special_tokens=False))
    rows = [[(bos, 0.0), *((i, weight) for _, weight in text for i in next(encoded).ids), (eos, end)] for text in texts]
    width = max(map(len, rows))
    padded = [row + [(pad, 0.0)] * (width - len(row)) for row in rows]
    ids, weights = (torch.tensor([[pair[column] for pair in row] for row in padded]) for column in (0, 1))
    return Batch(ids, weights)


def tokenizer_of(words: Sequence[str], split: Any, context: int) -> Any:
    """Return a byte-level tokenizer with a fixed word list: `ignore_merges` (as in Llama 3), bytes for all other text.

    The pre-tokenizer `split` splits text into `words`, which are in byte-level form and in the order of their ids;
    `context` is the maximum length in tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = set(alphabet)
    tokens = [*SPECIAL_TOKENS, *alphabet, *(word for word in words if word not in known)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    pad, bos, eos = SPECIAL_TOKENS
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, vocabulary[bos])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        model_max_length=context,
        padding_side="right",
    )


def new_model(shape: Shape, tokenizer: Any, seed: int) -> Any:
    """Return a randomly initialised `LlamaForCausalLM` with tied embeddings."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads or shape.hidden // 32,
        num_key_value_heads=shape.heads or shape.hidden // 32,
        head_dim=32,
        max_position_embeddings=tokenizer.model_max_length,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def weighted_loss(model: Any, batch: Batch) -> Tensor:
    """Return the weighted mean negative log-likelihood of the target tokens, a scalar."""
    import torch

    # Right padding needs no mask under causal attention, and PyTorch's kernel is faster without one.
    hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state[:, :-1]
    weights = batch.weights[:, 1:]
    learned = weights > 0
    logits, targets, of_token = model.lm_head(hidden[learned]), batch.ids[:, 1:][learned], weights[learned]
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    total, whole = (losses * of_token).sum(), of_token.sum()
    if batch.choices is not None and batch.choice_weight > 0:
        chosen = batch.choices[targets]
        among = logits[chosen].masked_fill(~batch.choices, float("-inf"))
        loss = torch.nn.functional.cross_entropy(among, targets[chosen], reduction="sum")
        total = total + batch.choice_weight * loss
        whole = whole + batch.choice_weight * chosen.sum()
    return total / whole


def train(
    model: Any,
    optimizers: Sequence[Optimizer],
    steps: Iterator[tuple[float, list[Batch]]],
    total: int,
    report: Callable[[str], None],
) -> None:
    """Train a micro Llama in float32 in place.

    `optimizers` have their peak learning rates; each of the `total` `steps` is a learning-rate factor with batches,
    whose gradients are summed. `report` receives a progress line every 100 steps.
    """
    import torch

    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    model.train()
    started, losses = time.perf_counter(), []
    for step, (factor, batches) in enumerate(steps, start=1):
        for batch in batches:
            loss = weighted_loss(model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if step % _REPORT_EVERY == 0:
            seconds = time.perf_counter() - started
            report(f"step {step}/{total}  loss {sum(losses) / len(losses):.3f}  {seconds:.0f} s")
            losses = []
    model.eval()


def sharpen(model: Any, factor: float) -> None:
    """Multiply all logits by `factor` > 0, in place in the last norm's weight: a temperature of 1 / factor."""
    import torch

    with torch.no_grad():
        model.model.norm.weight.mul_(factor)


def save(model: Any, tokenizer: Any, directory: Path) -> Path:
    """Save a model with its tokenizer, and return the directory."""
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


# The micro-world

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
