"""The front and the following of the champion, with a plain application as engine; and processes that end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from json import loads
from pathlib import Path
from typing import Any, cast

import httpx
import psutil  # type: ignore[import-untyped]
import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from typer.testing import CliRunner

from evaluation.common.errors import ConfigError, LineageError, ServeError
from evaluation.exact_match import AnswerFormat
from pipelines.ask.answers import FORMAT_FILE, AnswerSettings
from pipelines.cli import app
from pipelines.inbox.interactions import InteractionStore
from pipelines.inbox.store import INBOX_FILE, InboxStore
from pipelines.inbox.transcripts import last_question
from pipelines.lineage.run import Lineage
from pipelines.process import free_port
from pipelines.serve import versions as following
from pipelines.serve.engine import EngineServer
from pipelines.serve.proof import Proof
from pipelines.serve.server import ServeOptions, Server, clients_keys
from pipelines.serve.versions import Variant
from student.adapters import Adapter, save_adapter
from student.memory import ExternalMemory, MemoryEntry
from tests.pipelines.factories import make_adapter
from tests.pipelines.inbox.files import document

Open = Callable[..., Lineage]
PASSED = Proof(True, 1, 1, 0, 0.0, 1, "")


class StandIn:
    """In the place of the engine: holds names of adapters and answers with the one that it was asked for."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.ever: list[str] = []
        self.failing: set[int] = set()
        self.release = asyncio.Event()
        """Requests with `wait` are answered once this is set."""
        upstream = Starlette(routes=[Route("/v1/completions", self._complete, methods=["POST"])])
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(upstream), base_url="http://engine")

    async def load(self, name: str, files: Path) -> None:
        self.loaded.append(name)
        self.ever.append(name)

    async def unload(self, name: str) -> None:
        self.loaded.remove(name)

    async def prove(self, name: str, files: Path, adapter: Adapter) -> Proof:
        if adapter.rank > 2:
            raise ServeError("out of memory")
        failed = int(name.split("-")[1].removeprefix("v")) in self.failing
        return PASSED._replace(passed=False, reason="other tokens") if failed else PASSED

    async def _complete(self, request: Request) -> Response:
        body = await request.json()
        if body.get("wait"):
            await self.release.wait()
        choices = [{"text": "", "finish_reason": "stop", "token_ids": [], "logprobs": {"token_logprobs": []}}]
        whole = {"id": "cmpl-1", "created": 0, "usage": {}, "choices": choices}
        return JSONResponse({"model": body["model"], **whole}, 200 if body["model"] in self.loaded else 404)


class Setting:
    """A server of three registered students, the first one champion."""

    def __init__(
        self,
        lineage: Lineage,
        work_dir: Path,
        keys: dict[str, str],
        variants: tuple[Variant, ...] = (),
        days: int | None = None,
    ) -> None:
        self.lineage, self.registry, self.files = lineage, lineage.registry, work_dir / "serving"
        for value in range(3):
            self.add(make_adapter(float(value)))
        self.registry.promote("student", 1)
        options = ServeOptions(base="micro-student", engine="embedded", variants=variants, learn_days=days)
        self.server = Server(options, self.registry, keys, self.files)
        self.versions = self.server.versions
        self.engine = StandIn()
        self.versions.engine = cast("EngineServer", self.engine)
        transport = httpx.ASGITransport(self.server.app())
        self.client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:1")

    def add(self, adapter: Adapter) -> int:
        place = save_adapter(adapter, self.files.parent / "made" / adapter.digest[:12])
        (place / FORMAT_FILE).write_text(AnswerSettings(answer_format=AnswerFormat()).model_dump_json())
        return self.lineage.registry.register(
            "student", place, digest=adapter.digest, tags={}, run_id=self.lineage.run_id
        )

    async def promote(self, version: int) -> dict[str, Any]:
        self.registry.promote("student", version)
        return await self.check()

    async def check(self) -> dict[str, Any]:
        await self.versions.check()
        health: dict[str, Any] = (await self.client.get("/health")).json()
        return health

    async def ask(self, **fields: Any) -> httpx.Response:
        return await self.client.post("/v1/completions", json={"model": "champion", **fields})


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def keys() -> dict[str, str]:
    return {}


