"""What is asked of an endpoint and what comes back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, NamedTuple, TypeAlias

from evaluation.digests import digest_json
from evaluation.endpoints.config import EndpointConfig

_TEMPLATE_TOKENS = {"completions": 16, "chat": 128}
"""Room for what a server adds to a prompt: the opening token, or a chat template with its default instruction."""


class EndpointFailureReason(StrEnum):
    """Why one request has no reply, while others may."""

    TIMEOUT = "timeout"
    """No complete answer within the time allowed for a call."""
    CONNECTION = "connection"
    """The server could not be reached, or the connection broke."""
    RATE_LIMITED = "rate_limited"
    """Still told to wait after the last retry, or to wait for longer than is allowed."""
    SERVER_ERROR = "server_error"
    """The server failed (status 409 or 500 and above)."""
    MALFORMED = "malformed"
    """The body is not the JSON of the protocol, or the completion did not end in a known way."""
    EMPTY_CHOICE = "empty_choice"
    """The answer holds no completion, or none with text in it."""
    CONTENT_FILTERED = "content_filtered"
    """The provider's filter withheld the completion or refused the prompt."""
    PROMPT_TOO_LONG = "prompt_too_long"
    """Prompt and longest completion do not fit the model's context together."""
    INTERRUPTED = "interrupted"
    """The run was stopped while the call was in flight; only the ledger knows of these."""
    REFUSED = "refused"
    """The server refused the call for good, which stopped the run; only the ledger knows of these."""


@dataclass(frozen=True, slots=True)
class EndpointRequest:
    """One completion to ask for."""

    prompt: str
    max_tokens: int
    """Longest completion in tokens, at least 1."""
    temperature: float = 1.0
    """Divides the logits, at least 0."""
    top_p: float = 1.0
    """Share of probability kept, in (0, 1]."""
    seed: int | None = None
    """Of the sampling, where the server heeds it; None sends none."""
    index: int = 0
    """Tells apart requests that are otherwise the same: each is asked for, and stored, on its own."""
    schema: Mapping[str, Any] | None = None
    """JSON schema that the completion must follow."""
    system: str = ""
    """Instruction before the prompt; `chat` only."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens: got {self.max_tokens}, allowed is at least 1")

    def digest(self, config: EndpointConfig) -> str:
        """Return the SHA-256 of all that decides the reply: the endpoint's address, model and protocol, and this."""
        asked = {
            "base_url": config.base_url.rstrip("/"),
            "model": config.model,
            "api": config.api,
            "prompt": self.prompt,
            "system": self.system,
            "max_tokens": self.max_tokens,
            "temperature": float(self.temperature),
            "top_p": float(self.top_p),
            "seed": self.seed,
            "index": self.index,
            "schema": None if self.schema is None else dict(self.schema),
        }
        return digest_json(asked)

    def most_prompt_tokens(self, api: Literal["completions", "chat"]) -> int:
        """Return a number of tokens that the prompt stays below: byte-level tokenizers make at most one of a byte."""
        schema = "" if self.schema is None else json.dumps(dict(self.schema))
        return _TEMPLATE_TOKENS[api] + sum(most_tokens(text) for text in (self.prompt, self.system, schema))


def most_tokens(text: str) -> int:
    """Return the most tokens that a byte-level tokenizer makes of a text: one for each byte."""
    return len(text.encode("utf-8", "surrogatepass"))


@dataclass(frozen=True, slots=True)
class EndpointReply:
    """A completion."""

    text: str
    """Empty only where the server says that the model ended at once."""
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int | None
    """As the server counts; None when it does not tell."""
    completion_tokens: int | None
    """As the server counts; None when it does not tell."""
    cost: float | None
    """Of the call when it was made, by the configured prices; a reply from the ledger costs nothing again. None when
    prices or tokens are unknown."""
    model: str
    """The model that answered, as the server calls it; empty when it does not tell."""
    from_ledger: bool = False
    """Answered before, by this run or another one with the same ledger."""


@dataclass(frozen=True, slots=True)
class EndpointFailure:
    """A request without a reply, after all retries."""

    reason: EndpointFailureReason
    """Of the last call."""
    detail: str
    """What the server or the network said, without the key."""


Outcome: TypeAlias = EndpointReply | EndpointFailure


class Usage(NamedTuple):
    """Tokens of one call, as the server counts them; None where it does not tell."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


UNKNOWN = Usage()
"""Of a call of which nothing is known."""


class Spent(NamedTuple):
    """What the calls of a scope took, retries and killed processes included."""

    calls: int
    """Calls made, whatever came of them."""
    failures: int
    """Calls that brought no reply."""
    unsettled: int
    """Calls whose use the server did not tell: in flight, cut off by a kill, timed out or broken. Each counts with the
    most that it can have used, so `tokens` and `cost` are upper bounds where this is not 0."""
    prompt_tokens: int
    """As told by the server."""
    completion_tokens: int
    """As told by the server."""
    tokens: int
    """What counts against a budget of tokens."""
    cost: float | None
    """What counts against a budget of money, in `currency`; None when there are calls without known prices."""
    currency: str
    seconds: float
    """Time of all finished calls together; calls at the same time each count."""
