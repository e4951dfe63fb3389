"""The embedded engine: a server with those of vLLM's paths that `preceptor serve` uses, where vLLM is not installed.

It opens the base once, in a bank, and writes as `preceptor ask` does. Requests that wait for the same adapter, length
and ends share a pass, at most 64 prompts of them. A stream is sent when its completion is known.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
import uvicorn
from pydantic import Field, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from evaluation.common.data import Frozen
from evaluation.common.errors import ModelError
from evaluation.exact_match import prompt_ids
from evaluation.generation import Decode, up_to_end
from pipelines.ask.answers import Vocabulary
from pipelines.process import prepare_process
from pipelines.serve.requests import CHAT, COMPLETIONS, Front, Metrics, refusal

if TYPE_CHECKING:
    from student.adapters import Adapter
    from student.bank.bank import LoraBank
    from student.bank.scoring import Written

_LARGEST_BATCH = 64
_NEUTRAL = {"n": 1, "best_of": 1, "top_p": 1, "echo": False, "presence_penalty": 0, "frequency_penalty": 0}
"""Values of other parameters that change nothing, so that clients may send them."""

_FEW = 8
"""Tokens before one that its text may depend on."""

Token = Annotated[int, Field(ge=0)]


class CompletionRequest(Frozen):
    """What a client can ask for; vLLM knows more."""

    model: str
    prompt: str | tuple[Token, ...] | tuple[str, ...] | tuple[tuple[Token, ...], ...]
    """Texts or tokens; each prompt gets one completion."""
    max_tokens: int = Field(default=16, ge=1)
    temperature: float = Field(default=1.0, ge=0.0, le=2.0)
    """0 is greedy."""
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    """Of what is drawn, which depends on nothing else that is computed together; None draws one."""
    logprobs: int | None = Field(default=None, ge=0, le=20)
    """Likeliest tokens to report at each place; None reports no log-probabilities."""
    stop: str | tuple[str, ...] = ()
    stop_token_ids: tuple[Token, ...] = ()
    """Beside the model's own."""
    ignore_eos: bool = False
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False
    stream: bool = False
    user: str = ""

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> CompletionRequest:
        """Return the request; HTTPException 400 for what is missing, wrong, or not supported."""
        given = {k: v for k, v in content.items() if v is not None and (k not in _NEUTRAL or v != _NEUTRAL[k])}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            wrong = {str(each["loc"][0]): each["msg"] for each in error.errors()}
            unknown = [name for name in wrong if name not in cls.model_fields]
            said = "; ".join(f"{name}: {what}" for name, what in wrong.items() if name not in unknown)
            refused = f"{', '.join(unknown)}: not supported by the embedded engine; vLLM has it (--engine vllm)"
            raise HTTPException(400, "; ".join(filter(None, (said, refused if unknown else "")))[:400]) from error


class Kind(NamedTuple):
    """What prompts of one pass have in common."""

    adapter: Adapter | None
    max_tokens: int
    top: int
    ends: frozenset[int]
    stops: tuple[str, ...]


class Waiting(NamedTuple):
    """A prompt that waits for a pass."""

    kind: Kind
    prompt: tuple[int, ...]
    draw: tuple[float, int]
    """Temperature and seed."""
    written: asyncio.Future[Written]


