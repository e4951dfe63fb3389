"""Configuration of an endpoint: where it is, how hard it may be asked, and what may be spent. Holds no secret."""

from __future__ import annotations

import os
import re
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

from evaluation.errors import ConfigError

_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class EndpointConfig(BaseModel):
    """An OpenAI-compatible endpoint: `vllm serve`, a hosted model, or anything else that speaks the protocol."""

    # A key pasted into the wrong field must not be repeated by the error message about it.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    base_url: str = Field(min_length=1)
    """http or https address up to and with the version, such as `http://127.0.0.1:8000/v1`; no key, user or query."""
    model: str = Field(min_length=1)
    """Name by which the server knows the model."""
    key_env: str | None = None
    """Name of the environment variable that holds the key; None sends no key, whatever the environment holds."""
    api: Literal["completions", "chat"] = "completions"
    """`completions` continues the prompt's text; `chat` puts it as a user's message, for instruction-tuned models."""
    token_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The field in which the longest completion is sent; some hosted models take only the second one."""
    concurrency: int = Field(default=8, ge=1, le=256)
    """Calls in flight at once, in [1, 256]."""
    timeout: float = Field(default=120.0, gt=0.0, le=3600.0)
    """Longest time for one call in seconds, in (0, 3600]."""
    retries: int = Field(default=5, ge=0, le=20)
    """Further calls for a request that failed in a way that may pass, in [0, 20]."""
    backoff_first: float = Field(default=0.5, gt=0.0, le=60.0)
    """Longest wait before the first retry in seconds, in (0, 60]; doubles with each, and half of it is drawn."""
    backoff_longest: float = Field(default=30.0, gt=0.0, le=600.0)
    """Where the doubling ends, in seconds, in (0, 600]; at least `backoff_first`."""
    retry_after_longest: float = Field(default=120.0, ge=0.0, le=3600.0)
    """Longest `Retry-After` of a server that is waited for, in seconds, in [0, 3600]; a longer one ends the request."""
    budget_tokens: int | None = Field(default=None, ge=1)
    """Most tokens, prompts and completions together, at least 1; None does not limit them."""
    budget_cost: float | None = Field(default=None, gt=0.0)
    """Most money in `currency`, above 0; needs both prices; None does not limit it."""
    currency: str = Field(default="USD", min_length=1, max_length=8)
    """Of prices and budget; a name to show, nothing is converted."""
    price_input: float | None = Field(default=None, ge=0.0)
    """Price of a million prompt tokens in `currency`, at least 0; None is unknown."""
    price_output: float | None = Field(default=None, ge=0.0)
    """Price of a million completion tokens in `currency`, at least 0; None is unknown."""

    @model_validator(mode="after")
    def _address_without_secrets(self) -> EndpointConfig:
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError("base_url: allowed are http and https addresses, such as http://127.0.0.1:8000/v1")
        if url.username is not None or url.password is not None or url.query or url.fragment:
            raise ValueError(
                "base_url: allowed is an address without user, password, query and fragment, because configurations "
                "are stored and shown. Put the key into an environment variable and its name into key_env"
            )
        if self.key_env is not None and not _ENVIRONMENT_NAME.fullmatch(self.key_env):
            raise ValueError(
                "key_env: allowed is the name of an environment variable (letters, digits, underscores), not the key "
                "itself. Export the key under a name such as GENERATOR_KEY and give that name"
            )
        return self

    @model_validator(mode="after")
    def _budgets_can_be_kept(self) -> EndpointConfig:
        if (self.price_input is None) != (self.price_output is None):
            raise ValueError("price_input, price_output: allowed are both or none of them")
        if self.budget_cost is not None and self.price_input is None:
            raise ValueError(
                f"budget_cost: got {self.budget_cost} {self.currency} without prices. Set price_input and price_output "
                "(per million tokens), or limit budget_tokens instead"
            )
        if self.backoff_longest < self.backoff_first:
            raise ValueError(
                f"backoff_longest: got {self.backoff_longest}, allowed is at least backoff_first = {self.backoff_first}"
            )
        return self

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """Return the price in `currency`; None when the prices are not known."""
        if self.price_input is None or self.price_output is None:
            return None
        return (self.price_input * prompt_tokens + self.price_output * completion_tokens) / 1e6


def check_key(config: EndpointConfig) -> str | None:
    """Return the key from the environment; None when the endpoint takes none.

    Raises:
        ConfigError: The variable is missing, empty or holds white space.
    """
    if config.key_env is None:
        return None
    key = os.environ.get(config.key_env, "")
    if not key or any(c.isspace() for c in key):
        state = "is not set" if config.key_env not in os.environ else "is empty" if not key else "holds white space"
        raise ConfigError(
            f"endpoint {config.base_url!r}: the environment variable {config.key_env!r} named by key_env {state}. "
            f"Export the key as {config.key_env}, or leave key_env out for a server that takes none."
        )
    return key
