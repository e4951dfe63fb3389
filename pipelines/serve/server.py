"""`preceptor serve`: the registry's champion behind an OpenAI-compatible server, replaced without a restart.

A Starlette application answers two paths through a child, vLLM or the embedded engine, which holds each version as a
LoRA adapter under a name of its own; its memory is here, beside it. A new champion is loaded and proved before it gets
all new requests; those in flight finish on the version they began with. A version that fails stays out, and /health
says why.
"""

from __future__ import annotations

import asyncio
import ipaddress
import shutil
import signal
import socket
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import typer
import uvicorn
from anyio import to_process
from filelock import FileLock
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from evaluation.common.errors import ConfigError, PreceptorError, ServeError
from pipelines.ask.answers import AskOptions, Composer, Vocabulary, read_version
from pipelines.inbox.store import removed_documents
from pipelines.lineage.registry import Registry, Role
from pipelines.lineage.store import require_store
from pipelines.lineage.versions import CHAMPION
from pipelines.models import ModelRef, answer_format
from pipelines.process import prepare_process
from pipelines.serve.engine import LOOPBACK, EngineServer, Launch, chosen_engine
from pipelines.serve.proof import Proof, zero_adapter
from pipelines.serve.requests import CHAT, COMPLETIONS, Forward, Front, Metrics, read_api_keys, refusal
from pipelines.settings import Asking, TrackingConfig

if TYPE_CHECKING:
    from student.adapters import Adapter

_ANSWERED = (COMPLETIONS, CHAT)
"""An engine has further paths, some of which change what it holds; none of them is reachable."""
_GRACE_SECONDS, _FINISH_SECONDS = 600.0, 30
"""Patience with requests in flight: of a version that is replaced, and when the server ends."""
_RETRY_POLLS = 12
"""After a failure the registry is polled so much more rarely."""


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
    with_base: bool = False
    """Also answer as the base, under its own name."""
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


@dataclass(eq=False)
class Version:
    """A registered version with its verified files."""

    number: int
    name: str
    """In the engine, and of the model in replies; never used again."""
    files: Path
    adapter: Adapter
    composer: Composer | None = None
    """Answers chats, with the version's own memory; None leaves them to the engine, as for a teacher."""
    since: str | None = None
    in_flight: int = 0
    """Requests that it is answering."""