class EmbeddedEngine:
    """One base in an open bank, adapters by name, and the prompts that wait for a pass."""

    def __init__(self, bank: LoraBank, vocabulary: Vocabulary) -> None:
        self._bank, self._vocabulary = bank, vocabulary
        self._adapters: dict[str, Adapter | None] = {"base": None}
        self._waiting: list[Waiting] = []
        self._came = asyncio.Event()

    async def work(self) -> None:
        """Write for the prompt that waits longest, together with those of its kind, again and again."""
        while True:
            await self._came.wait()
            kind = self._waiting[0].kind
            alike = [each for each in self._waiting if each.kind == kind]
            batch, later = alike[:_LARGEST_BATCH], alike[_LARGEST_BATCH:]
            self._waiting = [each for each in self._waiting if each.kind != kind] + later
            if not self._waiting:
                self._came.clear()
            try:
                rows = await asyncio.to_thread(self._write, kind, batch)
            except Exception as error:  # such as no memory: the next batch may be smaller
                for each in batch:
                    each.written.set_exception(HTTPException(500, f"{type(error).__name__}: {error}"))
                continue
            for each, written in zip(batch, rows, strict=True):
                each.written.set_result(written)

    def _write(self, kind: Kind, batch: Sequence[Waiting]) -> list[Written]:
        from student.bank.scoring import Decoding, ScoringFailure, TokenChoice

        decoding = Decoding(TokenChoice([each.draw for each in batch], kind.top), kind.ends, kind.stops)
        prompts, most = [[each.prompt for each in batch]], kind.max_tokens
        tokenizer = self._vocabulary.tokenizer
        (rows,) = self._bank.write([kind.adapter], prompts, tokenizer, max_new_tokens=most, decoding=decoding)
        if isinstance(rows, ScoringFailure):
            raise ModelError(rows.reason)
        return rows

    async def load(self, request: Request) -> Response:
        """Load the adapter in `lora_path` under the name `lora_name`."""
        from student.adapters import load_adapter

        content = await request.json()
        try:
            adapter = await asyncio.to_thread(load_adapter, Path(content["lora_path"]))
        except (ModelError, OSError, ValueError, KeyError) as error:
            raise HTTPException(400, f"the adapter cannot be loaded: {error}") from error
        # A base in another number format has another digest; whether the adapter is computed right, the proof says.
        self._adapters[str(content["lora_name"])] = replace(adapter, base_digest="")
        return PlainTextResponse("loaded")

    async def unload(self, request: Request) -> Response:
        """Forget the adapter `lora_name`; prompts that wait for it keep it."""
        self._adapters.pop(str((await request.json())["lora_name"]), None)
        return PlainTextResponse("unloaded")

    async def complete(self, request: Request) -> Response:
        """Answer a request for completions in the form of OpenAI's API, with vLLM's `token_ids`."""
        tokenizer, asked = self._vocabulary.tokenizer, CompletionRequest.read(await request.json())
        waiting = self._prompts(asked)
        self._waiting.extend(waiting)
        self._came.set()
        texts = await asyncio.gather(*(each.written for each in waiting))
        choices = [_choice(asked, each.kind, text, tokenizer) for each, text in zip(waiting, texts, strict=True)]
        read, written = sum(len(each.prompt) for each in waiting), sum(each.pop("count") for each in choices)
        reply = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": asked.model,
            "choices": [{"index": i, **choice} for i, choice in enumerate(choices)],
            "usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written},
        }
        if asked.stream:
            return StreamingResponse(completion_events(reply), media_type="text/event-stream")
        return JSONResponse(reply)

    def _prompts(self, asked: CompletionRequest) -> list[Waiting]:
        """Return what a request asks for; HTTPException 400 or 404 for what cannot be written."""
        if asked.model not in self._adapters:
            raise HTTPException(404, f"the model {asked.model[:200]!r} does not exist")
        tokenizer, longest, own_ends = self._vocabulary
        prompts: Any = asked.prompt
        if isinstance(prompts, str) or any(isinstance(part, int) for part in prompts):
            prompts = [prompts]
        encoded = [tuple(prompt_ids(tokenizer, each) if isinstance(each, str) else each) for each in prompts]
        if not encoded or not all(encoded) or max(map(max, encoded)) >= len(tokenizer):
            raise HTTPException(400, f"prompt: must be texts or tokens below {len(tokenizer)}, none of them empty")
        if longest is not None and (most := max(map(len, encoded)) + asked.max_tokens) > longest:
            raise HTTPException(400, f"prompt and max_tokens are {most} tokens, and the model's context is {longest}")
        ends = frozenset(asked.stop_token_ids) | (frozenset() if asked.ignore_eos else own_ends)
        stops = tuple(filter(None, (asked.stop,) if isinstance(asked.stop, str) else asked.stop))
        kind = Kind(self._adapters[asked.model], asked.max_tokens, asked.logprobs or 0, ends, stops)
        seed = secrets.randbits(60) if asked.seed is None else asked.seed
        draws = [(asked.temperature, seed + number) for number in range(len(encoded))]
        return [Waiting(kind, *each, asyncio.Future()) for each in zip(encoded, draws, strict=True)]


