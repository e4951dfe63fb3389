"""Pretraining of micro models for both embedded worlds: Llama, tokenizer, weighted loss."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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
