"""The embedded sampler: Hugging Face generation, greedy on log-probabilities with noise, hence batch-invariant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from evaluation.generation import gumbel_noise
from evaluation.prefixes import behind_prefixes, pays_to_share, shares_prefixes
from teacher.samplers.sampler import Completion, LocalSampler, LocalSampling

if TYPE_CHECKING:
    from torch import Tensor

    from teacher.policy import TeacherPolicy


class TransformersSampling(LocalSampling):
    """Sampling with the embedded engine: Hugging Face `generate` in this process."""

    type: Literal["transformers"] = "transformers"
    batch_size: int = Field(default=64, ge=1, le=4096)
    """Completions per batch, in [1, 4096]; bounds memory and does not affect the samples."""

    @property
    def at_once(self) -> int:
        """See `Sampling.at_once`."""
        return self.batch_size

    def build(self, policy: TeacherPolicy, model: str, dtype: Literal["float32", "bfloat16"]) -> TransformersSampler:
        """Return a sampler on the policy's own model."""
        return TransformersSampler(policy.model, policy.tokenizer, self)


_LIKELY = 1024
"""Tokens among which a nucleus is sought first: to sort a whole vocabulary takes as long as half of a small model."""


def nucleus(scores_NV: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Return tokens of each row, likeliest first, and which of them are the fewest with a probability of `top_p`.

    Both are (N, K), with K large enough for every row.
    """
    probabilities_NV = scores_NV.softmax(-1)
    likely_NK, tokens_NK = probabilities_NV.topk(min(_LIKELY, scores_NV.shape[1]))
    if bool((likely_NK.sum(-1) < top_p).any()):
        likely_NK, tokens_NK = probabilities_NV.sort(-1, descending=True)
    return tokens_NK, likely_NK.cumsum(-1) - likely_NK < top_p


class TransformersSampler(LocalSampler[Completion]):
    """Samples with `generate` from a model in this process, with the current state of its adapter."""

    def __init__(self, model: Any, tokenizer: Any, config: TransformersSampling, *, shared: bool | None = None) -> None:
        """Prepare sampling from a causal language model, with or without a PEFT adapter.

        `shared` is whether a prompt is read once for all its samples where the model can do that, which changes
        roundings alone; None is with large models.
        """
        # PEFT puts the adapter inside the base model's layers, so generating with the base model uses it.
        self._adapted: Any = model if hasattr(model, "disable_adapter") else None
        self._model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._config = config
        self._shared = shared
        super().__init__(self._model, tokenizer, config)

    def close(self) -> None:
        """Do nothing: the model is the policy's."""

    def _write(self, prompt_ids: Sequence[list[int]], keys: Sequence[int]) -> list[Completion]:
        # Rows are batched by prompt length to minimize padding.
        order = sorted(range(len(keys)), key=lambda row: len(prompt_ids[row]))
        done: dict[int, Completion] = {}
        for start in range(0, len(order), self._config.batch_size):
            batch = order[start : start + self._config.batch_size]
            written = self._sample_batch([prompt_ids[row] for row in batch], [keys[row] for row in batch])
            done.update(zip(batch, written, strict=True))
        return [done[row] for row in range(len(keys))]

    def _sample_batch(self, prompt_ids: list[list[int]], keys: list[int]) -> list[Completion]:
        import torch

        keys_N = torch.tensor(keys, device=self._model.device)
        with torch.no_grad(), self._neutral_model(), self._without_idle_adapter():
            written = (self._share if self._shares_prompts else self._generate)(prompt_ids, keys_N)
        return [self._completion(row) for row in written]

    @cached_property
    def _shares_prompts(self) -> bool:
        wanted = pays_to_share(self._model) if self._shared is None else self._shared
        return wanted and shares_prefixes(self._model)

    def _generate(self, prompt_ids: list[list[int]], keys_N: Tensor) -> list[list[int]]:
        """Return new tokens of each row, whose prompt is read for it alone, by transformers' own loop."""
        import torch
        from torch.nn.utils.rnn import pad_sequence
        from transformers import LogitsProcessorList, StoppingCriteriaList

        rows = [torch.tensor(row, device=keys_N.device) for row in prompt_ids]
        ids_NT = pad_sequence(rows, batch_first=True, padding_side="left")
        mask_NT = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
        width = ids_NT.shape[1]

        def with_noise(input_ids: Tensor, scores: Tensor) -> Tensor:
            return self._with_noise(scores, keys_N, input_ids.shape[1] - width)

        def has_stopped(input_ids: Tensor, _scores: Any, **_: Any) -> Tensor:
            return torch.tensor(self._stopped(input_ids[:, width:].tolist()), device=keys_N.device)

        output_NT = self._model.generate(
            ids_NT,
            attention_mask=mask_NT,
            logits_processor=LogitsProcessorList([with_noise]),
            stopping_criteria=StoppingCriteriaList([] if self._stop is None else [has_stopped]),
        )
        written: list[list[int]] = output_NT[:, width:].tolist()
        return written

    def _share(self, prompt_ids: list[list[int]], keys_N: Tensor) -> list[list[int]]:
        """Return the same of rows behind prompts that are read once; a row that has ended leaves the batch."""
        import torch

        prompts = list(dict.fromkeys(map(tuple, prompt_ids)))
        owners = [prompts.index(tuple(row)) for row in prompt_ids]
        extra = behind_prefixes(self._model, [prompt[:-1] for prompt in prompts], owners, 1, max(map(len, prompts)))
        tokens_N = torch.tensor([row[-1] for row in prompt_ids], device=keys_N.device)
        written: list[list[int]] = [[] for _ in prompt_ids]
        open_rows = list(range(len(prompt_ids)))
        for step in range(self._config.max_new_tokens):
            found = self._model(input_ids=tokens_N[:, None], use_cache=True, **extra)
            tokens_N = self._with_noise(found.logits[:, -1].float(), keys_N, step).argmax(-1)
            for row, token in zip(open_rows, tokens_N.tolist(), strict=True):
                written[row].append(token)
            ended = self._stopped([written[row] for row in open_rows])
            kept = [i for i, row in enumerate(open_rows) if not ended[i] and written[row][-1] not in self._ends]
            if not kept:
                break
            if len(kept) < len(open_rows):
                kept_M = tokens_N.new_tensor(kept)
                found.past_key_values.batch_select_indices(kept_M)
                tokens_N, keys_N, open_rows = tokens_N[kept_M], keys_N[kept_M], [open_rows[i] for i in kept]
                extra = {name: value[kept_M] for name, value in extra.items() if name != "past_key_values"}
            extra |= {
                "attention_mask": torch.nn.functional.pad(extra["attention_mask"], (0, 1), value=1),
                "position_ids": extra["position_ids"] + 1,
                "past_key_values": found.past_key_values,
            }
        return written

    def _with_noise(self, scores_NV: Tensor, keys_N: Tensor, step: int) -> Tensor:
        """Return scores whose highest is a row's token number `step`: a sample, or the likeliest at temperature 0."""
        import torch

        if self._config.temperature == 0.0:
            return scores_NV
        scores_NV, vocabulary = scores_NV / self._config.temperature, scores_NV.shape[1]
        if self._config.top_p == 1.0:
            return scores_NV.double() + gumbel_noise(keys_N, step, vocabulary)
        tokens_NK, kept_NK = nucleus(scores_NV, self._config.top_p)
        noisy_NK = scores_NV.gather(1, tokens_NK).double() + gumbel_noise(keys_N, step, vocabulary, tokens_NK)
        none_NV = torch.full(scores_NV.shape, -torch.inf, dtype=torch.float64, device=scores_NV.device)
        return none_NV.scatter(1, tokens_NK, noisy_NK.where(kept_NK, -torch.inf))

    @contextmanager
    def _neutral_model(self) -> Iterator[None]:
        """Within a `with` block, use evaluation mode, and no generation defaults of the checkpoint's own."""
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

    def _without_idle_adapter(self) -> AbstractContextManager[None]:
        """Within a `with` block, leave out an adapter that changes nothing, as an untrained one's."""
        named = () if self._adapted is None else self._adapted.named_parameters()
        changes = [bool(weight.any()) for name, weight in named if ".lora_B." in name]
        return self._adapted.disable_adapter() if changes and not any(changes) else nullcontext()
