"""How a champion is served: the `serving` section of a configuration."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from evaluation.engines.vllm_options import VllmOptions


class ServingOptions(BaseModel):
    """How a champion is served and how a new one takes its place."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    poll_seconds: float = Field(default=5.0, ge=0.1, le=3600.0)
    """Time between two looks at the registry, in [0.1, 3600] s."""
    max_rank: int | None = Field(default=None, ge=1, le=512)
    """Largest rank of the adapters to come, in [1, 512]; None is what the first champion needs. On a CPU every request
    costs what this rank costs."""
    with_base: bool = False
    """Also answer as the student without an adapter, under the model's own name."""
    tolerance: float | None = Field(default=None, gt=0.0, le=10.0)
    """Largest difference of a token's log-probability between vLLM and PEFT in nats, in (0, 10]; None is 0.001 for
    float32 on a CPU and 0.25 otherwise, where rounding differs."""
    probe_tokens: int = Field(default=16, ge=1, le=256)
    """Tokens written after each probe, in [1, 256]."""
    probe_seconds: float = Field(default=900.0, ge=1.0, le=86_400.0)
    """Longest time for the reference answers of the probes, in [1, 86400] s."""
    start_seconds: float = Field(default=1800.0, ge=1.0, le=86_400.0)
    """Longest time for vLLM to start, in [1, 86400] s."""
    grace_seconds: float = Field(default=600.0, ge=0.0, le=86_400.0)
    """Longest time that an old champion stays loaded for the requests it is answering, in [0, 86400] s."""
    retry_seconds: float = Field(default=60.0, ge=0.1, le=86_400.0)
    """Time until a refused version is tried again, in [0.1, 86400] s; doubled each time, up to an hour."""
    restarts: int = Field(default=3, ge=0, le=100)
    """Restarts of a vLLM that died, in [0, 100], before the server gives up; one that ran for ten minutes counts as
    well again."""
    shutdown_seconds: float = Field(default=30.0, ge=0.0, le=3600.0)
    """Longest time that requests may take to finish at the end, in [0, 3600] s."""
    max_body_mb: float = Field(default=16.0, gt=0.0, le=1024.0)
    """Largest request in MB (10^6 bytes), in (0, 1024]."""
    engine: VllmOptions = VllmOptions(max_adapters=4)
    """How vLLM uses the machine; at least 4 adapters fit a switch: old, new, one that is leaving, and the base."""
