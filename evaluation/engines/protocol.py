"""The OpenAI protocol: client, requests, and classification of responses (reply, failure, or end of the run)."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import BaseModel, Field, ValidationError

from evaluation.engines.ledger import UNKNOWN, EndpointFailure, EndpointReply, FailureReason, Outcome, Usage

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI, OpenAIError

    from evaluation.engines.endpoint import EndpointConfig, EndpointRequest

_HEADERS = frozenset(
    ("accept", "accept-encoding", "authorization", "connection", "content-length", "content-type", "host", "user-agent")
)
"""Allowed headers, beside the client's own `x-stainless-…`."""
_DETAIL = 300
"""Maximum length of a detail, in characters."""
_TOO_LONG = re.compile(
    r"context[ _](length|window|size)|maximum model length|(prompt|input|request) (is |was )?too (long|large)",
    re.IGNORECASE,
)
"""Messages for a too long prompt; few servers send the protocol's code `context_length_exceeded`."""


def open_client(config: EndpointConfig, key: str | None) -> AsyncOpenAI:
    """Return a client that sends `key`, or no key.

    It removes headers that `openai` takes from `OPENAI_*` variables; redirects, which could leak the key, are off.
    """
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    async def remove_headers(request: Any) -> None:
        for name in list(request.headers):
            if not (name in _HEADERS or name.startswith("x-stainless-")) or (name == "authorization" and not key):
                del request.headers[name]

    http = DefaultAsyncHttpxClient(event_hooks={"request": [remove_headers]}, follow_redirects=False)
    return AsyncOpenAI(
        api_key=key or "none",
        base_url=config.base_url,
        timeout=config.timeout,
        max_retries=0,
        default_headers={"Authorization": f"Bearer {key}"} if key else {},
        http_client=http,
    )


async def post(client: AsyncOpenAI, config: EndpointConfig, request: EndpointRequest) -> str:
    """Return the response body; openai.OpenAIError if there is none or the status is not 200."""
    rest: dict[str, Any] = {
        config.token_limit: request.max_tokens,
        # Always sent: servers default to the model's recommended sampling settings.
        "temperature": request.temperature,
        "top_p": request.top_p,
    }
    if request.seed is not None:
        rest["seed"] = request.seed
    if request.schema is not None:
        shape = {"name": "reply", "strict": True, "schema": dict(request.schema)}
        rest["response_format"] = {"type": "json_schema", "json_schema": shape}
    if config.api == "completions":
        completions = client.completions.with_raw_response
        return (await completions.create(model=config.model, prompt=request.prompt, extra_body=rest)).text
    messages: list[Any] = [{"role": "system", "content": request.system}] if request.system else []
    messages.append({"role": "user", "content": request.prompt})
    chat = client.chat.completions.with_raw_response
    return (await chat.create(model=config.model, messages=messages, extra_body=rest)).text


class _Usage(BaseModel):
    prompt_tokens: int | None = Field(default=None, ge=0)
    completion_tokens: int | None = Field(default=None, ge=0)


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    finish_reason: str | None = None
    text: str | None = None
    message: _Message = _Message()


class _Body(BaseModel):
    choices: list[_Choice] | None
    usage: _Usage | None = None
    model: str | None = None


class Answer(NamedTuple):
    """The result of one call."""

    outcome: Outcome
    usage: Usage = UNKNOWN
    """As reported by the server, also for failures."""
    transient: bool = False
    """A failure that a retry may fix."""
    free: bool = False
    """The server did no billable work."""
    wait: float | None = None
    """`Retry-After` in seconds."""
    stop: str = ""
    """Why no call can succeed, with the next step; empty otherwise."""


