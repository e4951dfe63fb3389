"""Pretraining of a micro model: a standard Llama, AdamW, weighted next-token loss."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from evaluation.microworld.corpora import Text
from evaluation.microworld.vocabulary import NAME_PARTS, VALUES

CONTENT_WEIGHT = 4.0
"""Weight of name and value tokens in the loss: they are a tenth of the tokens and nearly all of the information."""

LEARNING_RATE = 2e-3
"""Peak step size of AdamW. Copying formed after 350 steps with it; Muon at 0.02 and 0.05 had not formed it by 450."""


class Shape(NamedTuple):
    """Size of a micro Llama; heads have 32 dimensions, the smallest that vLLM's CPU attention takes."""

    hidden: int
    layers: int
    intermediate: int
    rope_theta: float = 10_000.0
    """Base of the rotary positions: the lower, the more of the frequencies tell nearby places apart."""
    heads: int | None = None
    """Attention heads of each layer; None is as many as fit into `hidden`."""


class Batch(NamedTuple):
    """Padded token ids `(N, T)`, attention mask `(N, T)`, and loss weight of each token as a target `(N, T)`."""

    ids: Tensor
    mask: Tensor
    weights: Tensor


def new_model(shape: Shape, tokenizer: Any, seed: int) -> Any:
    """Return a randomly initialised `LlamaForCausalLM` with tied embeddings."""
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


def content_tokens(tokenizer: Any) -> Tensor:
    """Return a mask `(V,)` of the tokens that are names or values."""
    words = itertools.chain(*VALUES.values(), *(part for parts in NAME_PARTS.values() for part in parts))
    ids = tokenizer.convert_tokens_to_ids([f"Ġ{word}" for word in words])
    content = torch.zeros(len(tokenizer), dtype=torch.bool)
    content[ids] = True
    return content


class Batcher:
    """Turns texts into padded batches with loss weights."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.content = content_tokens(tokenizer)
        """(V,) mask of names and values."""

    def __call__(self, texts: Sequence[Text], content_weight: float = CONTENT_WEIGHT) -> Batch:
        """Return the batch of `texts`: `bos`, what is given (weight 0), what is learned and `eos`.

        Args:
            texts: At least one.
            content_weight: Weight of names and values among what is learned; other tokens weigh 1.
        """
        bos, eos, pad = (getattr(self._tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad"))
        encode = self._tokenizer.backend_tokenizer.encode_batch
        given = [e.ids for e in encode([t.given for t in texts], add_special_tokens=False)]
        learned = [e.ids for e in encode([t.learned for t in texts], add_special_tokens=False)]
        rows = [[bos, *g, *w, eos] for g, w in zip(given, learned, strict=True)]
        length = max(map(len, rows))
        ids = torch.tensor([row + [pad] * (length - len(row)) for row in rows])
        columns = torch.arange(length)
        first = torch.tensor([1 + len(g) for g in given])[:, None]
        last = torch.tensor([len(row) for row in rows])[:, None]
        weights = ((columns >= first) & (columns < last)).float()
        weights = weights * torch.where(self.content[ids], content_weight, 1.0)
        return Batch(ids, (columns < last).long(), weights)


def weighted_loss(model: Any, batch: Batch, choices: Tensor | None = None, choice_weight: float = 0.0) -> Tensor:
    """Return the weighted mean negative log-likelihood of the batch's learned tokens, a scalar.

    Args:
        model: Micro Llama.
        batch: What is learned, with weights.
        choices: (V,) mask of the tokens among which a choice is made, such as names and values; None is no such term.
        choice_weight: Weight of a further term: the likelihood of a learned token given that one of `choices` comes.
            It sharpens which name is written and leaves untouched how often a name is written at all.
    """
    # Rows are padded on the right, so causal attention needs no mask; without one it takes PyTorch's faster kernel.
    hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state[:, :-1]
    weights = batch.weights[:, 1:]
    learned = weights > 0
    logits, targets, of_token = model.lm_head(hidden[learned]), batch.ids[:, 1:][learned], weights[learned]
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    total, whole = (losses * of_token).sum(), of_token.sum()
    if choices is not None and choice_weight > 0:
        chosen = choices[targets]
        among = logits[chosen].masked_fill(~choices, float("-inf"))
        total = total + choice_weight * torch.nn.functional.cross_entropy(among, targets[chosen], reduction="sum")
        whole = whole + choice_weight * chosen.sum()
    return total / whole


class Phase(NamedTuple):
    """A stretch of pretraining: streams with the number of texts that each gives to a step."""

    steps: int
    streams: tuple[tuple[Iterator[Text], int], ...]
    content_weight: float = CONTENT_WEIGHT
    """Weight of name and value tokens. Above 1 it tilts what is written where a name and another word may both come, so
    a phase that teaches how often each kind of line is written takes 1."""
    choice_weight: float = 0.0
    """Weight of which name or value is written, given that one is; see `weighted_loss`."""


def pretrain(
    model: Any,
    tokenizer: Any,
    phases: Iterable[Phase],
    *,
    report: Callable[[str], None],
    report_every: int = 100,
) -> None:
    """Train `model` in place through `phases`, with a linear warm-up of 50 steps and a linear decay over the last 40 %.

    Args:
        model: Micro Llama in float32.
        tokenizer: Its tokenizer.
        phases: In order; each stream's batch is a forward and backward pass of its own, gradients add up.
        report: Called with a line of progress.
        report_every: Steps between reports.
    """
    phases = list(phases)
    total = sum(phase.steps for phase in phases)
    batcher = Batcher(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    model.train()
    step, tokens, started = 0, 0, time.perf_counter()
    for phase in phases:
        for _ in range(phase.steps):
            losses = []
            for stream, count in phase.streams:
                batch = batcher(list(itertools.islice(stream, count)), phase.content_weight)
                loss = weighted_loss(model, batch, batcher.content, phase.choice_weight)
                loss.backward()  # type: ignore[no-untyped-call]
                losses.append(loss.item())
                tokens += int(batch.mask.sum())
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 50, (total - step) / (0.4 * total))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            if step % report_every == 0:
                seconds = time.perf_counter() - started
                shown = " ".join(f"{x:.3f}" for x in losses)
                report(f"step {step}/{total}  loss {shown}  {tokens / 1e6:.1f} M tokens  {seconds:.0f} s")
    model.eval()


def sharpen(model: Any, factor: float) -> None:
    """Multiply all logits of `model` by `factor`, in place: sampling then equals sampling before at `1 / factor`.

    The output layer is linear in the last norm's weight, which therefore takes the factor.

    Args:
        model: Micro Llama.
        factor: Above 0; 1 changes nothing.
    """
    with torch.no_grad():
        model.model.norm.weight.mul_(factor)
