"""The HTTP side over real sockets, with a plain server where vLLM would be."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from pipelines.serving.champions import Champion
from pipelines.serving.probes import ProbeRecord
from pipelines.serving.proxy import build_app
from pipelines.serving.state import Served, ServingState, now
from pipelines.serving.upstream import Upstream
from tests.pipelines.serving.stand_in import StandIn, listening, stand_in

PROBE = ProbeRecord(
    passed=True,
    prompts=1,
    equal=1,
    ties=0,
    max_logprob_difference=0.0,
    tolerance=1e-3,
    told_apart=1,
    zero=False,
    reason="",
)


class Setting(NamedTuple):
    stand: StandIn
    state: ServingState
    client: httpx.AsyncClient
    upstream: Upstream

    def serve(self, version: int) -> Served:
        name = f"student-v{version}-00000000-{version}"
        champion = Champion(version, "d" * 64, Path("nowhere"), 2, frozenset({"q_proj"}), "", (), False)
        self.stand.loaded.append(name)
        self.state.current = Served(name, champion, self.upstream, now(), PROBE)
        return self.state.current

    async def ask(self, **fields: Any) -> httpx.Response:
        return await self.client.post("/v1/completions", json={"model": "champion", **fields})


@asynccontextmanager
async def setting(key: str | None = None, serving: bool = True) -> AsyncIterator[Setting]:
    async with stand_in() as (stand, upstream):
        state = ServingState("student", "micro-student")
        app = build_app(state, key=key, max_body_bytes=1000)
        async with listening(app) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            made = Setting(stand, state, client, upstream)
            if serving:
                made.serve(1)
            yield made
            stand.release.set()


def run(test: Callable[[Setting], Awaitable[None]], **options: Any) -> None:
    async def whole() -> None:
        async with setting(**options) as made:
            await asyncio.wait_for(test(made), 20)

    asyncio.run(whole())


async def until(reached: Callable[[], bool]) -> None:
    while not reached():
        await asyncio.sleep(0.01)


def test_names_are_replaced_on_the_way_in_and_out() -> None:
    async def test(it: Setting) -> None:
        reply = await it.ask()
        assert reply.json() == {"model": "champion", "choices": [{"text": "student-v1-00000000-1"}]}
        assert reply.headers["x-preceptor-version"] == "1"
        it.stand.loaded.clear()
        gone = await it.ask()
        assert gone.status_code == 404
        assert gone.json()["error"]["message"] == "The model `champion` does not exist."

    run(test)


def test_requests_under_way_end_on_the_version_they_began_with() -> None:
    async def test(it: Setting) -> None:
        old = it.state.current
        assert old is not None
        waiting = asyncio.create_task(it.ask(wait=True))
        await until(lambda: old.in_flight == 1)
        it.serve(2)
        assert (await it.ask()).headers["x-preceptor-version"] == "2"
        assert not old.idle.is_set()
        it.stand.release.set()
        assert (await waiting).json()["choices"][0]["text"] == old.name
        await asyncio.wait_for(old.idle.wait(), 5)

    run(test)


def test_stream_of_a_client_that_leaves_is_given_up_and_no_longer_counted() -> None:
    async def test(it: Setting) -> None:
        served = it.state.current
        assert served is not None
        body = {"model": "champion", "stream": True, "wait": True}
        async with it.client.stream("POST", "/v1/completions", json=body) as reply:
            first = await anext(reply.aiter_lines())
            assert json.loads(first.removeprefix("data: ")) == {"model": "champion", "n": 1}
            assert served.in_flight == 1
        await until(lambda: served.in_flight == 0 and it.stand.given_up == 1)

    run(test)


def test_client_that_leaves_before_its_answer_is_no_longer_counted() -> None:
    async def test(it: Setting) -> None:
        served = it.state.current
        assert served is not None
        with pytest.raises(httpx.ReadTimeout):
            await it.client.post("/v1/completions", json={"model": "champion", "wait": True}, timeout=0.3)
        await until(lambda: served.in_flight == 0)

    run(test)


def test_stream_that_breaks_off_says_so() -> None:
    async def test(it: Setting) -> None:
        reply = await it.ask(stream=True, **{"break": True})
        last = [line for line in reply.text.splitlines() if line][-1]
        assert "ended within its answer" in json.loads(last.removeprefix("data: "))["error"]["message"]
        assert "[DONE]" not in reply.text

    run(test)


def test_refusals_are_typed() -> None:
    async def test(it: Setting) -> None:
        client, path = it.client, "/v1/completions"
        refused = {
            413: await it.ask(prompt="x" * 2000),
            415: await client.post(path, content=b"{}", headers={"content-type": "text/plain"}),
            400: await client.post(path, content=b"{", headers={"content-type": "application/json"}),
            404: await client.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "y"}),
            405: await client.get(path),
        }
        for status, reply in refused.items():
            assert reply.status_code == status
            assert reply.json()["error"]["code"] == status
        assert it.stand.ever == []

    run(test)


def test_nobody_answers_yet_is_503_everywhere() -> None:
    async def test(it: Setting) -> None:
        for reply in (await it.ask(), await it.client.get("/health"), await it.client.get("/v1/models")):
            assert reply.status_code == 503
        assert (await it.ask()).headers["retry-after"] == "5"
        assert (await it.client.get("/health")).json()["status"] == "starting"
        it.state.error = "vLLM ended"
        assert (await it.client.get("/health")).json()["status"] == "down"

    run(test, serving=False)


def test_dead_vllm_is_502() -> None:
    async def test(it: Setting) -> None:
        served = it.serve(2)
        served.upstream = Upstream(1, "key")
        assert (await it.ask()).status_code == 502
        assert served.in_flight == 0

    run(test)


def test_older_version_that_answers_is_degraded_but_200() -> None:
    async def test(it: Setting) -> None:
        it.state.error = "version 2 is damaged"
        reply = await it.client.get("/health")
        assert (reply.status_code, reply.json()["status"]) == (200, "degraded")
        assert reply.json()["last_error"] == "version 2 is damaged"
        assert reply.json()["version"] == 1

    run(test)


def test_models_are_listed_and_looked_up() -> None:
    async def test(it: Setting) -> None:
        assert [x["id"] for x in (await it.client.get("/v1/models")).json()["data"]] == ["champion"]
        assert (await it.client.get("/v1/models/champion")).json()["root"] == "micro-student"
        assert (await it.client.get("/v1/models/micro-student")).status_code == 404

    run(test)


def test_key_is_needed_everywhere_but_for_health() -> None:
    async def test(it: Setting) -> None:
        for header in ({}, {"authorization": "Bearer"}, {"authorization": "Bearer secreT"}, {"x-api-key": "secret"}):
            for path in ("/v1/models", "/v1/models/champion", "/docs", "/", "/health/"):
                assert (await it.client.get(path, headers=header)).status_code == 401
            assert (await it.client.post("/v1/completions", json={}, headers=header)).status_code == 401
            assert (await it.client.get("/health", headers=header)).status_code == 200
        it.client.headers["authorization"] = "Bearer secret"
        assert (await it.ask()).status_code == 200

    run(test, key="secret")


def test_without_a_key_only_loopback_names_are_answered() -> None:
    """A page of another site whose name was made to point here (DNS rebinding) is turned away."""

    async def test(it: Setting) -> None:
        for host, status in {
            "evil.example": 403,
            "localhost:1": 200,
            "[::1]:1": 200,
            "127.0.0.1": 200,
            "": 403,
        }.items():
            assert (await it.client.get("/v1/models", headers={"host": host})).status_code == status

    run(test)
