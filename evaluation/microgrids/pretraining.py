"""Pretraining of the micro-grids' models: next-token loss with weights, Muon for matrices and AdamW for the rest."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from evaluation.microgrids.texts import Exercise, GridText, draw_text
from evaluation.microworld.pretraining import Batch, weighted_loss

MUON_RATE = 0.02
"""Step size for matrices (Muon, Jordan et al. 2024). With AdamW alone, inferring a rule had not begun after as many
steps as this took to master half of the rules."""
MUON_DECAY = 0.1
"""Weight decay of matrices. Without it a model learned ever slower the longer it had been trained: after 700 steps of
inferring rules the loss was .32, and with it .16 (with twice the heads, which alone changed nothing by step 300)."""
ADAM_RATE = 3e-3
"""Step size of AdamW for embeddings and norms."""
_END = 0.3
"""Loss weight of the end of a text."""


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


def draw_texts(rng: random.Random, phase: Phase) -> list[GridText]:
    """Return the texts of one step."""
    pairs = rng.choice(phase.pairs)
    kinds, shares = list(phase.exercises), list(phase.exercises.values())
    return [
        draw_text(rng, rng.choice(phase.families), rng.choices(kinds, shares)[0], pairs) for _ in range(phase.texts)
    ]


def batch_of(texts: Sequence[GridText], tokenizer: Any) -> Batch:
    """Return texts as a padded batch: `bos`, the pieces with their weights, `eos`."""
    bos, eos, pad = (getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad"))
    pieces = [piece for text in texts for piece, _ in text.pieces]
    encoded = iter(tokenizer.backend_tokenizer.encode_batch(pieces, add_special_tokens=False))
    rows: list[list[int]] = []
    weights: list[list[float]] = []
    for text in texts:
        row, weight = [bos], [0.0]
        for _, of_piece in text.pieces:
            ids = next(encoded).ids
            row += ids
            weight += [of_piece] * len(ids)
        rows.append([*row, eos])
        weights.append([*weight, _END])
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return Batch(ids, mask, torch.tensor([weight + [0.0] * (width - len(weight)) for weight in weights]))


def optimizers_of(model: Any) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices between embedding and head, and AdamW for the rest."""
    inner = {name: p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name}
    rest = [p for name, p in model.named_parameters() if name not in inner]
    return [
        torch.optim.Muon(list(inner.values()), lr=MUON_RATE, weight_decay=MUON_DECAY, momentum=0.95),
        torch.optim.AdamW(rest, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def pretrain(
    model: Any,
    tokenizer: Any,
    phases: Iterable[Phase],
    seed: int,
    *,
    report: Callable[[str], None],
    report_every: int = 100,
) -> None:
    """Train `model` in place through `phases`.

    Args:
        model: Micro Llama in float32.
        tokenizer: The micro-grids' own.
        phases: In order; each draws texts of its own.
        seed: Of the texts.
        report: Called with a line of progress.
        report_every: Steps between reports.
    """
    optimizers = optimizers_of(model)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    model.train()
    started = time.perf_counter()
    for number, phase in enumerate(phases, start=1):
        rng = random.Random(f"micro-grids:pretraining:{seed}:{number}")
        total = 0.0
        for step, factor in enumerate(_schedule(phase), start=1):
            loss = weighted_loss(model, batch_of(draw_texts(rng, phase), tokenizer))
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, rate in zip(optimizers, rates, strict=True):
                optimizer.param_groups[0]["lr"] = rate * factor
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            total += loss.item()
            if step % report_every == 0:
                seconds = time.perf_counter() - started
                report(f"phase {number} step {step}/{phase.steps}  loss {total / report_every:.3f}  {seconds:.0f} s")
                total = 0.0
    model.eval()


def renew_unseen(model: Any, tokenizer: Any, phases: Iterable[Phase], seed: int) -> int:
    """Give new embeddings to the tokens that no text of some phases has, in place; return how many they are.

    A token that never comes is made less likely at every step, so that after thousands of them all such tokens have
    embeddings in one direction. The shipped teacher began from new ones; how much that matters was not measured.

    Args:
        model: Micro Llama, whose embeddings are tied.
        tokenizer: The micro-grids' own.
        phases: What the model was trained on.
        seed: Of the draws.
    """
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
    return len(unseen)


def _schedule(phase: Phase) -> Iterator[float]:
    """Yield the factor on the step sizes: up over 30 steps, level, and down to 0 at the end."""
    for step in range(phase.steps):
        yield phase.peak * min(1.0, (step + 1) / 30, (phase.steps - step) / max(1.0, phase.decay * phase.steps))