@pytest.fixture
def variants() -> tuple[Variant, ...]:
    return ()


@pytest.fixture
async def it(open_run: Open, work_dir: Path, keys: dict[str, str], variants: tuple[Variant, ...]) -> Setting:
    """A server whose first champion answers."""
    setting = Setting(open_run(), work_dir, keys, variants)
    assert [(await setting.client.get("/health")).status_code, (await setting.ask()).status_code][0] == 503
    await setting.versions._place(1, None)
    return setting


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not reached():
            await asyncio.sleep(0.01)


# Arguments


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    assert clients_keys(ServeOptions(host=host)) == {}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "localhost.example.org", "127.0.0.1.nip.io"])
def test_any_other_address_needs_a_key(host: str) -> None:
    with pytest.raises(ConfigError, match="--api-key-env"):
        clients_keys(ServeOptions(host=host))


@pytest.mark.parametrize("value", ["", "three words here", "tab\there", "schlüssel", "a k3y\na other", "a k3y\nb k3y"])
def test_unfit_key_is_refused_and_never_shown(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SOME_KEY", value)
    with pytest.raises(ConfigError, match="SOME_KEY") as caught:
        clients_keys(ServeOptions(key_variable="SOME_KEY"))
    assert not value or value.rpartition(" ")[2] not in str(caught.value)


def test_each_client_has_a_key_from_the_environment_or_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOME_KEY", "k3y")
    there = ServeOptions(host="0.0.0.0", key_variable="SOME_KEY")
    assert clients_keys(there) == {"client": "k3y"}
    (tmp_path / "keys").write_text("ann k1\nben k2\n")
    assert clients_keys(there._replace(key_file=tmp_path / "keys")) == {"client": "k3y", "ann": "k1", "ben": "k2"}
    with pytest.raises(ConfigError, match="cannot be read"):
        clients_keys(ServeOptions(key_file=tmp_path / "none"))


def test_missing_store_is_refused(tmp_path: Path) -> None:
    refused = CliRunner().invoke(app, ["serve", "--work-dir", str(tmp_path / "nothing")])
    assert isinstance(refused.exception, ConfigError)
    assert "holds no runs" in str(refused.exception)


# The champion


@pytest.mark.anyio
async def test_moved_alias_is_followed_and_the_old_version_unloaded(it: Setting) -> None:
    assert (await it.check())["version"] == 1
    health = await it.promote(2)
    assert (health["status"], health["version"], health["wanted"]) == ("ok", 2, 2)
    await until(lambda: it.engine.loaded == [health["served_name"]] and len(list(it.files.iterdir())) == 1)
    it.registry.rollback("student", "worse")
    assert (await it.check())["version"] == 1
    assert len(set(it.engine.ever)) == len(it.engine.ever) == 3, "a name was used twice"


@pytest.mark.anyio
async def test_request_in_flight_finishes_on_the_version_it_began_with(it: Setting) -> None:
    old = it.versions.first
    waiting = asyncio.create_task(it.ask(wait=True))
    await until(lambda: old.in_flight == 1)
    await it.promote(2)
    assert (await it.ask()).headers["x-preceptor-version"] == "2"
    await asyncio.sleep(0.3)
    assert old.name in it.engine.loaded
    it.engine.release.set()
    answer = await waiting
    assert (answer.json()["model"], answer.headers["x-preceptor-version"]) == (old.name, "1")
    await until(lambda: old.name not in it.engine.loaded and not old.files.exists())


@pytest.mark.anyio
async def test_grace_period_ends_for_requests_that_do_not(it: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_GRACE_SECONDS", 0.1)
    it.versions.first.in_flight = 1
    name = (await it.promote(2))["served_name"]
    await until(lambda: it.engine.loaded == [name])
    assert it.versions.first.files.exists(), "the engine may read the files again"


@pytest.mark.anyio
async def test_version_that_fails_stays_out_and_health_says_why(it: Setting, work_dir: Path) -> None:
    kept, it.engine.failing = it.versions.first.name, {2}
    factors = {name: (a.repeat(2, 1), b.repeat(1, 2)) for name, (a, b) in make_adapter(5.0).factors.items()}
    refused, damaged = it.add(Adapter(factors, 4, 4.0, "")), it.add(make_adapter(6.0))
    stored = max((work_dir / "artifacts").rglob("adapter_model.safetensors"), key=os.path.getmtime)
    other = it.registry.fetch("student", 3, work_dir / "other")
    stored.write_bytes((other / stored.name).read_bytes())  # whole and readable, but not what was registered
    for version, why in ((2, "other tokens"), (refused, "out of memory"), (damaged, "was registered")):
        health = await it.promote(version)
        assert (health["status"], health["version"], health["wanted"]) == ("degraded", 1, version)
        assert why in health["last_error"]
        assert it.engine.loaded == [kept] == [path.name for path in it.files.iterdir()]
    health = await it.promote(3)
    assert (health["status"], health["version"], health["last_error"]) == ("ok", 3, None)


@pytest.mark.anyio
async def test_erased_version_answers_nobody_even_where_nothing_takes_its_place(it: Setting) -> None:
    it.engine.failing = {3}
    await it.promote(2)
    it.registry.erase("student", [2], "asked to", 3)
    health = await it.check()
    assert (health["status"], health["version"], "other tokens" in health["last_error"]) == ("restarting", None, True)
    assert (await it.ask()).status_code == 503
    assert (await it.promote(1))["version"] == 1
    it.registry.erase("student", [1, 3], "asked to", None)
    assert (await it.check())["version"] is None
    assert (await it.ask()).status_code == 503
    await until(lambda: it.engine.loaded == [])
    assert it.registry.champion("student") is None, "which is no loss of the store"


@pytest.mark.anyio
async def test_registry_that_fails_leaves_the_champion_in_place(it: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(_role: str) -> dict[str, int]:
        raise LineageError("the store is gone")

    with monkeypatch.context() as patched:
        patched.setattr(it.registry, "aliases", lost)
        assert (await it.check())["last_error"] == "the store is gone"
    it.lineage.store.client.delete_registered_model_alias("preceptor-student", "champion")
    health = await it.check()
    assert (health["status"], health["version"], health["wanted"]) == ("degraded", 1, None)
    assert (await it.promote(1))["status"] == "ok"


@pytest.mark.anyio
@pytest.mark.parametrize("variants", [("previous", "base")])
async def test_named_variants_move_together_and_say_which_version_answered(it: Setting) -> None:
    async def served() -> dict[str, tuple[str, str]]:
        names = [entry["id"] for entry in (await it.client.get("/v1/models")).json()["data"]]
        replies = {name: await it.ask(model=name) for name in names}
        return {name: (reply.headers["x-preceptor-version"], reply.json()["model"]) for name, reply in replies.items()}

    await it.engine.load(it.versions.base_name, it.files)
    base, first = ("base", it.versions.base_name), ("1", it.versions.first.name)
    assert await served() == {"champion": first, "base": base}
    missing = await it.ask(model="previous")
    assert (missing.status_code, "before version 1 none was the champion" in missing.text) == (404, True)
    second = "2", (await it.promote(2))["served_name"]
    assert await served() == {"champion": second, "previous": first, "base": base}
    assert (await it.promote(3))["previous"] == 2
    assert (await served())["previous"] == second
    it.registry.rollback("student", "worse")
    it.engine.failing = {1}  # it was unloaded, and is loaded again
    health = await it.check()
    assert (health["status"], health["version"], health["previous"]) == ("degraded", 2, None)
    assert "version 1 is not served" in health["last_error"]
    assert (await served()).keys() == {"champion", "base"}
    it.engine.failing = set()
    assert (await it.check())["previous"] == 1
    it.registry.rollback("student", "worse")
    assert (await it.check())["version"] == 1
    assert (await it.ask(model="previous")).status_code == 404
    assert len(set(it.engine.ever)) == len(it.engine.ever), "a name was used twice"


@pytest.mark.anyio
async def test_variants_that_are_not_served_name_the_option(it: Setting) -> None:
    await it.promote(2)
    for name in ("previous", "base"):
        reply = await it.ask(model=name)
        assert (reply.status_code, f"--variants champion,{name}" in reply.text) == (404, True)


# Requests


@pytest.mark.anyio
async def test_requests_are_refused_with_a_reason(it: Setting) -> None:
    client, path, json = it.client, "/v1/completions", {"content-type": "application/json"}
    bodies = (b"{", b"[1]", b"[" * 100_000, b'{"model": "champion", "prompt": NaN}')
    replies = [
        (415, await client.post(path, content=b"{}", headers={"content-type": "text/plain"})),
        *[(400, await client.post(path, content=body, headers=json)) for body in bodies],
        *[(404, await it.ask(model=model)) for model in (it.versions.first.name, "micro-student", 3, "x" * 10_000)],
        (404, await client.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "/"})),
        (405, await client.get(path)),
    ]
    for status, reply in replies:
        assert (reply.status_code, reply.json()["error"]["code"]) == (status, status)
        assert len(reply.text) < 500


@pytest.mark.anyio
async def test_without_an_engine_requests_get_503_and_what_it_held_is_proved_anew(it: Setting) -> None:
    await it.promote(2)
    name = it.versions.answering().version.name
    address = ("127.0.0.1", free_port())
    it.engine.client = httpx.AsyncClient(base_url=f"http://{address[0]}:{address[1]}")
    chat = {"model": "champion", "messages": [{"role": "user", "content": "Who?"}]}
    lost = [await it.ask(), await it.ask(stream=True), await it.client.post("/v1/chat/completions", json=chat)]
    it.versions.lose()
    lost.append(await it.ask())
    for reply in lost:
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "5")
        assert (reply.json()["error"]["type"], reply.json()["error"]["code"]) == ("server_error", 503)
    it.engine = StandIn()
    it.versions.engine = cast("EngineServer", it.engine)
    assert (await it.check())["version"] == 2
    assert it.engine.ever == [name], "it was not loaded anew from the files that were fetched"
    assert (await it.ask()).headers["x-preceptor-version"] == "2"


