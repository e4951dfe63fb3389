"""Reference answers of an adapter by transformers and PEFT: `python -m pipelines.serving.reference REQUEST ANSWER`.

A process of its own, so that the memory of the base is given back, and the server goes on answering meanwhile.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from pipelines.serving.probes import DRAWN, DRAWN_LENGTH, Reference, ReferenceAnswer


class ReferenceRequest(BaseModel):
    """What to compute."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    """Of the base, as `load_checkpoint` takes it."""
    adapter: Path
    """In PEFT's format."""
    prompts: list[str]
    """Probes in words; some drawn from the tokenizer are added."""
    new_tokens: int
    """Tokens of each answer, at least 1."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format that the base is served in; its weights are rounded to it."""


def compute_reference(request: ReferenceRequest) -> Reference:
    """Return the greedy answers of an adapter, with the base's log-probabilities of the same tokens.

    Computed in float32 with weights as the server has them, one probe at a time so that nothing is padded.

    Raises:
        ModelError: The base cannot be opened.
    """
    import torch
    from peft import PeftModel

    from evaluation.answers import prompt_ids
    from evaluation.checkpoints import load_checkpoint

    base, tokenizer = load_checkpoint(request.model)
    digests = _digests(base)  # before PEFT wraps the layers, which renames them
    if request.dtype != "float32":
        for weight in base.parameters():
            weight.data = weight.data.to(getattr(torch, request.dtype)).float()
    model = PeftModel.from_pretrained(base, str(request.adapter)).eval()
    prompts = [prompt_ids(tokenizer, prompt) for prompt in request.prompts] + _drawn(tokenizer)
    answers = []
    with torch.inference_mode():
        for prompt in prompts:
            tokens = _greedy(model, prompt, request.new_tokens)
            logprobs = _logprobs(model, prompt, tokens)
            with model.disable_adapter():
                base_logprobs = _logprobs(model, prompt, tokens)
            answers.append(
                ReferenceAnswer(prompt=prompt, tokens=tokens, logprobs=logprobs, base_logprobs=base_logprobs)
            )
    return Reference(answers=answers, base_digests=digests)


class _Rounded(Mapping[str, Any]):
    """Weights in bfloat16, each rounded when it is asked for."""

    def __init__(self, weights: Mapping[str, Any]) -> None:
        self._weights = weights

    def __getitem__(self, name: str) -> Any:
        import torch

        weight = self._weights[name]
        return weight.to(torch.bfloat16) if weight.is_floating_point() else weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def _digests(base: Any) -> list[str]:
    """Return the digests of a base opened in float32 and in bfloat16: adapters record that of their training."""
    import hashlib

    from evaluation.checkpoints import digest_tensors, model_digest

    rounded = hashlib.sha256()
    digest_tensors(rounded, _Rounded(base.state_dict()))
    return [model_digest(base), rounded.hexdigest()]


def _drawn(tokenizer: Any) -> list[list[int]]:
    """Return probes of random ordinary tokens, the same for the same tokenizer."""
    ordinary = sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids))
    draw = random.Random(0)
    return [draw.choices(ordinary, k=DRAWN_LENGTH) for _ in range(DRAWN)]


def _greedy(model: Any, prompt: Sequence[int], new_tokens: int) -> list[int]:
    """Return the likeliest token each time; `generate` would stop at an end token or forbid it."""
    import torch

    tokens: list[int] = []
    state, given = None, torch.tensor([list(prompt)])
    for _ in range(new_tokens):
        output = model(input_ids=given, past_key_values=state, use_cache=True)
        state, given = output.past_key_values, output.logits[:, -1:].argmax(-1)
        tokens.append(int(given))
    return tokens


def _logprobs(model: Any, prompt: Sequence[int], tokens: Sequence[int]) -> list[float]:
    """Return the log-probability of each token after the prompt and the tokens before it."""
    import torch

    logits = model(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
    chosen = logits.float().log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])
    return [float(value) for value in chosen[:, 0]]


if __name__ == "__main__":
    request_file, answer_file = map(Path, sys.argv[1:])
    wanted = ReferenceRequest.model_validate_json(request_file.read_text(encoding="utf-8"))
    answer_file.write_text(compute_reference(wanted).model_dump_json(), encoding="utf-8")
