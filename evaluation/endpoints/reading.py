"""What a server's answer means: a reply, a failure of this request that may pass or not, or the end of the run."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import BaseModel, Field, ValidationError

from evaluation.endpoints.config import EndpointConfig
from evaluation.endpoints.records import (
    UNKNOWN,
    EndpointFailure,
    EndpointFailureReason,
    EndpointReply,
    Outcome,
    Usage,
)

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAIError

_DETAIL = 300
"""Longest detail in characters."""
_TOO_LONG = re.compile(
    r"context[ _](length|window|size)|maximum model length|(prompt|input|request) (is |was )?too (long|large)",
    re.IGNORECASE,
)
"""How servers say that a prompt does not fit; the protocol has a code for it, `context_length_exceeded`, which few
send."""


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


class _Named(BaseModel):
    id: str


class _Models(BaseModel):
    data: list[_Named]


class Answer(NamedTuple):
    """What became of one call."""

    outcome: Outcome
    usage: Usage = UNKNOWN
    """As the server told it, for failures too."""
    may_pass: bool = False
    """A failure that another call may mend."""
    free: bool = False
    """The server did no work on it, or none that anyone bills."""
    wait: float | None = None
    """Seconds that the server asks to wait before another call."""
    stop: str = ""
    """Why no call at all will succeed, and what to do; empty when others may."""


class AnswerReader:
    """Reads answers of one endpoint; the key never shows in what it returns."""

    def __init__(self, config: EndpointConfig, key: str | None) -> None:
        """Take the endpoint and the key that its answers may repeat."""
        self._config = config
        self._key = key

    def body(self, text: str) -> Answer:
        """Return the meaning of a body that came with status 200."""
        try:
            body = _Body.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            said = f"{place}: {first['msg']}".lstrip(": ")
            return self._failure("malformed", f"{said}, in {text[:120]!r}", may_pass=True)
        told = body.usage or _Usage()
        usage = Usage(told.prompt_tokens, told.completion_tokens)
        if not body.choices:
            return self._failure("empty_choice", "the answer holds no choice", usage=usage, may_pass=True)
        choice = body.choices[0]
        text_or_none = choice.text if self._config.api == "completions" else choice.message.content
        return self._choice(choice.finish_reason, text_or_none, usage, body.model or "")

    def error(self, error: OpenAIError | TimeoutError) -> Answer:
        """Return the meaning of a call that ended without a body, or with another status than 200."""
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        if isinstance(error, APIStatusError):
            return self._status(error)
        cause = error.__cause__ or error
        # Where no connection came about, nothing was asked; otherwise the server may have worked, and bill it.
        free = type(cause).__name__ in ("ConnectError", "ConnectTimeout")
        if isinstance(error, TimeoutError | APITimeoutError):
            said = f"no complete answer within {self._config.timeout:g} s"
            return self._failure("timeout", said, may_pass=True, free=free)
        said = f"{type(cause).__name__}: {cause}" if isinstance(error, APIConnectionError) else str(error)
        return self._failure("connection", said, may_pass=True, free=free)

    def without(self, text: str) -> str:
        """Return a text without the key."""
        return text.replace(self._key, "***") if self._key else text

    def _choice(self, ended: str | None, text: str | None, usage: Usage, model: str) -> Answer:
        if ended == "content_filter":
            return self._failure("content_filtered", "finish_reason content_filter", usage=usage)
        if ended not in ("stop", "length"):
            said = f"finish_reason {ended!r}, allowed are stop, length and content_filter"
            return self._failure("malformed", said, usage=usage, may_pass=True)
        sampled = bool(usage.completion_tokens)
        if text or (text == "" and ended == "stop" and sampled):
            cost = None
            if usage.prompt_tokens is not None and usage.completion_tokens is not None:
                cost = self._config.cost(usage.prompt_tokens, usage.completion_tokens)
            how: Literal["stop", "length"] = "stop" if ended == "stop" else "length"
            return Answer(EndpointReply(text, how, *usage, cost, model), usage)
        # What was sampled without becoming text (reasoning that filled the length) would be sampled, and paid, again.
        said = f"no text in {usage.completion_tokens} completion tokens (finish_reason {ended})"
        return self._failure("empty_choice", said, usage=usage, may_pass=not sampled)

    def _status(self, error: APIStatusError) -> Answer:
        status, said = error.status_code, f"{error.message}"
        wait = _retry_after(error.response.headers)
        if status in (400, 413, 422) and (error.code == "context_length_exceeded" or _TOO_LONG.search(_whole(error))):
            return self._failure("prompt_too_long", said, free=True)
        if status == 400 and "content_filter" in (error.code, error.type):
            return self._failure("content_filtered", said, free=True)
        if status == 429 and error.code != "insufficient_quota":
            return self._failure("rate_limited", said, may_pass=True, free=True, wait=wait)
        if status == 408:
            return self._failure("timeout", said, may_pass=True, free=True, wait=wait)
        if status == 409 or status >= 500:
            return self._failure("server_error", said, may_pass=True, free=True, wait=wait)
        stop = self.without(f"{said[:_DETAIL]}. {self._next_step(status)}")
        return self._failure("refused", said, free=True)._replace(stop=stop)

    def _next_step(self, status: int) -> str:
        config = self._config
        if status in (401, 403):
            held = f"the key in {config.key_env}" if config.key_env else "key_env, which is not set"
            return f"Check {held}."
        if status == 404:
            return f"Check that the server knows the model {config.model!r} and that base_url ends as it wants (/v1)."
        if status == 429:
            return "The account's quota is used up; raise it with the provider."
        if status < 400:
            return "Set base_url to the address that the server redirects to."
        return "Check model, api and the sampling settings against what this server takes."

    def _failure(
        self,
        reason: str,
        detail: str,
        *,
        usage: Usage = UNKNOWN,
        may_pass: bool = False,
        free: bool = False,
        wait: float | None = None,
    ) -> Answer:
        shown = self.without(detail)[:_DETAIL]
        return Answer(EndpointFailure(EndpointFailureReason(reason), shown), usage, may_pass, free, wait)


def model_names(text: str) -> list[str] | None:
    """Return the names in a server's list of models; None where the body is no such list."""
    try:
        return [model.id for model in _Models.model_validate_json(text).data]
    except ValidationError:
        return None


def _whole(error: APIStatusError) -> str:
    """Return the message and all else that the server said, since the message's place differs between servers."""
    return f"{error.message} {json.dumps(error.body, default=str)}"


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
