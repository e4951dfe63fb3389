"""Client of an OpenAI-compatible endpoint with a reply cache and a budget.

All calls of one `complete` share an event loop, so no locks are needed. Each retry is recorded in the ledger and
checked against the budget.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, model_validator

from evaluation.common.data import Frozen, digest_json
from evaluation.common.errors import BudgetError, ConfigError, EndpointError
from evaluation.engines import protocol
from evaluation.engines.ledger import EndpointFailure, EndpointReply, Ledger, Outcome
from evaluation.engines.protocol import Answer, AnswerReader

if TYPE_CHECKING:
    import httpx

RETRIES = 5
"""Retries of a request after transient failures."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Exponential backoff: first and longest wait in seconds."""
LONGEST_RETRY_AFTER = 120.0
"""Longest `Retry-After` honoured, in seconds; a longer one fails the request."""

_NEWER_LIMIT = "max_completion_tokens"
"""Field of the token limit that some hosted models demand in place of `max_tokens`, in a reply with status 400."""
_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TEMPLATE_TOKENS = {"completions": 16, "chat": 128}
"""Allowance for tokens that the server adds: BOS, or a chat template with its default system prompt."""


class EndpointConfig(Frozen):
    """An OpenAI-compatible endpoint: `vllm serve`, a hosted model, or any other server of the protocol."""

    # Error messages must not repeat a key pasted into the wrong field.
    model_config = ConfigDict(hide_input_in_errors=True)

    base_url: str = Field(min_length=1)
    """http or https URL including the version, such as `http://127.0.0.1:8000/v1`; no key, user or query."""
    model: str = Field(min_length=1)
    """Model name on the server."""
    key_env: str | None = None
    """Name of the environment variable with the key; None sends no key."""
    api: Literal["completions", "chat"] = "completions"
    """`completions` continues the prompt; `chat` sends it as a user message, for instruction-tuned models."""
    concurrency: int = Field(default=8, ge=1, le=256)
    """Concurrent calls, in [1, 256]."""
    budget_tokens: int | None = Field(default=None, ge=1)
    """Token budget, prompts and completions together, at least 1; None is unlimited."""

    @model_validator(mode="after")
    def _consistent(self) -> EndpointConfig:
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


def check_key(config: EndpointConfig) -> str | None:
    """Return the key, None without `key_env`; ConfigError if the variable is missing, empty or has white space."""
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


@dataclass(frozen=True, slots=True)
class EndpointRequest:
    """A request for one completion."""

    prompt: str
    max_tokens: int
    """At least 1."""
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    """Sampling seed, if the server supports it; None sends none."""
    index: int = 0
    """Distinguishes otherwise equal requests."""
    stop: str | None = None
    """Text before which `completions` end; a chat's end with the turn, and some models behind it refuse it."""

    def digest(self, config: EndpointConfig) -> str:
        """Return the SHA-256 of the request with the endpoint's address, model and protocol."""
        numbers = {"temperature": float(self.temperature), "top_p": float(self.top_p)}
        server = {"base_url": config.base_url.rstrip("/"), "model": config.model, "api": config.api}
        # Replies are found under the key that they were stored under, in which a schema had a place.
        content = {name: value for name, value in asdict(self).items() if name != "stop" or value is not None}
        return digest_json(content | {"schema": None} | numbers | server)

    def most(self, config: EndpointConfig) -> int:
        """Return an upper bound of the tokens of one call."""
        return _TEMPLATE_TOKENS[config.api] + most_tokens(self.prompt) + self.max_tokens

    def body(self, config: EndpointConfig, token_limit: str = "max_tokens") -> dict[str, Any]:
        """Return the request in the endpoint's protocol."""
        body: dict[str, Any] = {
            "model": config.model,
            token_limit: self.max_tokens,
            # Always sent: servers default to the model's recommended sampling settings.
            "temperature": self.temperature,
            "top_p": self.top_p,
        }
        if config.api == "chat":
            body["messages"] = [{"role": "user", "content": self.prompt}]
        else:
            body["prompt"] = self.prompt
            body |= {} if self.stop is None else {"stop": [self.stop]}
        if self.seed is not None:
            body["seed"] = self.seed
        return body


