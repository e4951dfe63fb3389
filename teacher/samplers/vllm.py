"""Sampling with vLLM, which reloads the policy's adapter after each change."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from evaluation.engines.vllm import AdapterHandle, EngineFailure, EngineRequest, VllmEngine, VllmOptions
from teacher.samplers.sampler import Completion, FailedCompletion, LocalSampler, LocalSampling

if TYPE_CHECKING:
    from teacher.policy import TeacherPolicy


class VllmSampling(LocalSampling):
    """Sampling with vLLM in this process, with the teacher's adapter."""

    type: Literal["vllm"]
    engine: VllmOptions = VllmOptions()

    def build(self, policy: TeacherPolicy, model: str, dtype: Literal["float32", "bfloat16"]) -> VllmSampler:
        """Return a sampler that always uses the current state of `policy`."""
        return VllmSampler(policy, self, model, dtype)


class VllmSampler(LocalSampler[Completion | FailedCompletion]):
    """Samples from a policy; the engine loads a copy of its base and starts with the first call."""

    def __init__(
        self, policy: TeacherPolicy, config: VllmSampling, model: str, dtype: Literal["float32", "bfloat16"]
    ) -> None:
        """Prepare sampling without starting the engine; see `LocalSampling.build`."""
        self._policy, self._config, self._model, self._dtype = policy, config, model, dtype
        self._engine: VllmEngine | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._current: tuple[str, AdapterHandle] | None = None  # with the digest of its policy
        super().__init__(policy.model.get_base_model(), policy.tokenizer, config)
        if config.engine.max_model_tokens is not None:
            longest = config.engine.max_model_tokens - config.max_new_tokens
            self.max_prompt_tokens = min(self.max_prompt_tokens or longest, longest)

    def _write(self, prompt_ids: Sequence[list[int]], keys: Sequence[int]) -> list[Completion | FailedCompletion]:
        engine, adapter = self._at_policy()
        requests = [
            EngineRequest(
                ids,
                self._config.max_new_tokens,
                adapter,
                self._config.temperature,
                self._config.top_p,
                seed=key & (2**63 - 1),
                end_tokens=sorted(self._ends),
                stop=self._stop,
            )
            for ids, key in zip(prompt_ids, keys, strict=True)
        ]
        return [
            FailedCompletion("engine", result.detail)
            if isinstance(result, EngineFailure)
            else self._completion(result.token_ids)
            for result in engine.generate(requests)
        ]

    def close(self) -> None:
        """Stop the engine; the next call restarts it."""
        if self._engine is not None:
            self._engine.close()
        if self._scratch is not None:
            self._scratch.cleanup()
        self._engine = self._scratch = self._current = None

    def _at_policy(self) -> tuple[VllmEngine, AdapterHandle]:
        """Return the running engine and the adapter of the current policy, loaded in place of an outdated one."""
        if self._engine is None or self._scratch is None:
            self._engine = VllmEngine(
                self._model,
                self._config.engine,
                device=self._policy.device.type,
                dtype=self._dtype,
                max_rank=self._policy.config.rank,
            )
            self._scratch = tempfile.TemporaryDirectory(prefix="preceptor-teacher-")
        digest = self._policy.digest
        if self._current is None or self._current[0] != digest:
            directory = Path(self._scratch.name, digest[:20])
            self._policy.model.save_pretrained(directory, save_embedding_layers=False)
            fresh = self._engine.register(directory, digest)
            if self._current is not None:
                self._engine.forget(self._current[1])
                shutil.rmtree(self._current[1].directory, ignore_errors=True)
            self._current = digest, fresh
        return self._engine, self._current[1]
