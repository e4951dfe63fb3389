"""`preceptor serve`: the registry's champion behind an OpenAI-compatible server, replaced without a restart.

A Starlette application answers two paths through a child, vLLM or the embedded engine, which holds each version as a
LoRA adapter under a name of its own; its memory is here, beside it. Which version answers, `versions` says.
"""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import socket
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import typer
import uvicorn
from filelock import FileLock
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from evaluation.common.errors import ConfigError, ServeError
from pipelines.ask.answers import AskOptions
from pipelines.inbox.store import INBOX_FILE
from pipelines.lineage.registry import Registry, Role
from pipelines.lineage.store import require_store
from pipelines.process import prepare_process
from pipelines.serve.engine import LOOPBACK, EngineServer, chosen_engine
from pipelines.serve.idle import IdleNights, IdleWindow, Watched, night_command
from pipelines.serve.learning import FEEDBACK, Learner, Learning
from pipelines.serve.requests import CHAT, COMPLETIONS, Forward, Front, Metrics, read_api_keys, refusal
from pipelines.serve.versions import Variant, Versions
from pipelines.settings import TrackingConfig

_ANSWERED = (COMPLETIONS, CHAT)
"""An engine has further paths, some of which change what it holds; none of them is reachable."""
_FINISH_SECONDS = 30
"""Patience with requests in flight when the server ends."""
_MOST_DEATHS, _DEATH_SECONDS = 5, 600.0
"""Deaths of the engine in so many seconds after which it is started again; the pauses before are 1, 2, 4, ... s."""


class ServeOptions(NamedTuple):
    """Whose champion is served, where, to whom and on what."""

    role: Role = "student"
    host: str = LOOPBACK
    port: int = 8000
    """In [0, 65535]; 0 takes a free one."""
    key_variable: str | None = None
    key_file: Path | None = None
    """Environment variable, and file, that hold the clients' keys; see `clients_keys`."""
    poll_seconds: float = 5.0
    """Time between two looks at the registry."""
    variants: tuple[Variant, ...] = ()
    """Models to serve beside the champion."""
    base: str | None = None
    """None for the one that the champion's run recorded."""
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    arguments: tuple[str, ...] = ()
    """Appended to vLLM's command line."""
    engine: Literal["auto", "vllm", "embedded"] = "auto"
    """What computes; `auto` is vLLM where it is installed."""
    asking: AskOptions = AskOptions()
    """How a student's chats are answered; what is not set is the version's own."""
    learn_days: int | None = None
    """Days for which a student's chats are kept for learning; None keeps none."""
    idle: IdleWindow | None = None
    """When a night may run beside it; None runs none."""


def clients_keys(options: ServeOptions) -> dict[str, str]:
    """Return the keys that clients must send, by name; none for a loopback address that asks for none.

    Raises:
        ConfigError: There is no key where there must be one, or it is refused.
    """
    if options.key_variable is not None or options.key_file is not None:
        return read_api_keys(options.key_variable, options.key_file)
    with suppress(ValueError):  # a name
        if options.host == "localhost" or ipaddress.ip_address(options.host).is_loopback:
            return {}
    raise ConfigError(
        f"serve: --host {options.host!r} is reachable from other machines, which needs a key. Put one into an "
        "environment variable and give its name with --api-key-env, several into a file (--api-keys), or stay on "
        "127.0.0.1."
    )


def run_server(options: ServeOptions, tracking: TrackingConfig, work_dir: Path) -> None:
    """Serve the champion of a registry until a signal comes.

    Raises:
        ConfigError: Key, address, store, champion or base is missing or refused; nothing was started.
        LineageError: The registry cannot be read, or the champion's files are not those that were registered.
        ServeError: The engine is missing or ended, or does not answer as the champion.
    """
    keys = clients_keys(options)
    require_store(tracking, work_dir)
    options = options._replace(engine=chosen_engine(options.engine, options.arguments))
    prepare_process()
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        listener = socket.create_server((options.host, options.port), family=family)
    except OSError as error:
        raise ConfigError(
            f"serve: cannot listen on {options.host!r}, port {options.port}: {error.strerror or error}. Give another "
            "with --port or --host."
        ) from error
    scratch = tempfile.TemporaryDirectory(prefix="serving-", dir=work_dir)
    with listener, scratch as files, FileLock(f"{files}/serving.lock"):  # `preceptor gc` tells by it who lives
        server = Server(options, Registry.open(tracking, work_dir), keys, Path(files).resolve())
        port, host = listener.getsockname()[1], f"[{options.host}]" if ":" in options.host else options.host
        log = work_dir / f"engine-{port}.log"
        log.unlink(missing_ok=True)
        typer.echo(
            f"starting the engine {options.engine} for the model champion at http://{host}:{port}/v1 (state: "
            f"http://{host}:{port}/health)"
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)  # uvicorn handles both, and raises them again after its orderly end
        asyncio.run(server.run(listener, log))
    typer.echo("stopped")