def most_tokens(text: str) -> int:
    """Return an upper bound of the number of tokens: the number of bytes."""
    return len(text.encode("utf-8", "surrogatepass"))


class Endpoint:
    """Requests completions from a server; every call and reply is recorded in the ledger."""

    def __init__(self, config: EndpointConfig, ledger: Ledger) -> None:
        """Check the key (ConfigError if it is missing); the caller closes the ledger."""
        self._config, self._ledger, self._key = config, ledger, check_key(config)

    def complete(self, requests: Sequence[EndpointRequest]) -> list[Outcome]:
        """Return the outcome of each request, in order.

        Stored replies are reused and equal requests are made once. Transient failures are retried; a permanent one is
        the outcome of its request alone and is not stored.

        Raises:
            BudgetError: The next call could exceed the budget; calls in flight are completed and stored.
            EndpointError: The server rejects all calls, or the ledger is unusable; calls in flight are stored.
        """
        from anyio.from_thread import start_blocking_portal

        digests = [request.digest(self._config) for request in requests]
        outcomes: dict[str, Outcome] = dict(self._ledger.find(list(dict.fromkeys(digests))))
        missing = {d: request for d, request in zip(digests, requests, strict=True) if d not in outcomes}
        if missing:
            # A loop in another thread also serves callers inside a running loop; an interrupt cancels the calls.
            with start_blocking_portal(name="endpoint") as portal:
                outcomes |= portal.call(_Batch(self._config, self._ledger, self._key, missing).run)
        return [outcomes[digest] for digest in digests]

    def check(self) -> None:
        """Request the server's list of models; EndpointError if unreachable, unauthorised or without this model."""
        import httpx

        where = f"endpoint {self._config.base_url!r}"
        try:
            with httpx.Client(**_client_options(self._config, self._key)) as client:
                names = sorted(model["id"] for model in client.get("models").raise_for_status().json()["data"])
        except (ValueError, TypeError, KeyError):
            return  # the server does not list its models
        except httpx.HTTPError as error:
            if isinstance(error, httpx.HTTPStatusError) and error.response.status_code in (404, 405, 501):
                return
            answer = AnswerReader(self._config, self._key).error(error)
            said = (answer.stop or getattr(answer.outcome, "detail", "")).rstrip(".")
            raise EndpointError(
                f"{where}: no valid response: {said}. Check base_url and that the server is running."
            ) from error
        if self._config.model not in names:
            shown = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
            raise EndpointError(
                f"{where}: no model {self._config.model!r}, available: {shown or 'none'}. Set model to one of these."
            )