@pytest.mark.anyio
async def test_stream_that_breaks_off_ends_with_an_error_and_one_that_did_not_begin_is_503(it: Setting) -> None:
    async def dying(request: Request) -> Response:
        count = int((await request.json())["seed"])

        async def parts() -> AsyncIterator[bytes]:
            for number in range(count):
                yield b"data: {%d}\n\n" % number
                await asyncio.sleep(0.05)
            raise OSError("died")

        return StreamingResponse(parts(), media_type="text/event-stream")

    upstream = Starlette(routes=[Route("/v1/completions", dying, methods=["POST"])])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        engine = uvicorn.Server(uvicorn.Config(upstream, log_level="critical", access_log=False, lifespan="off"))
        running = asyncio.create_task(engine.serve(sockets=[listener]))
        it.engine.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}")
        broken, never = await it.ask(stream=True, seed=2), await it.ask(stream=True, seed=0)
        engine.should_exit = True
        await running
    *events, last = broken.text.split("\n\n")[:-1]
    assert (broken.status_code, events) == (200, ["data: {0}", "data: {1}"])
    assert loads(last.removeprefix("data: "))["error"]["code"] == 503
    assert (never.status_code, never.headers["retry-after"]) == (503, "5")


@pytest.mark.anyio
@pytest.mark.parametrize("keys", [{"ann": "secret", "ben": "other"}])
async def test_key_is_needed_everywhere_but_for_health(it: Setting, capsys: pytest.CaptureFixture[str]) -> None:
    for header in ({}, {"authorization": "Bearer"}, {"authorization": "Bearer secreT"}, {"x-api-key": "secret"}):
        for path in ("/v1/models", "/metrics", "/docs", "/", "/health/"):
            assert (await it.client.get(path, headers=header)).status_code == 401
        assert (await it.client.post("/v1/completions", json={}, headers=header)).status_code == 401
        assert (await it.client.get("/health", headers=header)).status_code == 200
    it.client.headers["authorization"] = "Bearer secret"
    assert (await it.ask()).status_code == 200
    assert [entry["id"] for entry in (await it.client.get("/v1/models")).json()["data"]] == ["champion"]
    it.client.headers["authorization"] = "Bearer other"
    assert (await it.ask(model="nobody")).status_code == 404
    assert (await it.ask()).status_code == 200
    counted = await metrics(it)
    for client in ("ann", "ben"):
        labels = {"path": "/v1/completions", "source": "completion", "client": client}
        assert counted("preceptor_requests_total", **labels) == 1
    for status, number in {"401": 5, "404": 1, "503": None}.items():
        assert counted("preceptor_errors_total", path="/v1/completions", status=status) == number
    log = capsys.readouterr().out
    assert ("ben /v1/completions 200" in log, "ben /v1/completions 404" in log, "- /v1/completions 401" in log) == (
        True,
        True,
        True,
    )
    assert not [key for key in ("secret", "other") if key in log]