class Server:
    """The child engine, the loop that follows the champion, and the HTTP front, on one event loop."""

    engine: EngineServer

    def __init__(self, options: ServeOptions, registry: Registry, keys: Mapping[str, str], directory: Path) -> None:
        """Fetch the first champion into `directory`, which lies in the work directory; `keys` are the clients'."""
        self._options, self._registry, self._keys, self._directory = options, registry, keys, directory
        self.metrics = Metrics()
        self._wanted: int | None = (number := registry.number(options.role, CHAMPION))
        self.base = options.base or registry.recorded_model(options.role, number) or ""
        if not self.base:
            raise ConfigError(f"serve: the run of version {number} recorded no base. Name it with --student.")
        self._loads, self._retiring = 0, set[asyncio.Task[None]]()
        self._vocabulary = Vocabulary.open(self.base) if options.role == "student" else None
        self.first = self._fetch(number)
        modules = tuple(sorted({name.rpartition(".")[2] for name in self.first.adapter.factors}))
        rank = self.first.adapter.rank
        place = options.device, options.dtype, options.arguments
        self._launch = Launch(self.base, rank, modules, *place, chosen_engine(options.engine, options.arguments))
        self.current: Version | None = None
        """Gets new requests; replaced in one step."""
        self.base_name = f"base-of-{self.first.name}"
        """The engine's name of the adapter that stands for the base."""
        self.error: str | None = None  # why the champion does not answer
        self._checked: str | None = None
        self._proof: tuple[int, Proof] | None = None

    async def run(self, listener: socket.socket, log: Path) -> None:
        """Serve until a signal comes or the engine, which writes to `log`, ends; requests in flight finish first.

        Raises:
            ServeError: The engine ended, or the first champion cannot be served.
        """
        settings: dict[str, Any] = {"log_config": None, "access_log": False, "lifespan": "off"}
        front = uvicorn.Server(uvicorn.Config(self.app(), timeout_graceful_shutdown=_FINISH_SECONDS, **settings))
        async with EngineServer.start(self._launch, log, hidden=self._options.key_variable) as self.engine:
            serving = asyncio.create_task(front.serve(sockets=[listener]))
            following, ended = asyncio.create_task(self.follow()), asyncio.create_task(self.engine.process.wait())
            await asyncio.wait((serving, following, ended), return_when=asyncio.FIRST_COMPLETED)
            stopped = serving.done()
            if not stopped:
                await asyncio.wait((ended,), timeout=1.0)  # when it dies, its client notices first
                self.current, front.should_exit = None, True
                await serving
            code = self.engine.process.returncode
            following.cancel()
            ended.cancel()
            (problem,) = await asyncio.gather(following, return_exceptions=True)
        if not stopped and code is not None:
            said = self.engine.last_words()
            raise ServeError(f"serve: {self.engine.label} ended with exit code {code}; its last words: {said}")
        if not stopped and problem is not None:
            raise problem

    async def follow(self) -> None:
        """Place the first champion, then whichever gets the alias.

        Raises:
            ServeError: The first one cannot be served.
        """
        await self.engine.until_ready()
        if self._options.with_base or self._options.role == "student":  # memory is read by the base
            files = await asyncio.to_thread(zero_adapter, self.first.adapter, self._directory / self.base_name)
            await self.engine.load(self.base_name, files)
        await self._place(self.first)
        while True:
            await asyncio.sleep(self._options.poll_seconds * (_RETRY_POLLS if self.error else 1))
            await self.check()

    async def check(self) -> None:
        """Look at the registry, and place a new champion; `error` says what failed."""
        error = None
        try:
            wanted = (await asyncio.to_thread(self._registry.aliases, self._options.role)).get(CHAMPION)
            self._wanted, self._checked = wanted, _now()
            if wanted is None:
                error = "serve: no version has the alias `champion` any more."
            elif self.current is None or wanted != self.current.number:
                await self._place(await asyncio.to_thread(self._fetch, wanted))
            if self.current is not None and self.current.composer is not None:
                await self._forget_removed(self.current.composer)
        except PreceptorError as failure:
            error = str(failure)
        if error and error != self.error:
            typer.echo(f"{error} Version {self.current and self.current.number} keeps answering.")
        self.error = error

    def _fetch(self, number: int) -> Version:
        from student.adapters import load_adapter

        self._loads += 1
        name = f"{self._options.role}-v{number}-{self._loads}"
        files = self._registry.fetch(self._options.role, number, self._directory / name)
        return Version(number, name, files, load_adapter(files))

    async def _place(self, version: Version) -> None:
        """Load a version, prove it, and let it get all new requests.

        Raises:
            ServeError: The engine refused it, or its answers are not the registered adapter's.
        """
        try:
            version.composer = await self._composer(version)
            await self.engine.load(version.name, version.files)
            proof = await self.engine.prove(version.name, version.files, version.adapter)
            self._proof = version.number, proof
            if not proof.passed:
                raise ServeError(
                    f"serve: version {version.number} is not served: {proof.reason}. If it adapts other layers than "
                    "the first champion, start `preceptor serve` again."
                )
        except BaseException:
            self.metrics.refusals.inc()
            await self._forget(version)
            raise
        old, self.current, version.since = self.current, version, _now()
        facts = {"role": self._options.role, "version": str(version.number), "digest": version.adapter.digest}
        self.metrics.version.info({**facts, "base": self.base})
        self.metrics.swaps.inc()
        typer.echo(f"version {version.number} answers now")
        if old is not None:
            task = asyncio.create_task(self._retire(old))
            self._retiring.add(task)  # the event loop itself keeps only weak references
            task.add_done_callback(self._retiring.discard)

    async def _composer(self, version: Version) -> Composer | None:
        """Return what composes and reads a student's answers; InputError when the version's files cannot be read."""
        if self._vocabulary is None:
            return None
        memory, options = await asyncio.to_thread(read_version, version.files, self._options.asking)
        if options.answer_format is None:  # a version without settings: decided as `ask` does, in a process of its own
            form = await to_process.run_sync(answer_format, Asking(), ModelRef(self.base, "cpu", options.dtype, None))
            options = options.model_copy(update={"answer_format": form})
        composer = Composer(self._vocabulary, memory, options, has_adapter=True, version=version.number)
        await self._forget_removed(composer)
        return composer

    async def _forget_removed(self, composer: Composer) -> None:
        """Take out of a version's memory what was removed from the inbox since; InboxError if it cannot be read."""
        removed = await asyncio.to_thread(removed_documents, self._directory.parent)
        memory = composer.memory.without(removed)
        await asyncio.to_thread(memory.search, "index")  # the first search builds the index
        composer.memory = memory

    async def _retire(self, old: Version) -> None:
        """Unload a version after its last request, or when the grace period ends."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_GRACE_SECONDS):
                while old.in_flight:
                    await asyncio.sleep(0.1)
        await self._forget(old)

    async def _forget(self, version: Version) -> None:
        await self.engine.unload(version.name)
        if not version.in_flight:  # the engine may read the files again for requests in flight
            shutil.rmtree(version.files, ignore_errors=True)

    def app(self) -> Starlette:
        """Return the HTTP front."""
        forward = [Route(path, Forward(self), methods=["POST"]) for path in _ANSWERED]
        # Without a key, a page of another site whose name was made to point here (DNS rebinding) is turned away.
        hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[LOOPBACK, "localhost", "::1", "[::1]"])
        front = Middleware(Front, metrics=self.metrics, keys=self._keys, paths=_ANSWERED)
        state = {"/health": self._health, "/metrics": self._metrics, "/v1/models": self._models}
        return Starlette(
            routes=[*(Route(path, answer) for path, answer in state.items()), *forward],
            middleware=[front] if self._keys else [front, hosts],
            exception_handlers={HTTPException: refusal},
        )

    async def _metrics(self, _request: Request) -> Response:
        return Response(generate_latest(self.metrics.all), media_type=CONTENT_TYPE_LATEST)

    async def _health(self, _request: Request) -> Response:
        served, (proved, proof) = self.current, self._proof or (None, None)
        content = {
            "status": "starting" if served is None else "degraded" if self.error else "ok",
            "role": self._options.role,
            "engine": self._launch.engine,
            "base": self.base,
            "version": served and served.number,
            "wanted": self._wanted,
            "digest": served and served.adapter.digest,
            "memory": served and served.composer and len(served.composer.memory),
            "served_name": served and served.name,
            "since": served and served.since,
            "in_flight": served and served.in_flight,
            "last_probe": proof and proof._asdict(),
            "last_probe_version": proved,
            "last_check": self._checked,
            "last_error": self.error,
        }
        return JSONResponse(content, 503 if served is None else 200)

    async def _models(self, _request: Request) -> Response:
        self.answering()
        entry = {"object": "model", "created": 0, "owned_by": "preceptor", "root": self.base}
        names = [CHAMPION, self.base] if self._options.with_base else [CHAMPION]
        return JSONResponse({"object": "list", "data": [{"id": name, **entry} for name in names]})

    def answering(self) -> Version:
        """Return the version that gets new requests; HTTPException 503 when there is none yet."""
        if self.current is None:
            raise HTTPException(503, "no version answers yet; see /health", {"retry-after": "5"})
        return self.current

    def internal_name(self, asked: object, version: Version) -> str:
        """Return the engine's name of the model that a client asks for; HTTPException 404 when it is not served."""
        if asked == CHAMPION:
            return version.name
        if asked == self.base and self._options.with_base:
            return self.base_name
        hint = " (the base: start with --with-base)" if asked == self.base else ""
        raise HTTPException(404, f"the model {str(asked)[:200]!r} is not served{hint}, allowed is {CHAMPION!r}")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
