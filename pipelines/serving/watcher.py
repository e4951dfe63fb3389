"""Follows the champion: a new one is fetched, loaded, proved and put in place; what fails leaves the old one there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from evaluation.engines.vllm_options import allowed_rank
from evaluation.errors import PreceptorError, ServeError
from pipelines.serving.champions import Champion, zero_adapter
from pipelines.serving.options import ServingOptions
from pipelines.serving.probes import ProbeRecord
from pipelines.serving.state import Served, ServingState, now
from pipelines.serving.upstream import Upstream

_LONGEST_RETRY_SECONDS = 3600.0


class Source(Protocol):
    """Where champions come from: `Champions`."""

    def current(self) -> int | None:
        """Return the champion's version, or None."""

    def fetch(self, version: int) -> Champion:
        """Return a version with its files, checked."""

    def discard(self, directory: Path) -> None:
        """Remove a version's files."""


class Proof(Protocol):
    """What proves an adapter: `Prover`."""

    async def prove(self, upstream: Upstream, name: str, champion: Champion) -> ProbeRecord:
        """Return how a loaded adapter compares with the registered one."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the running vLLM was started for."""

    rank: int
    """Largest rank of an adapter."""
    modules: frozenset[str]
    """Ends of the names of layers that adapters may have; others would be left out without a word."""


@dataclass(slots=True)
class _Refusal:
    """A version that could not be put in place."""

    version: int
    attempts: int
    again_at: float
    """Time of the event loop at which it is tried again."""
    reason: str


class Watcher:
    """Puts champions in place, one at a time."""

    def __init__(
        self,
        source: Source,
        proof: Proof,
        state: ServingState,
        limits: Limits,
        options: ServingOptions,
        say: Callable[[str], None],
    ) -> None:
        """Watch nothing yet.

        Args:
            source: Where champions come from.
            proof: What proves them.
            state: Where they are put.
            limits: What vLLM was started for.
            options: Times.
            say: Told one line for each thing worth knowing.
        """
        self._source, self._proof, self._state = source, proof, state
        self._limits, self._options, self._say = limits, options, say
        self._loads = 0
        self._refusal: _Refusal | None = None
        self._retiring: set[asyncio.Task[None]] = set()

    async def place(self, upstream: Upstream, champion: Champion) -> Served:
        """Load a champion under a fresh name, prove it, and let it answer from now on.

        Raises:
            ServeError: It does not fit, vLLM refused it, or its answers are not the registered adapter's.
        """
        self._check_fit(champion)
        self._loads += 1
        name = f"{self._state.role}-v{champion.version}-{champion.digest[:8]}-{self._loads}"
        await upstream.load(name, champion.directory.resolve())
        try:
            probe = await self._proof.prove(upstream, name, champion)
            self._state.last_probe = (champion.version, probe)
            if not probe.passed:
                raise ServeError(f"serve: version {champion.version} is not served: {probe.reason}")
        except BaseException:
            await _unload(upstream, name, self._say)
            raise
        served = Served(name, champion, upstream, now(), probe)
        served.idle.set()
        old, self._state.current = self._state.current, served
        self._state.error, self._refusal = None, None
        if old is not None:
            self._start_retiring(old)
        return served

    async def offer_base(self, upstream: Upstream, champion: Champion, directory: Path) -> None:
        """Load the adapter that stands for the base.

        Args:
            upstream: Where to.
            champion: Whose layers it has.
            directory: For its files.

        Raises:
            ServeError: vLLM refused it.
        """
        self._loads += 1
        name = f"base-{self._loads}"
        await upstream.load(name, await asyncio.to_thread(zero_adapter, champion, directory.resolve() / name))
        self._state.base_name = name

    async def watch(self) -> None:
        """Look at the registry again and again, until cancelled."""
        while True:
            await asyncio.sleep(self._options.poll_seconds)
            await self.check()

    async def check(self) -> None:
        """Look at the registry once, and follow it."""
        state, served = self._state, self._state.current
        if served is None:
            return
        try:
            wanted = await asyncio.to_thread(self._source.current)
        except PreceptorError as error:
            self._report(str(error))
            return
        state.wanted, state.last_check = wanted, now()
        if wanted is None:
            self._report(f"no version has the alias `champion` any more; version {served.champion.version} stays")
        elif wanted == served.champion.version:
            state.error = self._refusal = None
        elif self._refusal is None or self._refusal.version != wanted or _time() >= self._refusal.again_at:
            await self._follow(wanted, served)
        else:
            self._report(self._refusal.reason)

    def forget(self) -> None:
        """Give up what is under way in a vLLM that is gone."""
        for task in self._retiring:
            task.cancel()

    async def _follow(self, wanted: int, served: Served) -> None:
        """Put another version in place, or note why it stays out."""
        champion = None
        try:
            champion = await asyncio.to_thread(self._source.fetch, wanted)
            await self.place(served.upstream, champion)
        except PreceptorError as error:
            if champion is not None:
                self._source.discard(champion.directory)
            before = self._refusal.attempts if self._refusal and self._refusal.version == wanted else 0
            wait = min(self._options.retry_seconds * 2**before, _LONGEST_RETRY_SECONDS)
            reason = (
                f"{error} Version {served.champion.version} goes on answering; the next try comes {wait:g} s later."
            )
            self._refusal = _Refusal(wanted, before + 1, _time() + wait, reason)
            self._report(reason)
        else:
            self._say(f"version {wanted} answers now, instead of version {served.champion.version}")

    def _check_fit(self, champion: Champion) -> None:
        """Refuse what vLLM would refuse, or load without using all of it."""
        more = sorted(champion.modules - self._limits.modules)
        room = allowed_rank(self._limits.rank)
        if champion.rank > room or more:
            problem = f"it adapts {more} as well" if more else f"its rank is {champion.rank}, allowed is {room}"
            raise ServeError(
                f"serve: version {champion.version} does not fit the vLLM that was started for an earlier one: "
                f"{problem}. Start `preceptor serve` again (--max-rank leaves room for later)."
            )

    def _report(self, error: str) -> None:
        """Keep what is wrong for `/health`, and say it once."""
        if error != self._state.error:
            self._say(error)
        self._state.error = error

    def _start_retiring(self, old: Served) -> None:
        task = asyncio.create_task(self._retire(old))
        self._retiring.add(task)  # the event loop itself keeps only weak references
        task.add_done_callback(self._retiring.discard)

    async def _retire(self, old: Served) -> None:
        """Unload an adapter after its last request, or when the grace is over."""
        try:
            await asyncio.wait_for(old.idle.wait(), self._options.grace_seconds)
        except TimeoutError:
            self._say(f"{old.name} still answers {old.in_flight} requests after the grace period; no new ones reach it")
        await _unload(old.upstream, old.name, self._say)
        if not old.in_flight:  # vLLM may read the files again for requests that go on
            self._source.discard(old.champion.directory)


def _time() -> float:
    return asyncio.get_running_loop().time()


async def _unload(upstream: Upstream, name: str, say: Callable[[str], None]) -> None:
    """Unload an adapter; a vLLM that cannot do so is no reason to stop."""
    try:
        await upstream.unload(name)
    except ServeError as error:
        say(str(error))
