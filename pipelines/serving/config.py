"""Settings of the server, and the key that its clients must show. No vLLM is needed to read or check them."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from evaluation.errors import ConfigError
from pipelines.config import TrackingConfig
from pipelines.registry import Role
from pipelines.serving.options import ServingOptions

_EXACT_TOLERANCE = 1e-3
"""vLLM and PEFT differed by at most 1.5e-5 nats a token in float32 on a CPU."""
_ROUNDED_TOLERANCE = 0.25
"""In bfloat16 on a CPU they differed by at most 0.19, with random adapters far larger than trained ones."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ServeConfig(_Frozen):
    """What is served, from where, and to whom."""

    work_dir: Path
    """Of the runs whose registry is followed."""
    tracking: TrackingConfig = TrackingConfig()
    role: Role = "student"
    """Whose champion is served."""
    model: str | None = None
    """Directory, hub name or shipped name of the base; None is the one that the champion's run recorded."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where vLLM runs."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the base."""
    host: str = Field(default="127.0.0.1", min_length=1)
    """Address to listen on."""
    port: int = Field(default=8000, ge=0, le=65_535)
    """Port to listen on, in [0, 65535]; 0 takes a free one."""
    api_key_env: str | None = Field(default=None, min_length=1)
    """Environment variable that holds the clients' key; needed on any address but loopback."""
    options: ServingOptions = ServingOptions()

    @property
    def tolerance(self) -> float:
        """Largest difference of log-probabilities in the probes, in nats."""
        if self.options.tolerance is not None:
            return self.options.tolerance
        return _EXACT_TOLERANCE if (self.device, self.dtype) == ("cpu", "float32") else _ROUNDED_TOLERANCE


def is_loopback(host: str) -> bool:
    """Return whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_api_key(host: str, variable: str | None) -> str | None:
    """Return the key that clients must show, or None when there is none.

    Args:
        host: Address to listen on.
        variable: Name of the environment variable that holds the key.

    Raises:
        ConfigError: There is no key where there must be one, or it cannot go into a header.
    """
    if variable is None:
        if is_loopback(host):
            return None
        raise ConfigError(
            f"serve: --host {host!r} is reached from other machines, which needs a key. Put one into an environment "
            "variable and give its name with --api-key-env, or stay on 127.0.0.1."
        )
    key = os.environ.get(variable, "")
    # The key itself is never shown, not even when it is refused.
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        state = "has characters that no header takes" if key else "is empty or not set"
        raise ConfigError(
            f"serve: --api-key-env {variable!r}: the variable {state}. Allowed is printable ASCII without blanks, such "
            "as `openssl rand -hex 32` writes."
        )
    return key
