"""`preceptor serve`: the registry's champion behind vLLM's OpenAI server, replaced without a restart.

A Starlette application answers two paths through a child vLLM, which holds each version as a LoRA adapter under a name
of its own; its memory is here, beside it. A new champion is loaded and proved before it gets all new requests; those in
flight finish on the version they began with. A version that fails stays out, and /health says why.
"""

from __future__ import annotations

import asyncio
import importlib.util
import ipaddress
import os
import secrets
import shutil
import signal
import socket
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import typer
import uvicorn
from anyio import to_process
from filelock import FileLock
from starlette.applications import Starlette
from starlette.authentication import AuthenticationBackend, AuthenticationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from evaluation.common.errors import ConfigError, PreceptorError, ServeError
from evaluation.engines.vllm import INSTALL_HINT
from pipelines.ask.answerer import answered_best
from pipelines.ask.answers import AskOptions, Composer, Vocabulary, read_version
from pipelines.lineage.registry import Registry, Role
from pipelines.lineage.store import require_store
from pipelines.lineage.versions import CHAMPION
from pipelines.process import prepare_process
from pipelines.serve.requests import CHAT, COMPLETIONS, Forward
from pipelines.serve.vllm import LOOPBACK, Launch, Proof, VllmServer, zero_adapter
from pipelines.settings import TrackingConfig

if TYPE_CHECKING:
    from student.adapters import Adapter

_ANSWERED = (COMPLETIONS, CHAT)
"""vLLM has further paths, some of which change what it holds; none of them is reachable."""
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
    """Environment variable that holds the clients' key."""
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
    asking: AskOptions = AskOptions()
    """How a student's chats are answered; what is not set is the version's own."""


def read_api_key(host: str, variable: str | None) -> str | None:
    """Return the key that clients must send, from an environment variable; None for none.

    Raises:
        ConfigError: There is no key where there must be one, or it does not fit into a header.
    """
    if variable is None:
        with suppress(ValueError):  # a name
            if host == "localhost" or ipaddress.ip_address(host).is_loopback:
                return None
        raise ConfigError(
            f"serve: --host {host!r} is reachable from other machines, which needs a key. Put one into an environment "
            "variable and give its name with --api-key-env, or stay on 127.0.0.1."
        )
    key = os.environ.get(variable, "")
    # The key itself is never shown, not even when it is refused.
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        state = "has characters that no header takes" if key else "is empty or not set"
        raise ConfigError(
            f"serve: --api-key-env {variable!r}: the variable {state}. Allowed is printable ASCII without blanks, such "
            "as `openssl rand -hex 32` prints."
        )
    return key