class AnswerReader:
    """Classifies responses of one endpoint, with the key removed from all messages."""

    def __init__(self, config: EndpointConfig, key: str | None) -> None:
        self._config = config
        self._key = key

    def body(self, text: str) -> Answer:
        """Classify a body with status 200."""
        try:
            body = _Body.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            said = f"{place}: {first['msg']}".lstrip(": ")
            return self._failure("malformed", f"{said}, in {text[:120]!r}", transient=True)
        usage = UNKNOWN if body.usage is None else Usage(**body.usage.model_dump())
        if not body.choices:
            return self._failure("empty_choice", "the answer holds no choice", usage=usage, transient=True)
        choice = body.choices[0]
        written = choice.text if self._config.api == "completions" else choice.message.content
        return self._choice(choice.finish_reason, written, usage, body.model or "")

    def error(self, error: OpenAIError | TimeoutError) -> Answer:
        """Classify a call without a body, or with a status other than 200."""
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        if isinstance(error, APIStatusError):
            return self._status(error)
        cause = error.__cause__ or error
        # Without a connection nothing was requested; otherwise the server may have done billable work.
        free = type(cause).__name__ in ("ConnectError", "ConnectTimeout")
        if isinstance(error, TimeoutError | APITimeoutError):
            said = f"no complete answer within {self._config.timeout:g} s"
            return self._failure("timeout", said, transient=True, free=free)
        said = f"{type(cause).__name__}: {cause}" if isinstance(error, APIConnectionError) else str(error)
        return self._failure("connection", said, transient=True, free=free)

    def _choice(self, ended: str | None, text: str | None, usage: Usage, model: str) -> Answer:
        if ended == "content_filter":
            return self._failure("content_filtered", "finish_reason content_filter", usage=usage)
        if ended != "stop" and ended != "length":
            said = f"finish_reason {ended!r}, allowed are stop, length and content_filter"
            return self._failure("malformed", said, usage=usage, transient=True)
        sampled = bool(usage.completion_tokens)
        if text or (text == "" and ended == "stop" and sampled):
            how: Literal["stop", "length"] = "stop" if ended == "stop" else "length"
            return Answer(EndpointReply(text, how, *usage, self._config.cost(*usage), model), usage)
        # Tokens without text (such as reasoning up to the limit) would be sampled, and billed, again.
        said = f"no text in {usage.completion_tokens} completion tokens (finish_reason {ended})"
        return self._failure("empty_choice", said, usage=usage, transient=not sampled)

    def _status(self, error: APIStatusError) -> Answer:
        status, code, said = error.status_code, error.code, f"{error.message}"
        # The position of the message differs between servers.
        whole = f"{said} {json.dumps(error.body, default=str)}"
        if status in (400, 413, 422) and (code == "context_length_exceeded" or _TOO_LONG.search(whole)):
            return self._failure("prompt_too_long", said, free=True)
        if status == 400 and "content_filter" in (code, error.type):
            return self._failure("content_filtered", said, free=True)
        transient: FailureReason | None = None
        if status == 429 and code != "insufficient_quota":
            transient = "rate_limited"
        elif status == 408:
            transient = "timeout"
        elif status == 409 or status >= 500:
            transient = "server_error"
        if transient is not None:
            wait = _retry_after(error.response.headers)
            return self._failure(transient, said, transient=True, free=True, wait=wait)
        stop = self._without_key(f"{said[:_DETAIL]}. {self._next_step(status)}")
        return self._failure("refused", said, free=True)._replace(stop=stop)

    def _next_step(self, status: int) -> str:
        model, key_env = self._config.model, self._config.key_env
        if status < 400:
            return "Set base_url to the target of the redirect."
        key = f"Check {f'the key in {key_env}' if key_env else 'key_env, which is not set'}."
        return {
            401: key,
            403: key,
            404: f"Check that the server has the model {model!r} and that base_url ends with its version (/v1).",
            429: "The account's quota is exhausted; raise it with the provider.",
        }.get(status, "Check that the server supports this model, api and sampling settings.")

    def _failure(
        self,
        reason: FailureReason,
        detail: str,
        *,
        usage: Usage = UNKNOWN,
        transient: bool = False,
        free: bool = False,
        wait: float | None = None,
    ) -> Answer:
        shown = self._without_key(detail)[:_DETAIL]
        return Answer(EndpointFailure(reason, shown), usage, transient, free, wait)

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a `Retry-After` header, given as a number or a date (RFC 9110, section 10.2.3)."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError):
            return None
    return max(0.0, seconds) if seconds == seconds else None