class Server:
    """The child engine, the versions that it holds, and the HTTP front, on one event loop."""

    def __init__(self, options: ServeOptions, registry: Registry, keys: Mapping[str, str], directory: Path) -> None:
        """Fetch the first champion into `directory`, which lies in the work directory; `keys` are the clients'."""
        self._options, self._keys, self.metrics = options, keys, Metrics()
        self.versions = Versions(options, registry, directory, self.metrics)
        inbox, days = directory.parent / INBOX_FILE, options.learn_days
        self._learner = None if days is None else Learner(inbox, days, self.metrics.all)
        self._nights: IdleNights | None = None
        if window := options.idle:
            command = night_command(window.config, directory.parent)
            self._nights = IdleNights(
                window, directory.parent, self.metrics.all, command, lambda: self.versions.current is not None
            )
        self.restarts = 0

    async def run(self, listener: socket.socket, log: Path) -> None:
        """Serve until a signal comes or the engine, which writes to `log`, cannot be kept; requests in flight finish.

        Raises:
            ServeError: The engine died too often, or before it ever answered, or the first champion cannot be served.
        """
        settings: dict[str, Any] = {"log_config": None, "access_log": False, "lifespan": "off"}
        front = uvicorn.Server(uvicorn.Config(self.app(), timeout_graceful_shutdown=_FINISH_SECONDS, **settings))
        serving, keeping = asyncio.create_task(front.serve(sockets=[listener])), asyncio.create_task(self._keep(log))
        nights = [] if self._nights is None else [asyncio.create_task(self._nights.run())]
        await asyncio.wait((serving, keeping, *nights), return_when=asyncio.FIRST_COMPLETED)
        front.should_exit = True
        await serving
        for task in (keeping, *nights):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _keep(self, log: Path) -> NoReturn:
        """Start an engine, and another when it dies; ServeError as for `run`."""
        deaths: list[float] = []
        while True:
            said = await self._until_death(log)
            deaths = [each for each in deaths if time.monotonic() - each < _DEATH_SECONDS] + [time.monotonic()]
            if self.versions.proof is None or len(deaths) > _MOST_DEATHS:
                often = f" It died {len(deaths)} times in {_DEATH_SECONDS:g} s." if len(deaths) > 1 else ""
                raise ServeError(f"serve: {said}.{often} The whole output is in {str(log)!r}.")
            pause = 2.0 ** (len(deaths) - 1)
            self.versions.error = f"serve: {said}. It is started again in {pause:g} s."
            typer.echo(self.versions.error)
            await asyncio.sleep(pause)
            self.restarts += 1
            self.metrics.restarts.inc()

    async def _until_death(self, log: Path) -> str:
        """Run an engine, and return how it ended; PreceptorError if it lives, and the champion cannot be served."""
        async with EngineServer.start(self.versions.launch, log, hidden=self._options.key_variable) as engine:
            self.versions.engine = engine
            following = asyncio.create_task(self.versions.follow())
            ended = asyncio.create_task(engine.process.wait())
            try:
                await asyncio.wait((following, ended), return_when=asyncio.FIRST_COMPLETED)
                await asyncio.wait((ended,), timeout=1.0)  # when it dies, its client notices first
                self.versions.lose()
            finally:
                following.cancel()
                ended.cancel()
                (problem,) = await asyncio.gather(following, return_exceptions=True)
            if (code := engine.process.returncode) is None and problem is not None:
                raise problem
            return f"{engine.label} ended with exit code {code}; its last words: {engine.last_words()}"

    def app(self) -> Starlette:
        """Return the HTTP front."""
        forward = [Route(path, Forward(self.versions), methods=["POST"]) for path in _ANSWERED]
        # Without a key, a page of another site whose name was made to point here (DNS rebinding) is turned away.
        hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[LOOPBACK, "localhost", "::1", "[::1]"])
        front = Middleware(Front, metrics=self.metrics, keys=self._keys, paths=_ANSWERED)
        learning = [] if self._learner is None else [Middleware(Learning, learner=self._learner)]
        watched = [] if self._nights is None else [Middleware(Watched, nights=self._nights)]
        if self._learner is not None:
            forward.append(Route(FEEDBACK, self._learner.feedback, methods=["POST"]))
        state = {"/health": self._health, "/metrics": self._metrics, "/v1/models": self._models}
        return Starlette(
            routes=[*(Route(path, answer) for path, answer in state.items()), *forward],
            middleware=[*([front] if self._keys else [front, hosts]), *watched, *learning],
            exception_handlers={HTTPException: refusal},
        )

    async def _metrics(self, _request: Request) -> Response:
        return Response(generate_latest(self.metrics.all), media_type=CONTENT_TYPE_LATEST)

    async def _health(self, _request: Request) -> Response:
        versions = self.versions
        served, (proved, proof) = versions.current, versions.proof or (None, None)
        waiting = "restarting" if versions.proof and versions.error else "starting"
        content = {
            "status": waiting if served is None else "degraded" if versions.error else "ok",
            "role": self._options.role,
            "engine": versions.launch.engine,
            "restarts": self.restarts,
            "base": versions.base,
            "version": served and served.number,
            "previous": versions.previous and versions.previous.number,
            "wanted": versions.wanted,
            "digest": served and served.adapter.digest,
            "memory": served and served.composer and len(served.composer.memory),
            "served_name": served and served.name,
            "since": served and served.since,
            "in_flight": served and served.in_flight,
            "last_probe": proof and proof._asdict(),
            "last_probe_version": proved,
            "last_check": versions.checked,
            "last_error": versions.error,
        }
        return JSONResponse(content, 503 if served is None else 200)

    async def _models(self, _request: Request) -> Response:
        self.versions.answering()
        entry = {"object": "model", "created": 0, "owned_by": "preceptor", "root": self.versions.base}
        return JSONResponse({"object": "list", "data": [{"id": name, **entry} for name in self.versions.models()]})
