"""Classification of an OpenAI-compatible server's responses: reply, failure, or end of the run."""

from __future__ import annotations

import re
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from evaluation.engines.ledger import UNKNOWN, EndpointFailure, EndpointReply, FailureReason, Outcome, Usage

if TYPE_CHECKING:
    import httpx

    from evaluation.engines.endpoint import EndpointConfig

TIMEOUT = 300.0
"""Longest call in seconds."""
_DETAIL = 300
"""Maximum length of a detail, in characters."""
_STOPS = ("", "stop", "eos", "eos_token", "end_turn", "stop_sequence", "end", "complete")
_LENGTHS = ("length", "max_tokens", "max_length", "max_output_tokens", "model_length")
"""What servers call the ends of completions, in lower case; empty for null."""
_BROKEN = ("abort", "aborted", "cancelled", "canceled", "error", "insufficient_system_resource")
"""Ends of completions that the server broke off."""
_TOO_LONG = re.compile(
    r"context[ _](length|window|size)|maximum model length|(prompt|input|request) (is |was )?too (long|large)",
    re.IGNORECASE,
)
"""Messages for a too long prompt; few servers send the protocol's code `context_length_exceeded`."""


def _or_none(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    try:
        return check(value)
    except ValidationError:
        return None


_Lenient = WrapValidator(_or_none)
"""Anything else counts as absent: a text that was paid for is not refused for what stands beside it."""
_Count = Annotated[Annotated[int, Field(ge=0)] | None, _Lenient]


class _Usage(BaseModel):
    prompt_tokens: _Count = None
    completion_tokens: _Count = None


class _Message(BaseModel):
    content: str | list[Any] | None = None
    reasoning_content: Any = None
    reasoning: Any = None

    @property
    def written(self) -> str | None:
        """The text, without parts that are no text, such as reasoning."""
        if not isinstance(self.content, list):
            return self.content
        parts = [each if isinstance(each, dict) else {"type": "text", "text": each} for each in self.content]
        texts = [each.get("text") for each in parts if each.get("type", "text") in ("text", "output_text")]
        return "".join(text for text in texts if isinstance(text, str))


class _Choice(BaseModel):
    finish_reason: Annotated[str | None, _Lenient] = None
    text: str | None = None
    message: _Message | None = None


class _Body(BaseModel):
    choices: list[_Choice] | None
    usage: Annotated[_Usage | None, _Lenient] = None
    model: Annotated[str | None, _Lenient] = None


class Answer(NamedTuple):
    """The result of one call."""

    outcome: Outcome
    usage: Usage = UNKNOWN
    """As reported by the server, also for failures."""
    transient: bool = False
    """A failure that a retry may fix."""
    free: bool = False
    """The server did no billable work."""
    wait: float = 0.0
    """`Retry-After` in seconds."""
    stop: str = ""
    """Why no call can succeed, with the next step; empty otherwise."""


class AnswerReader:
    """Classifies responses of one endpoint, with the key removed from all messages."""

    def __init__(self, config: EndpointConfig, key: str | None) -> None:
        self._config = config
        self._key = key

    def body(self, text: str, most: int | None = None) -> Answer:
        """Classify the body of a successful response to a request for at most `most` tokens (None: any number)."""
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
        choice, message = body.choices[0], body.choices[0].message or _Message()
        ended = (choice.finish_reason or "").lower()
        if ended == "content_filter":
            return self._failure("content_filtered", "finish_reason content_filter", usage=usage)
        if ended in _BROKEN:
            return self._failure("malformed", f"finish_reason {ended!r}", usage=usage, transient=True)
        how: Literal["stop", "length"] = "length" if ended in _LENGTHS else "stop"
        if ended not in ("stop", "length") and most is not None and (usage.completion_tokens or 0) >= most:
            how = "length"
        note = (
            ""
            if ended in _STOPS + _LENGTHS
            else f"finish_reason {choice.finish_reason!r:.60} is unknown, taken as {how!r}"
        )
        own, other = choice.text, message.written
        if self._config.api == "chat":
            own, other = other, own
        written = own if own is not None else other
        sampled = bool(usage.completion_tokens or message.reasoning_content or message.reasoning)
        if written or (written == "" and how == "stop" and sampled):
            return Answer(EndpointReply(written, how, *usage, body.model or "", note), usage)
        # Tokens without text (such as reasoning up to the limit) would be sampled, and billed, again.
        said = f"no text in {usage.completion_tokens} completion tokens (finish_reason {ended})"
        return self._failure("empty_choice", said, usage=usage, transient=not sampled)

    def error(self, error: httpx.HTTPError | TimeoutError) -> Answer:
        """Classify a call without a complete response, or with an unsuccessful status."""
        import httpx

        if isinstance(error, httpx.HTTPStatusError):
            return self._status(error.response)
        # Without a connection nothing was requested; otherwise the server may have done billable work.
        free = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
        if isinstance(error, TimeoutError | httpx.TimeoutException):
            said = f"no complete answer within {TIMEOUT:g} s"
            return self._failure("timeout", said, transient=True, free=free)
        return self._failure("connection", f"{type(error).__name__}: {error}", transient=True, free=free)

    def _status(self, response: httpx.Response) -> Answer:
        status, whole = response.status_code, response.text
        try:
            found = response.json()["error"]
            code, kind = found.get("code"), found.get("type")
        except (ValueError, LookupError, TypeError, AttributeError):  # not in the protocol's form
            code = kind = None
        said = f"status {status}: {whole}"
        if status in (400, 413, 422) and (code == "context_length_exceeded" or _TOO_LONG.search(whole)):
            return self._failure("prompt_too_long", said, free=True)
        if status == 400 and "content_filter" in (code, kind):
            return self._failure("content_filtered", said, free=True)
        transient: FailureReason | None = None
        if status == 429 and code != "insufficient_quota":
            transient = "rate_limited"
        elif status == 408:
            transient = "timeout"
        elif status == 409 or status >= 500:
            transient = "server_error"
        if transient is not None:
            wait = _seconds(response.headers.get("retry-after", ""))
            return self._failure(transient, said, transient=True, free=True, wait=wait)
        stop = self._without_key(f"{said[:_DETAIL]}. {self._next_step(status)}")
        return self._failure("refused", said, free=True, stop=stop)

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

    def _failure(self, reason: FailureReason, detail: str, **found: Any) -> Answer:
        return Answer(EndpointFailure(reason, self._without_key(detail)[:_DETAIL]), **found)

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _seconds(retry_after: str) -> float:
    """Return the seconds of a `Retry-After` header: a number or a date (RFC 9110, section 10.2.3), else 0."""
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (TypeError, ValueError):
            return 0.0
    return max(0.0, seconds)
