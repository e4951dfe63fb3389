"""How a request goes over the wire: the client, what it sends, and what it must not send."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evaluation.endpoints.config import EndpointConfig
from evaluation.endpoints.records import EndpointRequest

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_HEADERS = frozenset(
    ("accept", "accept-encoding", "authorization", "connection", "content-length", "content-type", "host", "user-agent")
)
_CLIENTS_OWN = "x-stainless-"


def open_client(config: EndpointConfig, key: str | None) -> AsyncOpenAI:
    """Return a client that sends `key` or none at all, and never retries by itself.

    The client would take keys, organization, project and arbitrary headers from `OPENAI_*` variables, which are meant
    for another server; all that is not on a short list is taken off. Redirects are not followed, since they could lead
    a key elsewhere. Retries are the caller's, because each is a call to be counted and to be checked against a budget.
    """
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    async def without_strangers(request: Any) -> None:
        for name in list(request.headers):
            if (name not in _HEADERS and not name.startswith(_CLIENTS_OWN)) or (name == "authorization" and not key):
                del request.headers[name]

    http = DefaultAsyncHttpxClient(event_hooks={"request": [without_strangers]}, follow_redirects=False)
    authorization = {"Authorization": f"Bearer {key}"} if key else {}
    return AsyncOpenAI(
        api_key=key or "none",
        base_url=config.base_url,
        timeout=config.timeout,
        max_retries=0,
        default_headers=authorization,
        http_client=http,
    )


async def post(client: AsyncOpenAI, config: EndpointConfig, request: EndpointRequest) -> str:
    """Return the body of the server's answer, as it came.

    Raises:
        openai.OpenAIError: There is no answer, or one with another status than 200.
    """
    rest: dict[str, Any] = {
        config.token_limit: request.max_tokens,
        # Sent even where they are neutral: servers fill gaps with what the model's authors recommend.
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


async def listed_models(client: AsyncOpenAI) -> str:
    """Return the body of the server's list of models, as it came.

    Raises:
        openai.OpenAIError: There is no answer, or one with another status than 200.
    """
    return (await client.models.with_raw_response.list()).text