async def metrics(it: Setting) -> Callable[..., float | None]:
    """Return the value of a sample by name and labels, as Prometheus reads the server's page."""
    reply = await it.client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(reply.text)
    found = {(each.name, *sorted(each.labels.items())): each.value for family in families for each in family.samples}
    return lambda name, **labels: found.get((name, *sorted(labels.items())))


@pytest.mark.anyio
async def test_metrics_say_what_answers_and_how_often_it_changed(it: Setting) -> None:
    async def sample(name: str, **labels: str) -> float | None:
        return (await metrics(it))(name, **labels)

    digest = it.versions.first.adapter.digest
    facts = {"version": "1", "digest": digest, "role": "student", "base": "micro-student"}
    assert await sample("preceptor_version_info", **facts) == 1
    await it.promote(2)
    it.engine.failing = {3}
    await it.promote(3)
    assert (await sample("preceptor_swaps_total"), await sample("preceptor_refused_versions_total")) == (2, 1)
    assert await sample("preceptor_version_info", **facts) is None
    await it.ask()
    assert await sample("preceptor_request_seconds_count", path="/v1/completions") == 2  # one before a version answered


@pytest.mark.anyio
async def test_document_that_is_removed_leaves_the_memory_of_the_version_that_answers(
    it: Setting, work_dir: Path
) -> None:
    kept, gone = (document(f"{name} lives in Oldmere.") for name in ("Zyx", "Ann"))
    with InboxStore(work_dir / INBOX_FILE) as inbox:
        inbox.add([kept, gone])
    composer = it.versions.first.composer
    assert composer is not None
    composer.memory = ExternalMemory(MemoryEntry(id=each.id, text=each.text) for each in (kept, gone))
    assert (await it.check())["memory"] == 2
    with InboxStore(work_dir / INBOX_FILE) as inbox:
        inbox.remove([gone.id], "asked to", "ada")
    assert (await it.check())["memory"] == 1
    assert [entry.id for entry in composer.memory.entries] == [kept.id]


