"""The whole server: the HTTP side in the foreground, vLLM and the watcher behind it, and an orderly end."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import uvicorn

from evaluation.errors import ConfigError, ServeError
from pipelines.serving.champions import Champion, Champions
from pipelines.serving.child import Child, free_port, last_words, vllm_command, vllm_environment
from pipelines.serving.config import ServeConfig
from pipelines.serving.prover import Prover
from pipelines.serving.proxy import build_app
from pipelines.serving.state import ServingState
from pipelines.serving.upstream import Upstream
from pipelines.serving.watcher import Limits, Watcher

_WELL_AGAIN_SECONDS = 600.0
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 1.0, 60.0


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address.

    Raises:
        ConfigError: The address is taken, or is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(
            f"serve: cannot listen on {host!r}, port {port}: {error.strerror or error}. Give another with --port or "
            "--host."
        ) from error


def base_of(config: ServeConfig, champions: Champions, version: int) -> str:
    """Return the base model: the configured one, or the one that the champion's run recorded.

    Raises:
        ConfigError: Neither is there.
        LineageError: The registry cannot be read.
    """
    model = config.model or champions.recorded_model(version)
    if model is None:
        raise ConfigError(
            f"serve: the run of version {version} of {champions.name!r} recorded no base model. Name it with --student."
        )
    return model


class Supervisor:
    """Keeps vLLM running with a champion in it, and the champion up to date."""

    def __init__(
        self,
        config: ServeConfig,
        state: ServingState,
        champions: Champions,
        first: Champion,
        directory: Path,
        say: Callable[[str], None],
    ) -> None:
        """Prepare to serve.

        Args:
            config: What is served.
            state: Shared with the HTTP side.
            champions: Where champions come from.
            first: Champion at the start.
            directory: For logs and files of adapters.
            say: Told one line for each thing worth knowing.
        """
        self._config, self._state, self._directory, self._say = config, state, directory, say
        self._limits = Limits(config.options.max_rank or first.rank, first.modules)
        self._champion = first
        self._prover = Prover(config, state.base, directory)
        self._watcher = Watcher(champions, self._prover, state, self._limits, config.options, say)
        self._key = secrets.token_hex(32)
        self.log = directory / "vllm.log"
        """What vLLM says."""

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until cancelled.

        Args:
            ready: Called each time a champion begins to answer after a start of vLLM.

        Raises:
            ServeError: The first champion cannot be served, or vLLM died too often.
        """
        try:
            self._prover.prepare(self._champion)  # while vLLM starts
            await self._keep_running(ready)
        finally:
            await self._prover.close()

    async def _keep_running(self, ready: Callable[[], None]) -> None:
        loop, failures, served_before = asyncio.get_running_loop(), 0, False
        while True:
            began = loop.time()
            try:
                async with self._vllm() as (child, upstream):
                    await self._begin(upstream)
                    ready()
                    served_before = True
                    await self._until_it_ends(child)
            except ServeError as error:
                if not served_before:
                    raise
                failures = 1 if loop.time() - began > _WELL_AGAIN_SECONDS else failures + 1
                if failures > self._config.options.restarts:
                    raise ServeError(f"serve: giving up after {failures - 1} restarts: {error}") from error
                wait = min(_FIRST_WAIT_SECONDS * 2 ** (failures - 1), _LONGEST_WAIT_SECONDS)
                self._say(f"{error} Starting it again in {wait:g} s.")
                self._state.error = str(error)
                self._state.restarts += 1
                await asyncio.sleep(wait)

    @asynccontextmanager
    async def _vllm(self) -> AsyncIterator[tuple[Child, Upstream]]:
        """Run vLLM; afterwards nobody answers, and it is gone."""
        port = free_port()
        command = vllm_command(self._config, self._state.base, self._limits.rank, sorted(self._limits.modules), port)
        environment = vllm_environment(self._key, device=self._config.device, hidden=self._config.api_key_env)
        child, upstream = await Child.start(command, environment, self.log), Upstream(port, self._key)
        try:
            if not await upstream.wait_ready(child, self._config.options.start_seconds):
                how = "did not start in time" if child.code is None else f"ended with exit code {child.code}"
                raise ServeError(f"serve: vLLM {how}; its last words in {str(self.log)!r}: {last_words(self.log)}")
            yield child, upstream
        finally:
            served, self._state.current, self._state.base_name = self._state.current, None, None
            if served is not None:
                self._champion = served.champion  # the one to go on with
            self._watcher.forget()
            await child.stop()
            await upstream.close()

    async def _begin(self, upstream: Upstream) -> None:
        """Put the champion in place in a fresh vLLM."""
        if self._config.options.with_base:
            await self._watcher.offer_base(upstream, self._champion, self._directory)
        await self._watcher.place(upstream, self._champion)

    async def _until_it_ends(self, child: Child) -> None:
        """Follow the registry until vLLM ends.

        Raises:
            ServeError: It ended.
        """
        watching, ended = asyncio.create_task(self._watcher.watch()), asyncio.create_task(child.wait())
        try:
            await asyncio.wait((watching, ended), return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                watching.result()
        finally:
            for task in (watching, ended):
                task.cancel()
            await asyncio.gather(watching, ended, return_exceptions=True)
        raise ServeError(
            f"serve: vLLM ended with exit code {child.code}; its last words in {str(self.log)!r}: "
            f"{last_words(self.log)}"
        )


async def serve_until_stopped(
    supervisor: Supervisor,
    state: ServingState,
    config: ServeConfig,
    listener: socket.socket,
    key: str | None,
    ready: Callable[[], None],
) -> None:
    """Answer until a signal comes or vLLM is given up; then requests finish and vLLM ends.

    Args:
        supervisor: Keeps vLLM running.
        state: Shared with it.
        config: What is served.
        listener: Bound to the address.
        key: That clients must show; None for none.
        ready: Called each time a champion begins to answer after a start of vLLM.

    Raises:
        ServeError: The first champion cannot be served, or vLLM died too often.
    """
    app = build_app(state, key=key, max_body_bytes=int(config.options.max_body_mb * 1e6))
    http = Http(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=max(1, round(config.options.shutdown_seconds)),
        )
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, http.stop)
    supervising = asyncio.create_task(supervisor.run(ready))
    supervising.add_done_callback(lambda _: http.stop())
    try:
        await http.serve(sockets=[listener])
    finally:
        supervising.cancel()
        with suppress(asyncio.CancelledError):
            await supervising


class Http(uvicorn.Server):
    """uvicorn with signals left to the loop: its own way ends by raising the signal again, before vLLM is stopped."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield

    def stop(self) -> None:
        """Take no more connections, and end when requests have finished; asked twice, end at once."""
        self.force_exit = self.should_exit
        self.should_exit = True


@contextmanager
def own_directory(work_dir: Path, port: int) -> Iterator[Path]:
    """Hold an empty directory for the server on a port; only whoever listens on the port uses it."""
    directory = work_dir / "serving" / str(port)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    try:
        yield directory
    finally:
        for place in directory.iterdir():
            if place.is_dir():  # adapters; vLLM's log stays to be read
                shutil.rmtree(place, ignore_errors=True)