def _client_options(config: EndpointConfig, key: str | None) -> dict[str, Any]:
    """Return the options of an HTTP client; redirects, which could leak the key, stay off."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return {"base_url": config.base_url, "headers": headers, "timeout": protocol.TIMEOUT}


class _Batch:
    """The distinct requests of one `complete` without a stored reply, by digest."""

    def __init__(
        self, config: EndpointConfig, ledger: Ledger, key: str | None, requests: Mapping[str, EndpointRequest]
    ) -> None:
        self._config, self._ledger, self._key, self._requests = config, ledger, key, requests
        self._reader = AnswerReader(config, key)
        self._outcomes: dict[str, Outcome] = {}
        self._in_flight = 0
        self._token_limit = "max_tokens"
        self._error: Exception | None = None

    async def run(self) -> dict[str, Outcome]:
        """Return all outcomes; a fatal error is raised after the calls in flight have ended."""
        import httpx

        self._freed, self._stopped = asyncio.Event(), asyncio.Event()
        waiting = iter(self._requests.items())
        limits = httpx.Limits(max_connections=self._config.concurrency)
        async with httpx.AsyncClient(**_client_options(self._config, self._key), limits=limits) as client:
            workers = min(self._config.concurrency, len(self._requests))
            await asyncio.gather(*(self._work(client, waiting) for _ in range(workers)))
        if self._error is not None:
            raise self._error
        return self._outcomes

    async def _work(self, client: httpx.AsyncClient, waiting: Iterator[tuple[str, EndpointRequest]]) -> None:
        """Process requests until none is left or the run is stopped."""
        for digest, request in waiting:
            try:
                outcome = await self._ask(client, digest, request)
                if outcome is not None:
                    self._outcomes[digest] = outcome
            except Exception as error:  # calls in flight must still be stored
                self._error = self._error or error
                self._stopped.set()
                self._freed.set()
            if self._stopped.is_set():
                return

    async def _ask(self, client: httpx.AsyncClient, digest: str, request: EndpointRequest) -> Outcome | None:
        """Return the outcome of a request after its retries; None if the run was stopped before."""
        for attempt in count():
            call = await self._begin(digest, request)
            if call is None:
                return None
            answer = await self._call(client, call, digest, request)
            if answer.stop:
                raise EndpointError(
                    f"endpoint {self._config.base_url!r}, model {self._config.model!r}: {answer.stop} "
                    f"{self._ledger.stored()} replies are stored in {str(self._ledger.path)!r}; run the same command "
                    "again to continue."
                )
            if not answer.transient or attempt == RETRIES or answer.wait > LONGEST_RETRY_AFTER:
                return answer.outcome
            # Jitter of up to half desynchronises the retries; it affects nothing but timing.
            backoff = min(FIRST_WAIT * 2.0**attempt, LONGEST_WAIT) * random.uniform(0.5, 1.0)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), max(answer.wait, backoff))
        return None  # never reached: the retries end the loop

    async def _begin(self, digest: str, request: EndpointRequest) -> int | None:
        """Return the id of a call that fits the budget, waiting for calls in flight; None if the run was stopped."""
        config, most = self._config, request.most(self._config)
        while not self._stopped.is_set():
            call = self._ledger.begin(digest, config.model, most, config.budget_tokens)
            if call is not None:
                self._in_flight += 1
                return call
            if not self._in_flight:
                raise BudgetError(self._over_budget(most))
            self._freed.clear()
            await self._freed.wait()
        return None

    async def _call(self, client: httpx.AsyncClient, call: int, digest: str, request: EndpointRequest) -> Answer:
        """Make one call and settle it in the ledger, whatever its result."""
        import httpx

        config = self._config
        try:
            # The client's own timeout applies to each read only.
            async with asyncio.timeout(protocol.TIMEOUT):
                path = "chat/completions" if config.api == "chat" else "completions"
                response = await client.post(path, json=request.body(config, self._token_limit))
                if response.status_code == 400 and _NEWER_LIMIT in response.text:
                    self._token_limit = _NEWER_LIMIT
                    response = await client.post(path, json=request.body(config, self._token_limit))
            answer = self._reader.body(response.raise_for_status().text, request.max_tokens)
        except (httpx.HTTPError, TimeoutError) as error:
            answer = self._reader.error(error)
        except BaseException as error:
            detail = f"{type(error).__name__}: the call was in flight"
            self._ledger.fail(call, EndpointFailure("interrupted", detail), free=False)
            raise
        finally:
            self._in_flight -= 1
            self._freed.set()
        if isinstance(answer.outcome, EndpointReply):
            return answer._replace(outcome=self._ledger.keep(call, digest, answer.outcome))
        self._ledger.fail(call, answer.outcome, usage=answer.usage, free=answer.free)
        return answer

    def _over_budget(self, most: int) -> str:
        config, spent, budget = self._config, self._ledger.spent(), self._config.budget_tokens
        unsettled = f"; {spent.unsettled} calls of unknown usage count with their maximum" if spent.unsettled else ""
        return (
            f"endpoint {config.base_url!r}, model {config.model!r}: the budget allows no further call: {spent.tokens} "
            f"of {budget} tokens are spent, the next call may use {most}{unsettled}. {self._ledger.stored()} replies "
            f"are stored in {str(self._ledger.path)!r}. Raise budget_tokens (now {budget}) and run the same command "
            "again; stored replies are reused at no cost."
        )