@pytest.mark.anyio
@pytest.mark.parametrize("keys", [{"ann": "k1", "ben": "k2"}])
async def test_entry_for_one_client_answers_that_client_alone(it: Setting) -> None:
    composer = it.versions.first.composer
    assert composer is not None
    entries = [MemoryEntry(id=name, text=f"Zyx lives in {name}.", client=name) for name in ("ann", "cy")]
    composer.memory = ExternalMemory([*entries, MemoryEntry(id="all", text="Cranes nest at the lake.")])
    composer.options = composer.options.model_copy(update={"least_score": 0.1})
    await it.engine.load(it.versions.base_name, it.files)
    found = {}
    for client, key in {"ann": "k1", "ben": "k2"}.items():
        chat = {"model": "champion", "messages": [{"role": "user", "content": "Zyx lives in ann?"}]}
        headers = {"authorization": f"Bearer {key}"}
        reply = await it.client.post("/v1/chat/completions", json=chat, headers=headers)
        found[client] = (reply.headers["x-preceptor-by"], reply.headers["x-preceptor-sources"])
    assert found["ann"] == ("memory", "ann")
    assert found["ben"][1] == ""


@pytest.mark.anyio
async def test_without_a_key_only_loopback_names_are_answered(it: Setting) -> None:
    """A page of another site whose name was made to point here (DNS rebinding) is turned away."""
    for host, status in {"evil.example": 400, "localhost:1": 200, "[::1]:1": 200, "127.0.0.1": 200}.items():
        assert (await it.client.get("/v1/models", headers={"host": host})).status_code == status


