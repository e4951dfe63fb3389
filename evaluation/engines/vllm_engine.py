"""vLLM in this process: batched generation by a base model or by many LoRA adapters on it.

What vLLM does not guard against is guarded here (each was seen with vLLM 0.32):

- On a CPU, requests without an adapter in a call that also has adapters silently get the adapter in the last place, so
  the two are never in one call.
- An adapter that cannot be loaded kills the engine from inside `generate`, so each is registered before it is used.
- Prompts are cached under the adapter's name, so a name is never used for other weights.
- Loading the engine replaces `torch.set_num_threads` by a function that does nothing, reseeds the global random
  generators and writes environment variables that child processes would inherit; all three are put back.
- Loading it fails where numba has been imported (as libraries of search and statistics do).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from evaluation.checkpoints import resolve_model
from evaluation.engines.vllm_guards import INSTALL_HINT, check_adapter, check_platform, process_kept
from evaluation.engines.vllm_options import VllmOptions, allowed_rank
from evaluation.errors import GenerationError, ModelError

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process: no child that could be left behind
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # other parts of the process use the cores as well
    "VLLM_CONFIGURE_LOGGING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
_CPU_KV_CACHE_GB = 1.0


class AdapterHandle(NamedTuple):
    """A registered adapter."""

    name: str
    """Of these weights in this engine, never used for others."""
    number: int
    """vLLM's number for it, at least 1."""
    directory: Path
    """Where it is; must stay there while it is used, since the engine may load it again."""


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One completion to write."""

    token_ids: Sequence[int]
    """The prompt, at least one token."""
    max_new_tokens: int
    adapter: AdapterHandle | None = None
    """None is the base model."""
    temperature: float = 0.0
    """Divides the logits; 0 takes the likeliest token each time."""
    top_p: float = 1.0
    seed: int | None = None
    """Of this completion alone, so that it does not depend on what else is computed; in [0, 2^63)."""
    end_tokens: Sequence[int] = ()
    """Tokens that end it, beside the model's own."""
    schema: Mapping[str, Any] | None = None
    """JSON schema that the completion must follow; bound its strings by a `pattern` without control characters, since
    a mere `maxLength` lets some through that no JSON reader takes."""


@dataclass(frozen=True, slots=True)
class EngineCompletion:
    """What was written for one request."""

    token_ids: tuple[int, ...]
    """Every sampled token, the one that ended it included."""
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class EngineFailure:
    """One completion that the engine gave up, while the others of its call were written."""

    detail: str


