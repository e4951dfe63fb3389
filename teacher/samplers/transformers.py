"""The embedded sampler: batched Hugging Face generation whose samples do not depend on what else is in the batch.

The noise of a row is a pure function of (seed, prompt, index, step, token): a counter-based hash (Salmon et al. 2011)
with the output function of SplitMix64 (Steele, Lea and Flood 2014), keyed by a SHA-256 of the first three. Adding
Gumbel noise to the log-probabilities and taking the largest is exact sampling (the Gumbel-max trick; Maddison, Tarlow
and Minka 2014, arXiv 1411.0030), so generation itself runs greedily, no random state is kept or changed, and any cut of
the rows into batches, on any device, gives the same samples up to rounding of the logits.

Measured on one CPU core (0.84 M parameters and a LoRA of rank 16, V = 400, 64 rows, prompts of 80 tokens, 120 new
tokens): 2.0 s, 3,500 tokens/s, of which the noise takes 0.07 s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from teacher.samplers.sampler import Completion, LocalSampler, LocalSampling

if TYPE_CHECKING:
    from torch import Tensor

    from teacher.policy import TeacherPolicy


class TransformersSampling(LocalSampling):
    """Sampling with the embedded engine: Hugging Face `generate` in this process."""

    type: Literal["transformers"] = "transformers"
    batch_size: int = Field(default=64, ge=1, le=4096)
    """Completions sampled at once (rows), in [1, 4096]; bounds memory, and does not change what is sampled."""

    def build(self, policy: TeacherPolicy, model: str, dtype: Literal["float32", "bfloat16"]) -> TransformersSampler:
        """Return the engine; it uses the policy's own model."""
        return TransformersSampler(policy.model, policy.tokenizer, self)


def _signed(value: int) -> int:
    """Return the 64-bit pattern of `value` as the signed integer that torch's int64 holds."""
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def gumbel_noise(keys_N: Tensor, step: int, vocabulary: int) -> Tensor:
    """Return independent standard Gumbel noise (N, V) in float64 for token number `step` of each row.

    Args:
        keys_N: Row keys (N,), int64.
        step: Tokens sampled before, at least 0.
        vocabulary: V.
    """
    import torch

    counters_V = torch.arange(step * vocabulary, (step + 1) * vocabulary, device=keys_N.device)
    bits = keys_N[:, None] + (counters_V + 1)[None, :] * _GOLDEN
    bits = (bits ^ _shifted(bits, 30)).mul_(_MIX_1)
    bits = (bits ^ _shifted(bits, 27)).mul_(_MIX_2)
    bits ^= _shifted(bits, 31)
    # 52 bits and a half keep the number strictly between 0 and 1 in float64, so that both logarithms are finite.
    uniform = _shifted(bits, 12).double().add_(0.5).mul_(2.0**-52)
    return uniform.log_().neg_().log_().neg_()


def _shifted(bits: Tensor, places: int) -> Tensor:
    """Return a logical right shift; torch's own repeats the sign."""
    return (bits >> places) & ((1 << (64 - places)) - 1)


class _GumbelNoise:
    """A logits processor that adds each row's noise to its scaled and cut logits."""

    def __init__(self, keys_N: Tensor, prompt_width: int) -> None:
        self._keys_N = keys_N
        self._prompt_width = prompt_width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self._prompt_width
        return scores.double() + gumbel_noise(self._keys_N, step, scores.shape[1])


class TransformersSampler(LocalSampler[Completion]):
    """Samples with `generate` from a model in this process, with the current state of its adapter."""

    def __init__(self, model: Any, tokenizer: Any, config: TransformersSampling) -> None:
        """Prepare sampling from a causal language model of transformers, with or without a PEFT adapter."""
        # A PEFT adapter lives inside the base model's layers, so generating with the base model uses it.
        self._model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._config = config
        super().__init__(self._model, tokenizer, config)

    def close(self) -> None:
        """Do nothing: the model is the policy's."""

    def _write(self, prompt_ids: Sequence[list[int]], keys: Sequence[int]) -> list[Completion]:
        """Return the completions; rows are sorted by prompt length first, so that little of a batch is padding."""
        order = sorted(range(len(keys)), key=lambda row: len(prompt_ids[row]))
        done: dict[int, Completion] = {}
        for start in range(0, len(order), self._config.batch_size):
            batch = order[start : start + self._config.batch_size]
            written = self._sample_batch([prompt_ids[row] for row in batch], [keys[row] for row in batch])
            done.update(zip(batch, written, strict=True))
        return [done[row] for row in range(len(keys))]

    def _sample_batch(self, prompt_ids: list[list[int]], keys: list[int]) -> list[Completion]:
        """Return one completion for each row of a batch."""
        import torch
        from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

        device = self._model.device
        width = max(len(row) for row in prompt_ids)
        ids_NT = torch.zeros(len(prompt_ids), width, dtype=torch.long)
        mask_NT = torch.zeros_like(ids_NT)
        for i, row in enumerate(prompt_ids):
            ids_NT[i, width - len(row) :] = torch.tensor(row)
            mask_NT[i, width - len(row) :] = 1
        processors = LogitsProcessorList()
        if self._config.temperature > 0.0:
            processors.append(TemperatureLogitsWarper(self._config.temperature))
            if self._config.top_p < 1.0:
                processors.append(TopPLogitsWarper(self._config.top_p))
            processors.append(_GumbelNoise(torch.tensor(keys, device=device), width))
        with torch.no_grad(), self._neutral_model():
            output_NT = self._model.generate(
                ids_NT.to(device), attention_mask=mask_NT.to(device), logits_processor=processors
            )
        return [self._completion(row) for row in output_NT[:, width:].tolist()]

    @contextmanager
    def _neutral_model(self) -> Iterator[None]:
        """Put the model into evaluation mode with nothing but our settings, and back.

        `generate` fills whatever a call leaves open from the checkpoint's own generation settings, such as a repetition
        penalty, so these are replaced for the time of the call.
        """
        from transformers import GenerationConfig

        own, training = self._model.generation_config, self._model.training
        self._model.generation_config = GenerationConfig(
            do_sample=False,
            max_new_tokens=self._config.max_new_tokens,
            eos_token_id=sorted(self._ends) or None,
            pad_token_id=min(self._ends, default=0),
            use_cache=True,
        )
        self._model.eval()
        try:
            yield
        finally:
            self._model.generation_config = own
            self._model.train(training)
