"""Samples with vLLM from the teacher as it is: its adapter is saved, registered under a name of its own, and used."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from evaluation.engines.vllm_engine import AdapterHandle, EngineCompletion, EngineFailure, EngineRequest, VllmEngine
from teacher.config import VllmSampling
from teacher.policy import TeacherPolicy
from teacher.prompts import prompt_token_ids
from teacher.samplers import Completion, FailedCompletion
from teacher.samplers.local import completion_of, encoded_prompts, end_tokens, longest_prompt, row_key
from teacher.self_edit import self_edit_schema


class VllmSampler:
    """Samples from a policy; the engine opens the policy's base once more and starts with the first call."""

    def __init__(
        self, policy: TeacherPolicy, config: VllmSampling, model: str, dtype: Literal["float32", "bfloat16"]
    ) -> None:
        """Prepare sampling; nothing is started.

        Args:
            policy: Whose completions to write, with its adapter as it is at the time of a call.
            config: How to sample.
            model: Directory or hub name of its base.
            dtype: Number format of the base.

        Raises:
            ConfigError: The longest completion alone fills the model's context.
        """
        self._policy = policy
        self._config = config
        self._model = model
        self._dtype = dtype
        self._engine: VllmEngine | None = None
        self._scratch: Path | None = None
        self._current: AdapterHandle | None = None
        self._digest = ""
        base = policy.model.get_base_model()
        self._max_prompt_tokens = longest_prompt(base, config.max_new_tokens)
        if config.engine.max_model_tokens is not None:
            longest = config.engine.max_model_tokens - config.max_new_tokens
            self._max_prompt_tokens = min(self._max_prompt_tokens or longest, longest)
        self._ends = end_tokens(base, policy.tokenizer)
        self._schema = self_edit_schema() if config.structured else None

    @property
    def max_prompt_tokens(self) -> int | None:
        """Longest prompt in tokens that leaves room for a completion; None for a model without a fixed context."""
        return self._max_prompt_tokens

    def count_tokens(self, prompt: str) -> int:
        """Return the number of tokens that the model reads for `prompt`."""
        return len(prompt_token_ids(self._policy.tokenizer, prompt))

    def sample(self, prompts: Sequence[str], *, n: int, seed: int) -> list[list[Completion | FailedCompletion]]:
        """Return `n` completions of each prompt; see `Sampler.sample`.

        Every completion has a generator of its own, seeded by (seed, prompt, index), so it does not depend on what is
        sampled beside it, up to rounding of the logits. The noise is vLLM's: other engines draw other samples.

        Raises:
            ModelError: vLLM cannot be used here.
        """
        limit, longest = self._max_prompt_tokens, self._config.max_new_tokens
        ids = encoded_prompts(self._policy.tokenizer, prompts, n, limit, longest)
        if not prompts:
            return []
        distinct = n if self._config.temperature > 0.0 else 1
        engine, adapter = self._at_policy()
        requests = [
            self._request(ids[p], adapter, row_key(seed, prompts[p], index))
            for p in range(len(prompts))
            for index in range(distinct)
        ]
        written = [self._told(result) for result in engine.generate(requests)]
        return [[written[p * distinct + index % distinct] for index in range(n)] for p in range(len(prompts))]

    def close(self) -> None:
        """Stop the engine; sampling again starts it anew."""
        if self._engine is not None:
            self._engine.close()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
        self._engine = self._scratch = self._current = None
        self._digest = ""

    def _told(self, result: EngineCompletion | EngineFailure) -> Completion | FailedCompletion:
        if isinstance(result, EngineFailure):
            return FailedCompletion("engine", result.detail)
        return completion_of(self._policy.tokenizer, result.token_ids, self._ends)

    def _request(self, ids: Sequence[int], adapter: AdapterHandle, key: int) -> EngineRequest:
        config = self._config
        return EngineRequest(
            ids,
            config.max_new_tokens,
            adapter,
            config.temperature,
            config.top_p,
            seed=key & (2**63 - 1),
            end_tokens=sorted(self._ends),
            schema=self._schema,
        )

    def _at_policy(self) -> tuple[VllmEngine, AdapterHandle]:
        """Return the running engine and the adapter of the policy as it is now; the one before is unloaded."""
        if self._engine is None:
            self._engine = VllmEngine(
                self._model,
                self._config.engine,
                device=self._policy.device.type,
                dtype=self._dtype,
                max_rank=self._policy.config.rank,
            )
            self._scratch = Path(tempfile.mkdtemp(prefix="preceptor-teacher-"))
        digest = self._policy.digest
        if self._current is None or digest != self._digest:
            assert self._scratch is not None
            directory = self._scratch / digest[:20]
            self._policy.model.save_pretrained(directory, save_embedding_layers=False)
            fresh = self._engine.register(directory, digest)
            if self._current is not None:
                self._engine.forget(self._current)
                shutil.rmtree(self._current.directory, ignore_errors=True)
            self._current, self._digest = fresh, digest
        return self._engine, self._current