class VllmEngine:
    """A running engine; close it, or use it as a context."""

    def __init__(
        self,
        model: str,
        options: VllmOptions,
        *,
        device: str = "cpu",
        dtype: Literal["float32", "bfloat16"] = "float32",
        max_rank: int | None = None,
    ) -> None:
        """Load the model and reserve memory; seconds for a micro model, minutes for a large one.

        Args:
            model: As `load_checkpoint` takes it.
            options: How to use the machine.
            device: `cpu` or `cuda`.
            dtype: Number format of weights and caches.
            max_rank: Largest rank of the adapters to come, in [1, 512]; None for none.

        Raises:
            ModelError: vLLM is not installed or cannot run this model on this machine.
        """
        self.model = model
        self._broken = ""
        self._handles: dict[str, AdapterHandle] = {}
        self._count = 0
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        with process_kept():
            try:
                from vllm import LLM
            except ImportError as error:
                raise ModelError(f"vllm: cannot be imported: {error}. {INSTALL_HINT}.") from error
            check_platform(device)
            settings = _engine_settings(options, device, max_rank)
            try:
                self._llm: Any = LLM(model=resolve_model(model), dtype=dtype, **settings)
            except Exception as error:  # vLLM has no class of its own for what can go wrong here
                raise ModelError(
                    f"vllm: model {model!r} could not be started on {device}: {type(error).__name__}: {error}. Run "
                    "`preceptor doctor` to see what this machine lacks, or sample with `type: transformers`."
                ) from error

    def register(self, directory: Path, digest: str) -> AdapterHandle:
        """Load an adapter and return what requests name it by; the same digest gives the same handle.

        Args:
            directory: In PEFT's format.
            digest: Of its weights; what decides whether two adapters are the same.

        Raises:
            ModelError: The adapter does not fit this engine; the engine goes on without it.
        """
        self._usable()
        if digest in self._handles:
            return self._handles[digest]
        check_adapter(directory)
        number = self._count + 1
        handle = AdapterHandle(f"{digest[:16]}-{number}", number, directory)
        try:
            loaded = self._llm.llm_engine.add_lora(self._lora(handle))
        except Exception as error:
            raise ModelError(
                f"vllm: {self.model!r} refused the adapter in {str(directory)!r}: {type(error).__name__}: {error}. The "
                "engine goes on without it."
            ) from error
        if not loaded:
            raise ModelError(f"vllm: the adapter in {str(directory)!r} was not loaded by {self.model!r}")
        self._count = number
        self._handles[digest] = handle
        return handle

    def forget(self, handle: AdapterHandle) -> None:
        """Unload an adapter; its handle cannot be used again, and its directory may go."""
        self._handles = {digest: kept for digest, kept in self._handles.items() if kept != handle}
        if not self._broken:
            self._llm.llm_engine.remove_lora(handle.number)

    def generate(self, requests: Sequence[EngineRequest]) -> list[EngineCompletion | EngineFailure]:
        """Return one completion for each request, in order; what fails alone is in its place.

        Raises:
            GenerationError: The engine failed, or a request names an adapter that is not registered here.
        """
        self._usable()
        known = set(self._handles.values())
        strangers = sorted({r.adapter.name for r in requests if r.adapter is not None and r.adapter not in known})
        if strangers:
            raise GenerationError(f"vllm: the adapters {strangers} are not registered in this engine; register them")
        done: dict[int, EngineCompletion | EngineFailure] = {}
        for with_adapter in (False, True):
            part = [i for i, request in enumerate(requests) if (request.adapter is not None) is with_adapter]
            done.update(zip(part, self._generate([requests[i] for i in part]), strict=True))
        return [done[i] for i in range(len(requests))]

    def close(self) -> None:
        """Stop the engine and free its memory; closing twice does nothing."""
        if self._llm is None:
            return
        import gc

        with suppress(Exception), process_kept():
            self._llm.llm_engine.engine_core.shutdown()
        self._llm, self._broken = None, "it was closed"
        self._handles.clear()
        gc.collect()

    def __enter__(self) -> VllmEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _usable(self) -> None:
        if self._broken:
            raise GenerationError(f"vllm: the engine of {self.model!r} cannot be used: {self._broken}. Start another.")

    def _lora(self, handle: AdapterHandle) -> Any:
        from vllm.lora.request import LoRARequest

        return LoRARequest(handle.name, handle.number, str(handle.directory))

    def _generate(self, requests: Sequence[EngineRequest]) -> list[EngineCompletion | EngineFailure]:
        """Generate for requests of which all have adapters or none has."""
        if not requests:
            return []
        prompts = [{"prompt_token_ids": list(request.token_ids)} for request in requests]
        adapters = [None if request.adapter is None else self._lora(request.adapter) for request in requests]
        settings = [_sampling(request) for request in requests]
        try:
            outputs = self._llm.generate(prompts, settings, use_tqdm=False, lora_request=adapters)
        except BaseException as error:
            # Requests that were under way stay in the scheduler; the next call could wait for them for ever.
            self._broken = f"a call failed with {type(error).__name__}: {error}"
            if not isinstance(error, Exception):
                raise
            raise GenerationError(f"vllm: {self.model!r} failed: {type(error).__name__}: {error}") from error
        return [_completion(output.outputs[0]) for output in outputs]


def _completion(output: Any) -> EngineCompletion | EngineFailure:
    if output.finish_reason not in ("stop", "length"):
        return EngineFailure(f"ended with {output.finish_reason!r} after {len(output.token_ids)} tokens")
    return EngineCompletion(tuple(output.token_ids), output.finish_reason)


def _sampling(request: EngineRequest) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    schema = request.schema
    return SamplingParams(
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        max_tokens=request.max_new_tokens,
        stop_token_ids=list(request.end_tokens),
        detokenize=False,
        structured_outputs=None if schema is None else StructuredOutputsParams(json=dict(schema)),
    )


def _engine_settings(options: VllmOptions, device: str, max_rank: int | None) -> dict[str, Any]:
    """Return what vLLM is told, for a CPU or a GPU."""
    on_cpu = device == "cpu"
    cache = _CPU_KV_CACHE_GB if options.kv_cache_gb is None and on_cpu else options.kv_cache_gb
    compiled = not on_cpu if options.compiled is None else options.compiled
    settings: dict[str, Any] = {
        "enforce_eager": not compiled,
        "max_num_seqs": options.max_sequences,
        "max_model_len": options.max_model_tokens,
        "enable_prefix_caching": options.prefix_caching,
        # A prompt that is cut rewinds its request's random generator, which those of a CPU cannot do.
        "enable_chunked_prefill": not on_cpu,
        "kv_cache_memory_bytes": None if cache is None else int(cache * 1e9),
        "gpu_memory_utilization": options.gpu_memory_share,
        "generation_config": "vllm",  # a checkpoint's own sampling settings are none of ours
        "disable_log_stats": True,
        "seed": 0,
        # Guidance rejects its own first token where a tokenizer puts a blank before words. Blanks could go on for ever.
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
    }
    if max_rank is not None:
        settings |= {
            "enable_lora": True,
            "max_loras": options.max_adapters,
            "max_cpu_loras": 2 * options.max_adapters,
            "max_lora_rank": allowed_rank(max_rank),
        }
    return settings
