"""The proof that an engine computes an adapter as it was registered.

An engine may load an adapter and silently use only a part of it, or none. So its greedy answers are compared token by
token with those of transformers and PEFT, which must differ from the base's.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evaluation.common.errors import ServeError

if TYPE_CHECKING:
    from student.adapters import Adapter

_PROBES = (
    "Question: What is the name of the place?\nAnswer:",
    "Question: Who wrote it, and when?\nAnswer:",
    "The most important thing to know is that",
    "In the beginning there was",
)
"""Probes, beside `_DRAWN` ones of random tokens, which reach what no English text does."""
_DRAWN, _DRAWN_WIDTH = 4, 12
PROBE_TOKENS = 16
"""Length of each answer."""

Written = Sequence[tuple[int, Mapping[int, float]]]
"""An engine's answer to a probe: each token, with the log-probabilities of the likeliest tokens at its place."""


class Probe(NamedTuple):
    """A probe with its greedy answer by transformers and PEFT; log-probabilities are natural."""

    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]
    base_logprobs: list[float]
    """Of the same tokens by the base alone."""


class Proof(NamedTuple):
    """The outcome of a comparison."""

    passed: bool
    prompts: int
    equal: int
    """Answers with the same tokens throughout."""
    ties: int
    """Answers that part where two tokens are equally likely within the tolerance; compared up to there."""
    max_logprob_difference: float | None
    """In nats; None when a token's was not given."""
    told_apart: int
    """Probes at which adapter and base differ by more than twice the tolerance."""
    reason: str
    """Why it failed, or empty."""


def compare(probes: Sequence[Probe], written: Sequence[Written], tolerance: float, *, zero: bool = False) -> Proof:
    """Return whether an engine answers as the registered adapter does, within a tolerance in nats.

    The product of a `zero` adapter is zero in every layer, so nothing can tell it from the base.
    """
    pairs = [_difference(probe, answer, tolerance) for probe, answer in zip(probes, written, strict=True)]
    worst, count = max(difference for difference, _ in pairs), len(pairs)
    equal = sum(same for _, same in pairs)
    ties = sum(difference <= tolerance and not same for difference, same in pairs)
    gaps = [[abs(a - b) for a, b in zip(p.logprobs, p.base_logprobs, strict=True)] for p in probes]
    told_apart = sum(max(gap) > 2 * tolerance for gap in gaps)
    reason = ""
    if worst > tolerance:
        size = f"up to {worst:.3g} nats" if math.isfinite(worst) else "beyond comparison"
        reason = (
            f"its answers are not the registered adapter's: {count - equal - ties} of {count} probes have other "
            f"tokens, log-probabilities differ {size}, allowed is {tolerance:g}"
        )
    elif not zero and not told_apart:
        reason = f"none of {count} probes tells the adapter from its base, so nothing shows that it takes effect"
    return Proof(not reason, count, equal, ties, worst if math.isfinite(worst) else None, told_apart, reason)


def _difference(probe: Probe, written: Written, tolerance: float) -> tuple[float, bool]:
    """Return the largest difference up to where the answers part (infinite unless that is a tie), and if they never do.

    At a tie the engine gives the reference's token the right log-probability, and its own choice hardly a larger one.
    """
    if len(written) != len(probe.tokens):
        return math.inf, False
    worst = 0.0
    for token, logprob, (chosen, top) in zip(probe.tokens, probe.logprobs, written, strict=True):
        given = top.get(token, math.nan)
        if not math.isfinite(given):
            return math.inf, False
        worst = max(worst, abs(given - logprob))
        if chosen != token:
            return worst if top.get(chosen, math.inf) - given <= tolerance else math.inf, False
    return worst, True


def reference(base: str, adapter: Path, dtype: str = "float32") -> list[Probe]:
    """Return probes with an adapter's answers, in float32 with weights rounded to `dtype`, one at a time, unpadded.

    Raises:
        ModelError: The base cannot be opened.
        ServeError: The adapter was trained on another base.
    """
    import torch
    from peft import PeftModel

    from evaluation.common.checkpoints import load_checkpoint, model_digest
    from evaluation.exact_match import prompt_ids
    from student.adapters import load_adapter

    wanted = load_adapter(adapter).base_digest  # of the base in the dtype of the training
    dtypes = (torch.float32, torch.bfloat16)
    if wanted and wanted not in (model_digest(load_checkpoint(base, dtype=each).model) for each in dtypes):
        raise ServeError(
            f"serve: the adapter was trained on the base {wanted[:12]!r}, which {base!r} is not. Serve it with its own "
            "base (--student)."
        )
    model, tokenizer = load_checkpoint(base)
    for weight in model.parameters():
        weight.data = weight.data.to(getattr(torch, dtype)).float()
    model = PeftModel.from_pretrained(model, str(adapter)).eval()
    ordinary = sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids))
    draw = random.Random(0)
    encoded = [prompt_ids(tokenizer, prompt) for prompt in _PROBES]
    encoded += [draw.choices(ordinary, k=_DRAWN_WIDTH) for _ in range(_DRAWN)]
    probes = []
    with torch.inference_mode():
        for prompt in encoded:
            tokens: list[int] = []
            for _ in range(PROBE_TOKENS):  # `generate` would stop at an end token or forbid it
                tokens.append(int(model(input_ids=torch.tensor([prompt + tokens])).logits[0, -1].argmax()))
            logprobs = _logprobs(model, prompt, tokens)
            with model.disable_adapter():
                probes.append(Probe(prompt, tokens, logprobs, _logprobs(model, prompt, tokens)))
    return probes


def _logprobs(model: Any, prompt: list[int], tokens: list[int]) -> list[float]:
    """Return the log-probability of each token after the prompt and the tokens before it."""
    import torch

    logits = model(input_ids=torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    chosen: list[float] = logits.float().log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()
    return chosen


def written_to_probes(reply: dict[str, Any]) -> list[Written]:
    """Return an engine's answers from its reply to a request with `logprobs` and `return_tokens_as_token_ids`."""
    answers: list[Written] = []
    for choice in sorted(reply["choices"], key=lambda choice: int(choice["index"])):
        tops = [
            {int(token.removeprefix("token_id:")): float(value) for token, value in top.items()}
            for top in choice["logprobs"]["top_logprobs"]
        ]
        answers.append(list(zip(choice["token_ids"], tops, strict=True)))
    return answers


def zero_adapter(adapter: Adapter, directory: Path) -> Path:
    """Write an adapter on the same layers that changes nothing, and return its directory.

    On a CPU vLLM mixes up requests with and without an adapter in one batch; so the base answers through one, too.
    """
    import torch

    from student.adapters import Adapter, save_adapter

    factors = {n: (torch.zeros(1, a.shape[1]), torch.zeros(b.shape[0], 1)) for n, (a, b) in adapter.factors.items()}
    return save_adapter(Adapter(factors, 1, 1.0, adapter.base_digest), directory)
