"""A plain HTTP server where vLLM would be, for paths that a real one does not take on demand."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from pipelines.serving.child import free_port
from pipelines.serving.server import Http
from pipelines.serving.upstream import Upstream

KEY = os.environ.get("VLLM_API_KEY", "childs-key")


class StandIn:
    """Holds names of adapters, and answers with the name that it was asked for."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.ever: list[str] = []
        self.refuse_loads = False
        self.release = asyncio.Event()
        """Requests with `wait` are answered once this is set."""
        self.given_up = 0
        """Streams whose client left."""

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/health", self._health),
                Route("/v1/load_lora_adapter", self._load, methods=["POST"]),
                Route("/v1/unload_lora_adapter", self._unload, methods=["POST"]),
                Route("/v1/completions", self._complete, methods=["POST"]),
            ]
        )

    async def _health(self, request: Request) -> Response:
        return PlainTextResponse("")

    async def _load(self, request: Request) -> Response:
        name = (await request.json())["lora_name"]
        if self.refuse_loads:
            return JSONResponse({"error": {"message": "out of memory"}}, 500)
        self.loaded.append(name)
        self.ever.append(name)
        return PlainTextResponse("ok")

    async def _unload(self, request: Request) -> Response:
        name = (await request.json())["lora_name"]
        if name not in self.loaded:
            return JSONResponse({"error": {"message": "unknown"}}, 404)
        self.loaded.remove(name)
        return PlainTextResponse("ok")

    async def _complete(self, request: Request) -> Response:
        assert request.headers["authorization"] == f"Bearer {KEY}"
        body: dict[str, Any] = await request.json()
        if body["model"] not in self.loaded:
            return JSONResponse({"error": {"message": f"The model `{body['model']}` does not exist."}}, 404)
        if body.get("stream"):
            return StreamingResponse(self._pieces(body), media_type="text/event-stream")
        if body.get("wait"):
            await self.release.wait()
        return JSONResponse({"model": body["model"], "choices": [{"text": body["model"]}]})

    async def _pieces(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        try:
            yield b'data: {"model":"%s","n":1}\n\n' % body["model"].encode()
            if body.get("wait"):
                await self.release.wait()
            if body.get("break"):
                raise RuntimeError("a stream that breaks off")
            yield b"data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.given_up += 1
            raise


@asynccontextmanager
async def listening(app: Any) -> AsyncIterator[int]:
    """Serve an application on a loopback port."""
    port = free_port()
    server = Http(uvicorn.Config(app, port=port, log_level="critical", lifespan="off", timeout_graceful_shutdown=1))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield port
    finally:
        server.should_exit = True
        await task


@asynccontextmanager
async def stand_in() -> AsyncIterator[tuple[StandIn, Upstream]]:
    """Yield a running stand-in and a client of it."""
    stand = StandIn()
    async with listening(stand.app()) as port:
        upstream = Upstream(port, KEY)
        try:
            yield stand, upstream
        finally:
            stand.release.set()
            await upstream.close()


if __name__ == "__main__":
    uvicorn.run(StandIn().app(), port=int(sys.argv[1]), log_level="critical")
