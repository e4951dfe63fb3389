"""The versions that answer: which the registry names, how they get into the engine, and how they leave it.

A new champion is loaded and proved before it gets all new requests, together with the version before it where that is
served, too; requests in flight finish on the version they began with. A version that fails stays out.
"""

from __future__ import annotations

import asyncio
import shutil
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import typer
from anyio import to_process
from starlette.exceptions import HTTPException

from evaluation.common.errors import ConfigError, PreceptorError, ServeError
from pipelines.ask.answers import Composer, Vocabulary, read_version
from pipelines.inbox.store import removed_documents
from pipelines.lineage.registry import Registry
from pipelines.lineage.versions import CHAMPION, ERASED_TAG, PREVIOUS
from pipelines.models import ModelRef, answer_format
from pipelines.serve.engine import EngineServer, Launch, chosen_engine
from pipelines.serve.proof import Proof, zero_adapter
from pipelines.serve.requests import Metrics
from pipelines.settings import Asking

if TYPE_CHECKING:
    from pipelines.serve.server import ServeOptions
    from student.adapters import Adapter

Variant = Literal["champion", "previous", "base"]
"""Models that a client can name: the version in use, the one that a rollback leads to, the base without an adapter."""
BASE: Variant = "base"
_GRACE_SECONDS = 600.0
"""Patience with requests in flight of a version that is replaced."""
_RETRY_POLLS = 12
"""After a failure the registry is polled so much more rarely."""


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
    ready: bool = False
    """Whether the engine holds it and was proved to compute it."""
    in_flight: int = 0
    """Requests that it is answering."""


class Chosen(NamedTuple):
    """What answers a request."""

    version: Version
    of_base: bool
    """Whether the base alone is meant; then the version is the champion, whose form of a question is used."""

    @property
    def number(self) -> int | None:
        """Of the version that answers; None for the base."""
        return None if self.of_base else self.version.number