def run_server(options: ServeOptions, tracking: TrackingConfig, work_dir: Path) -> None:
    """Serve the champion of a registry until a signal comes.

    Raises:
        ConfigError: Key, address, store, champion or base is missing or refused; nothing was started.
        LineageError: The registry cannot be read, or the champion's files are not those that were registered.
        ServeError: vLLM is missing or ended, or does not answer as the champion.
    """
    key = read_api_key(options.host, options.key_variable)
    require_store(tracking, work_dir)
    if importlib.util.find_spec("vllm") is None:
        raise ServeError(f"serve: vLLM is not installed. {INSTALL_HINT}.")
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
        server = Server(options, Registry.open(tracking, work_dir), key, Path(files).resolve())
        port, host = listener.getsockname()[1], f"[{options.host}]" if ":" in options.host else options.host
        log = work_dir / f"vllm-{port}.log"
        log.unlink(missing_ok=True)
        typer.echo(
            f"starting vLLM for the model champion at http://{host}:{port}/v1 (state: http://{host}:{port}/health)"
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
    """In vLLM, and of the model in replies; never used again."""
    files: Path
    adapter: Adapter
    composer: Composer | None = None
    """Answers chats, with the version's own memory; None leaves them to vLLM, as for a teacher."""
    since: str | None = None
    in_flight: int = 0
    """Requests that it is answering."""


class Server:
    """The child vLLM, the loop that follows the champion, and the HTTP front, on one event loop."""

    vllm: VllmServer

    def __init__(self, options: ServeOptions, registry: Registry, key: str | None, directory: Path) -> None:
        """Fetch the first champion into `directory`; `key` is the clients'."""
        self._options, self._registry, self._key, self._directory = options, registry, key, directory
        self._wanted: int | None = (number := registry.number(options.role, CHAMPION))
        self.base = options.base or registry.recorded_model(options.role, number) or ""
        if not self.base:
            raise ConfigError(f"serve: the run of version {number} recorded no base. Name it with --student.")
        self._loads, self._retiring = 0, set[asyncio.Task[None]]()
        self._vocabulary = Vocabulary.open(self.base) if options.role == "student" else None
        self.first = self._fetch(number)
        modules = tuple(sorted({name.rpartition(".")[2] for name in self.first.adapter.factors}))
        rank = self.first.adapter.rank
        self._launch = Launch(self.base, rank, modules, options.device, options.dtype, options.arguments)
        self.current: Version | None = None
        """Gets new requests; replaced in one step."""
        self.base_name = f"base-of-{self.first.name}"
        """vLLM's name of the adapter that stands for the base."""
        self.error: str | None = None  # why the champion does not answer
        self._checked: str | None = None
        self._proof: tuple[int, Proof] | None = None

    async def run(self, listener: socket.socket, log: Path) -> None:
        """Serve until a signal comes or vLLM, which writes to `log`, ends; requests in flight finish first.

        Raises:
            ServeError: vLLM ended, or the first champion cannot be served.
        """
        settings: dict[str, Any] = {"log_config": None, "access_log": False, "lifespan": "off"}
        front = uvicorn.Server(uvicorn.Config(self.app(), timeout_graceful_shutdown=_FINISH_SECONDS, **settings))
        async with VllmServer.start(self._launch, log, hidden=self._options.key_variable) as self.vllm:
            serving = asyncio.create_task(front.serve(sockets=[listener]))
            following, ended = asyncio.create_task(self.follow()), asyncio.create_task(self.vllm.process.wait())
            await asyncio.wait((serving, following, ended), return_when=asyncio.FIRST_COMPLETED)
            stopped = serving.done()
            if not stopped:
                await asyncio.wait((ended,), timeout=1.0)  # when vLLM dies, its client notices first
                self.current, front.should_exit = None, True
                await serving
            code = self.vllm.process.returncode
            following.cancel()
            ended.cancel()
            (problem,) = await asyncio.gather(following, return_exceptions=True)
        if not stopped and code is not None:
            raise ServeError(f"serve: vLLM ended with exit code {code}; its last words: {self.vllm.last_words()}")
        if not stopped and problem is not None:
            raise problem

    async def follow(self) -> None:
        """Place the first champion, then whichever gets the alias.

        Raises:
            ServeError: The first one cannot be served.
        """
        await self.vllm.until_ready()
        if self._options.with_base or self._options.role == "student":  # memory is read by the base
            files = await asyncio.to_thread(zero_adapter, self.first.adapter, self._directory / self.base_name)
            await self.vllm.load(self.base_name, files)
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
            ServeError: vLLM refused it, or its answers are not the registered adapter's.
        """
        try:
            version.composer = await self._composer(version)
            await self.vllm.load(version.name, version.files)
            proof = await self.vllm.prove(version.name, version.files, version.adapter)
            self._proof = version.number, proof
            if not proof.passed:
                raise ServeError(
                    f"serve: version {version.number} is not served: {proof.reason}. If it adapts other layers than "
                    "the first champion, start `preceptor serve` again."
                )
        except BaseException:
            await self._forget(version)
            raise
        old, self.current, version.since = self.current, version, _now()
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
            form = await to_process.run_sync(answered_best, self.base, self._options.dtype)
            options = options.model_copy(update={"answer_format": form})
        await asyncio.to_thread(memory.search, "index")  # the first search builds the index
        return Composer(self._vocabulary, memory, options, has_adapter=True, version=version.number)

    async def _retire(self, old: Version) -> None:
        """Unload a version after its last request, or when the grace period ends."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_GRACE_SECONDS):
                while old.in_flight:
                    await asyncio.sleep(0.1)
        await self._forget(old)

    async def _forget(self, version: Version) -> None:
        await self.vllm.unload(version.name)
        if not version.in_flight:  # vLLM may read the files again for requests in flight
            shutil.rmtree(version.files, ignore_errors=True)

    def app(self) -> Starlette:
        """Return the HTTP front."""
        forward = [Route(path, Forward(self), methods=["POST"]) for path in _ANSWERED]
        # Without a key, a page of another site whose name was made to point here (DNS rebinding) is turned away.
        guard = (
            Middleware(TrustedHostMiddleware, allowed_hosts=[LOOPBACK, "localhost", "::1", "[::1]"])
            if self._key is None
            else Middleware(AuthenticationMiddleware, backend=_Key(self._key), on_error=_refusal)
        )
        return Starlette(
            routes=[Route("/health", self._health), Route("/v1/models", self._models), *forward],
            middleware=[guard],
            exception_handlers={HTTPException: _refusal},
        )

    async def _health(self, _request: Request) -> Response:
        served, (proved, proof) = self.current, self._proof or (None, None)
        content = {
            "status": "starting" if served is None else "degraded" if self.error else "ok",
            "role": self._options.role,
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
        """Return vLLM's name of the model that a client asks for; HTTPException 404 when it is not served."""
        if asked == CHAMPION:
            return version.name
        if asked == self.base and self._options.with_base:
            return self.base_name
        hint = " (the base: start with --with-base)" if asked == self.base else ""
        raise HTTPException(404, f"the model {str(asked)[:200]!r} is not served{hint}, allowed is {CHAMPION!r}")


class _Key(AuthenticationBackend):
    """Turns away whoever lacks the key, from everything but /health."""

    def __init__(self, key: str) -> None:
        self._expected = f"Bearer {key}".encode()

    async def authenticate(self, conn: HTTPConnection) -> None:
        sent = conn.headers.get("authorization", "").encode()
        if conn.url.path != "/health" and not secrets.compare_digest(sent, self._expected):
            raise AuthenticationError("this server needs its key: Authorization: Bearer KEY")


def _refusal(_conn: HTTPConnection, error: Exception) -> Response:
    """Return an error in the form of OpenAI's API."""
    refused = (
        error if isinstance(error, HTTPException) else HTTPException(401, str(error), {"www-authenticate": "Bearer"})
    )
    content = {"message": refused.detail, "type": "invalid_request_error", "param": None, "code": refused.status_code}
    return JSONResponse({"error": content}, refused.status_code, refused.headers)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
