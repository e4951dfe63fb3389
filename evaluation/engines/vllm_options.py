"""Options of the vLLM engine. No vLLM is needed to read or check them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

ALLOWED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM allows as the largest rank of an adapter."""


class VllmOptions(BaseModel):
    """How the engine uses the machine; none of these changes what is sampled, but for rounding."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_sequences: int = Field(default=256, ge=1, le=4096)
    """Sequences computed at once, in [1, 4096]."""
    kv_cache_gb: float | None = Field(default=None, gt=0.0, le=1024.0)
    """Memory for keys and values in GB (10^9 bytes), in (0, 1024]; None is 1 GB on a CPU, and on a GPU what
    `gpu_memory_share` leaves beside the weights."""
    gpu_memory_share: float = Field(default=0.4, gt=0.0, le=1.0)
    """Share of the GPU's memory that the engine may take, in (0, 1]; the student, and the teacher that learns, need the
    rest. Without a GPU it says nothing."""
    max_model_tokens: int | None = Field(default=None, ge=16, le=1_048_576)
    """Longest sequence in tokens, prompt included, in [16, 1048576]; None is the model's own limit."""
    max_adapters: int = Field(default=16, ge=1, le=1024)
    """Adapters computed at once, in [1, 1024]; more of them than that take turns. Each takes memory at full rank."""
    compiled: bool | None = None
    """Compile the model (and record CUDA graphs): slow to start, then faster. None: on a GPU only; on two CPU cores it
    took 50 s to start and won nothing with adapters."""
    prefix_caching: bool = True
    """Keep keys and values of prompts that begin alike."""


def allowed_rank(rank: int) -> int:
    """Return the smallest largest-rank setting that holds adapters of `rank`.

    On a CPU every adapter costs what this rank costs, so it must not be larger than it has to be.

    Args:
        rank: Of the largest adapter, in [1, 512].

    Raises:
        ValueError: No setting is large enough.
    """
    fitting = [size for size in ALLOWED_RANKS if size >= rank]
    if not fitting:
        raise ValueError(f"rank: got {rank}, vLLM allows at most {ALLOWED_RANKS[-1]}; train adapters of a lower rank")
    return fitting[0]
