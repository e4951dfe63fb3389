"""Sampling with vLLM: the policy's adapter is saved, registered under a name of its own, and used."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from evaluation.engines.vllm import AdapterHandle, EngineFailure, EngineRequest, VllmEngine, VllmOptions
from teacher.samplers.sampler import Completion, FailedCompletion, LocalSampler, LocalSampling
from teacher.self_edit import self_edit_schema

if TYPE_CHECKING:
    from teacher.policy import TeacherPolicy


class VllmSampling(LocalSampling):
    """Sampling with vLLM in this process; the teacher's adapter goes with each request."""

    type: Literal["vllm"]
    structured: bool = False
    """Write each self-edit as JSON of the self-edit's schema; for teachers that choose specs, and never on-policy: what
    the schema forbids has no part in the log-probabilities that learning uses."""
    engine: VllmOptions = VllmOptions()

    def build(self, policy: TeacherPolicy, model: str, dtype: Literal["float32", "bfloat16"]) -> VllmSampler:
        """Return the engine; see `VllmSampler`."""
        return VllmSampler(policy, self, model, dtype)


class VllmSampler(LocalSampler[Completion | FailedCompletion]):
    """Samples from a policy; the engine opens the policy's base once more and starts with the first call."""

    def __init__(
        self, policy: TeacherPolicy, config: VllmSampling, model: str, dtype: Literal["float32", "bfloat16"]
    ) -> None:
        """Prepare sampling; nothing is started.

        Args:
            policy: Whose completions to write, from its current state at each call.
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
        super().__init__(policy.model.get_base_model(), policy.tokenizer, config)
        if config.engine.max_model_tokens is not None:
            longest = config.engine.max_model_tokens - config.max_new_tokens
            self._max_prompt_tokens = min(self._max_prompt_tokens or longest, longest)
        self._schema = self_edit_schema() if config.structured else None

    def _write(self, prompt_ids: Sequence[list[int]], keys: Sequence[int]) -> list[Completion | FailedCompletion]:
        """Return the completions; every one has a generator of its own, seeded by its key.

        Raises:
            ModelError: vLLM cannot be used here.
        """
        engine, adapter = self._at_policy()
        requests = [self._request(ids, adapter, key) for ids, key in zip(prompt_ids, keys, strict=True)]
        return [
            FailedCompletion("engine", result.detail)
            if isinstance(result, EngineFailure)
            else self._completion(result.token_ids)
            for result in engine.generate(requests)
        ]

    def close(self) -> None:
        """Stop the engine; sampling again starts it anew."""
        if self._engine is not None:
            self._engine.close()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
        self._engine = self._scratch = self._current = None
        self._digest = ""

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
        """Return the running engine and the adapter of the current policy; the previous one is unloaded."""
        if self._engine is None or self._scratch is None:
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
            directory = self._scratch / digest[:20]
            self._policy.model.save_pretrained(directory, save_embedding_layers=False)
            fresh = self._engine.register(directory, digest)
            if self._current is not None:
                self._engine.forget(self._current)
                shutil.rmtree(self._current.directory, ignore_errors=True)
            self._current, self._digest = fresh, digest
        return self._engine, self._current