@pytest.mark.anyio
@pytest.mark.parametrize("days", [None, 30])
async def test_chats_are_kept_only_where_that_was_asked_for(open_run: Open, work_dir: Path, days: int | None) -> None:
    it = Setting(open_run(), work_dir, {}, days=days)
    await it.versions._place(1, None)
    asked = {"model": "champion", "messages": [{"role": "user", "content": "Where?"}]}
    for stream in (False, True):
        assert (await it.client.post("/v1/chat/completions", json={**asked, "stream": stream})).status_code == 200
        given = await it.client.post("/v1/feedback", json={"id": "chatcmpl-1", "thumb": "up"})
        assert given.status_code == (200 if days else 404)
    assert (work_dir / INBOX_FILE).exists() == bool(days)
    if days:
        with InteractionStore(work_dir / INBOX_FILE) as store:
            ((kept, _),) = store.interactions()
        assert (kept.client, last_question(kept.messages), kept.version, kept.thumb) == ("-", "Where?", 1, "up")
        assert (await metrics(it))("preceptor_interactions_total", outcome="stored") == 1
        assert (await metrics(it))("preceptor_interactions_total", outcome="failed") == 1, "an id is there once"


# Processes

_SERVE = """
import sys
from pathlib import Path
from pipelines.serve import engine, proof, server
from pipelines.settings import TrackingConfig

child = '''
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self):
        self.send_response(200); self.end_headers()
    do_GET = do_POST = answer
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
'''
async def prove(*_):
    return proof.Proof(True, 1, 1, 0, 0.0, 1, "")
engine.embedded_command = lambda launch, port: [sys.executable, "-c", child, str(port)]
engine.EngineServer.prove, server._MOST_DEATHS = prove, 1
options = server.ServeOptions(port=0, base="micro-student", engine="embedded")
server.run_server(options, TrackingConfig(), Path(sys.argv[1]))
"""


@pytest.mark.parametrize("ends", [signal.SIGKILL, None], ids=str)
def test_no_process_is_left_when_the_server_is_killed_or_gives_up(
    open_run: Open, work_dir: Path, tmp_path: Path, ends: signal.Signals | None
) -> None:
    """After SIGTERM neither: see the tests of the command."""
    Setting(open_run(), work_dir, {})
    with (tmp_path / "log").open("wb") as file:
        process = subprocess.Popen([sys.executable, "-c", _SERVE, str(work_dir)], stdout=file, stderr=file)
    try:
        for started in (1, 2) if ends is None else (1,):
            end = time.monotonic() + 240
            while (tmp_path / "log").read_text().count("version 1 answers now") < started:
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < end, (tmp_path / "log").read_text()
                time.sleep(0.1)
            (child,) = psutil.Process(process.pid).children()
            os.kill(child.pid if ends is None else process.pid, ends or signal.SIGKILL)
        code, output = process.wait(timeout=60), (tmp_path / "log").read_text()
        assert code == (1 if ends is None else -ends), output
        assert ("It is started again in 1 s" in output, "It died 2 times" in output) == ((ends is None,) * 2)
        assert psutil.wait_procs([child], timeout=20)[1] == []
    finally:
        process.kill()
        process.wait()


@pytest.mark.anyio
@pytest.mark.parametrize("at", ["headers", "body", "waiting", "reset"])
async def test_client_that_hangs_up_leaves_no_traceback(
    it: Setting, at: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    body = b'{"model": "champion", "wait": true}'
    head = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: %d\r\n" % len(body)
    sent = {"headers": head, "body": head + b"\r\n" + body[:9]}
    front = uvicorn.Server(uvicorn.Config(it.server.app(), log_config=None, access_log=False, lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(front.serve(sockets=[listener]))
        client = socket.create_connection(listener.getsockname())
        client.sendall(sent.get(at, head + b"\r\n" + body))
        version = it.versions.first
        await (until(lambda: version.in_flight == 1) if at in ("waiting", "reset") else asyncio.sleep(0.2))
        if at == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        await asyncio.sleep(0.1)
        it.engine.release.set()
        await until(lambda: version.in_flight == 0)
        assert (await it.ask()).status_code == 200
        front.should_exit = True
        await serving
    assert not [record for record in caplog.records if record.exc_info or record.levelname == "ERROR"]
    assert "Traceback" not in "".join(capfd.readouterr())