def _choice(asked: CompletionRequest, kind: Kind, written: Written, tokenizer: Any) -> dict[str, Any]:
    """Return a completion up to what ends it."""

    def decode(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode(list(tokens), skip_special_tokens=True))

    def name(token: int) -> str:
        return f"token_id:{token}" if asked.return_tokens_as_token_ids else str(tokenizer.decode([token]))

    ended = up_to_end(written.tokens, kind.ends, kind.stops, decode)
    tokens, values = list(ended.tokens), list(written.log_probabilities[: len(ended.tokens)])
    choice: dict[str, Any] = {"text": ended.text, "finish_reason": ended.reason, "count": len(tokens), "logprobs": None}
    choice |= {"token_ids": tokens} if asked.return_token_ids else {}
    if asked.logprobs is not None:
        # As vLLM does, the token that was taken is among the likeliest ones even where it is none of them.
        tops = [{**top, token: value} for top, token, value in zip(written.tops, tokens, values, strict=False)]
        choice["logprobs"] = {
            "tokens": [name(token) for token in tokens],
            "token_logprobs": values,
            "top_logprobs": [{name(token): value for token, value in top.items()} for top in tops],
            "text_offset": _offsets(tokens, decode),
        }
    return choice


def _offsets(tokens: Sequence[int], decode: Decode) -> list[int]:
    """Return where in the text each token begins; a character may take several tokens, but no more than a few."""
    begins = [0]
    for i in range(1, len(tokens)):
        before = tokens[max(0, i - 1 - _FEW) : i - 1]
        begins.append(begins[-1] + len(decode([*before, tokens[i - 1]])) - len(decode(before)))
    return begins[: len(tokens)]


def completion_events(reply: Mapping[str, Any]) -> Iterator[str]:
    """Yield the same reply as the server-sent events of a stream."""
    for choice in reply["choices"]:
        yield f"data: {json.dumps({**reply, 'choices': [choice]})}\n\n"
    yield "data: [DONE]\n\n"


async def _no_chat(_request: Request) -> Response:
    raise HTTPException(400, f"this engine has no chats of a teacher: use {COMPLETIONS}, or vLLM (--engine vllm)")


def engine_app(engine: EmbeddedEngine, key: str) -> Starlette:
    """Return the HTTP application of an engine; clients need the key."""
    paths = {COMPLETIONS: engine.complete, CHAT: _no_chat}
    paths |= {"/v1/load_lora_adapter": engine.load, "/v1/unload_lora_adapter": engine.unload}
    routes = [Route(path, answer, methods=["POST"]) for path, answer in paths.items()]
    return Starlette(
        routes=[Route("/health", lambda _request: Response()), *routes],
        middleware=[Middleware(Front, metrics=Metrics(), keys={"preceptor": key}, paths=())],
        exception_handlers={HTTPException: refusal},
    )


async def _serve(engine: EmbeddedEngine, port: int) -> None:
    app = engine_app(engine, os.environ["VLLM_API_KEY"])
    settings: dict[str, Any] = {"log_level": "warning", "access_log": False, "lifespan": "off"}
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, **settings))
    working = asyncio.create_task(engine.work())
    await server.serve()
    working.cancel()


def main(model: str, port: int, device: str = "cpu", dtype: str = "float32") -> None:
    """Serve a base on the loopback address until SIGTERM; the environment variable VLLM_API_KEY has the key."""
    prepare_process()
    import torch

    from evaluation.common.checkpoints import load_checkpoint
    from student.bank.bank import LoraBank

    student = load_checkpoint(model, device=device, dtype=getattr(torch, dtype))
    with LoraBank(student.model) as bank:
        asyncio.run(_serve(EmbeddedEngine(bank, Vocabulary.of(student)), port))


if __name__ == "__main__":
    typer.run(main)