class Versions:
    """The loop that follows the registry, and what answers now."""

    engine: EngineServer

    def __init__(self, options: ServeOptions, registry: Registry, directory: Path, metrics: Metrics) -> None:
        """Fetch the first champion into `directory`, which lies in the work directory."""
        self._options, self._registry, self._directory, self._metrics = options, registry, directory, metrics
        self.wanted: int | None = (number := registry.number(options.role, CHAMPION))
        self.base = options.base or registry.recorded_model(options.role, number) or ""
        if not self.base:
            raise ConfigError(f"serve: the run of version {number} recorded no base. Name it with --student.")
        self._fetches, self._retiring = 0, set[asyncio.Task[None]]()
        self._vocabulary = Vocabulary.open(self.base) if options.role == "student" else None
        self.first = self._fetch(number)
        self._held = {number: self.first}
        self._placed = number, self._look()[1]
        modules = tuple(sorted({name.rpartition(".")[2] for name in self.first.adapter.factors}))
        place = options.device, options.dtype, options.arguments, chosen_engine(options.engine, options.arguments)
        self.launch = Launch(self.base, self.first.adapter.rank, modules, *place)
        self.current: Version | None = None
        """Gets new requests for the champion; replaced in one step, with the next."""
        self.previous: Version | None = None
        self.base_name = f"base-of-{self.first.name}"
        """The engine's name of the adapter that stands for the base."""
        self.error: str | None = None
        """Why a version that should answer does not."""
        self.checked: str | None = None
        self.proof: tuple[int, Proof] | None = None
        """The last one, of which version."""

    async def follow(self) -> None:
        """Place the first versions, then whichever get the aliases.

        Raises:
            ServeError: The champion cannot be served.
        """
        await self.engine.until_ready()
        if BASE in self._options.variants or self._options.role == "student":  # memory is read by the base
            files = await asyncio.to_thread(zero_adapter, self.first.adapter, self._directory / self.base_name)
            await self.engine.load(self.base_name, files)
        self.error = await self._place(*self._placed)
        while True:
            await asyncio.sleep(self._options.poll_seconds * (_RETRY_POLLS if self.error else 1))
            await self.check()

    async def check(self) -> None:
        """Look at the registry, and place what it names; `error` says what failed."""
        error = None
        try:
            self.wanted, before = await asyncio.to_thread(self._look)
            self.checked = _now()
            now = tuple(version and version.number for version in (self.current, self.previous))
            if self.wanted is None:
                error = "serve: no version has the alias `champion` any more."
            elif (self.wanted, before) != now:
                error = await self._place(self.wanted, before)
            if composers := [each.composer for each in self._held.values() if each.composer is not None]:
                await self._forget_removed(*composers)
        except PreceptorError as failure:
            error = str(failure)
        if error and self.current is not None and self.current.number != self.wanted:
            await self._stop_erased(self.current.number)
        if error and error != self.error:
            kept = self.current and f"Version {self.current.number} keeps answering."
            typer.echo(f"{error} {kept or 'No version answers.'}")
        self.error = error

    async def _stop_erased(self, number: int) -> None:
        """Let nothing answer any more, where a version that was erased has no successor that can."""
        with suppress(PreceptorError):  # the next look at the registry asks again
            if ERASED_TAG in await asyncio.to_thread(self._registry.tags, self._options.role, number):
                self.current = self.previous = None
                self._retire_all_but()

    def lose(self) -> None:
        """Let nothing answer: the engine is gone, and the next one must load and prove anew what it held."""
        self.current = self.previous = None
        for version in self._held.values():
            version.ready = False

    def _look(self) -> tuple[int | None, int | None]:
        """Return champion and previous version in the registry; the latter is None where it is not served."""
        if PREVIOUS in self._options.variants:
            return self._registry.in_use(self._options.role)
        return self._registry.aliases(self._options.role).get(CHAMPION), None

    def _fetch(self, number: int) -> Version:
        from student.adapters import load_adapter

        self._fetches += 1
        name = f"{self._options.role}-v{number}-{self._fetches}"
        files = self._registry.fetch(self._options.role, number, self._directory / name)
        return Version(number, name, files, load_adapter(files))

    async def _place(self, number: int, before: int | None) -> str | None:
        """Let a champion and the version before it get all new requests; return why the latter cannot, if so.

        Raises:
            PreceptorError: The champion cannot be fetched, was refused, or is not computed right.
        """
        champion = await self._ready(number)
        previous: Version | None = None
        problem: str | None = None
        try:
            previous = None if before is None else await self._ready(before)
        except PreceptorError as error:
            problem = str(error)
        changed = champion is not self.current
        self.current, self.previous, self._placed = champion, previous, (number, before)
        if changed:
            champion.since = _now()
            facts = {"role": self._options.role, "version": str(number), "digest": champion.adapter.digest}
            self._metrics.version.info({**facts, "base": self.base})
            self._metrics.swaps.inc()
            typer.echo(f"version {number} answers now")
        self._retire_all_but(champion, previous)
        return problem

    def _retire_all_but(self, *kept: Version | None) -> None:
        for old in [each for each in self._held.values() if each not in kept]:
            del self._held[old.number]
            task = asyncio.create_task(self._retire(old))
            self._retiring.add(task)  # the event loop itself keeps only weak references
            task.add_done_callback(self._retiring.discard)

    async def _ready(self, number: int) -> Version:
        """Return a version that the engine holds and computes right; else PreceptorError, and it is forgotten."""
        version = self._held.get(number)
        if version is None:
            version = await asyncio.to_thread(self._fetch, number)
        if version.ready:
            return version
        try:
            version.composer = await self._composer(version)
            await self.engine.load(version.name, version.files)
            proof = await self.engine.prove(version.name, version.files, version.adapter)
            self.proof = number, proof
            if not proof.passed:
                raise ServeError(
                    f"serve: version {number} is not served: {proof.reason}. If it adapts other layers than the first "
                    "champion, start `preceptor serve` again."
                )
        except BaseException:
            self._metrics.refusals.inc()
            self._held.pop(number, None)
            await self._forget(version)
            raise
        version.ready, self._held[number] = True, version
        return version

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

    async def _forget_removed(self, *composers: Composer) -> None:
        """Take out of versions' memories what was removed from the inbox since; InboxError if it cannot be read."""
        removed = await asyncio.to_thread(removed_documents, self._directory.parent)
        for composer in composers:
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

    def answering(self, model: object = CHAMPION) -> Chosen:
        """Return what answers a model's requests; HTTPException 503 when nothing answers yet, 404 for other models."""
        if self.current is None:
            raise HTTPException(503, "no version answers yet; see /health", {"retry-after": "5"})
        if model == CHAMPION or (model == BASE and BASE in self._options.variants):
            return Chosen(self.current, model == BASE)
        if model == PREVIOUS and self.previous is not None:
            return Chosen(self.previous, of_base=False)
        why = f"allowed is {', '.join(self.models())}"
        if model == PREVIOUS and PREVIOUS in self._options.variants:
            why = f"before version {self.current.number} none was the champion, or it cannot be served; see /health"
        elif model in (PREVIOUS, BASE):
            why += f"; start with --variants champion,{model}"
        raise HTTPException(404, f"the model {str(model)[:200]!r} is not served: {why}")

    def models(self) -> list[str]:
        """Return the names of the models that are served now."""
        served = {CHAMPION: True, PREVIOUS: self.previous is not None, BASE: BASE in self._options.variants}
        return [name for name, there in served.items() if there]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
