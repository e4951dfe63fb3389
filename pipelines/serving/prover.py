"""Runs the probes of a loaded adapter: reference answers in a child process, then vLLM's, then the comparison."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path

from evaluation.errors import ServeError
from pipelines.serving.champions import Champion
from pipelines.serving.child import Child, last_words
from pipelines.serving.config import ServeConfig
from pipelines.serving.probes import PROMPTS, ProbeRecord, Reference, compare
from pipelines.serving.reference import ReferenceRequest
from pipelines.serving.upstream import Upstream


class Prover:
    """Compares what vLLM serves with what was registered; references are computed once for each adapter."""

    def __init__(self, config: ServeConfig, model: str, directory: Path) -> None:
        """Prove adapters of one base.

        Args:
            config: Of the server.
            model: Of the base, as `load_checkpoint` takes it.
            directory: For files of the reference's process.
        """
        self._config = config
        self._model = model
        self._directory = directory
        self._references: dict[str, asyncio.Task[Reference]] = {}

    def prepare(self, champion: Champion) -> asyncio.Task[Reference]:
        """Return the reference answers of an adapter that are being computed, or were; a failure is tried again."""
        task = self._references.get(champion.digest)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._references[champion.digest] = asyncio.create_task(self._reference(champion))
        return task

    async def close(self) -> None:
        """End what is being computed."""
        for task in self._references.values():
            task.cancel()
        await asyncio.gather(*self._references.values(), return_exceptions=True)

    async def prove(self, upstream: Upstream, name: str, champion: Champion) -> ProbeRecord:
        """Return how the adapter that is served under a name compares with the registered one.

        Args:
            upstream: Where it is loaded.
            name: Its name there.
            champion: The registered one.

        Raises:
            ServeError: There is no comparison: no reference, no answer of vLLM, or an adapter of another base.
        """
        reference = await self.prepare(champion)
        if champion.base_digest not in ("", *reference.base_digests):
            raise ServeError(
                f"serve: version {champion.version} was trained on the base {champion.base_digest[:12]!r}, and "
                f"{self._model!r} is {reference.base_digests[0][:12]!r}. Serve it with its own base (--student)."
            )
        served = await upstream.answers(name, [a.prompt for a in reference.answers], self._config.options.probe_tokens)
        return compare(reference, served, tolerance=self._config.tolerance, zero=champion.zero)

    async def _reference(self, champion: Champion) -> Reference:
        """Return the reference answers, computed in a process of their own."""
        request = ReferenceRequest(
            model=self._model,
            adapter=champion.directory.resolve(),
            prompts=[*champion.prompts, *PROMPTS],
            new_tokens=self._config.options.probe_tokens,
            dtype=self._config.dtype,
        )
        with tempfile.TemporaryDirectory(prefix="reference-", dir=self._directory) as scratch:
            asked, answer, log = (Path(scratch, name).resolve() for name in ("request.json", "answer.json", "log"))
            asked.write_text(request.model_dump_json(), encoding="utf-8")
            command = [sys.executable, "-P", "-m", "pipelines.serving.reference", str(asked), str(answer)]
            hidden = self._config.api_key_env
            child = await Child.start(command, {k: v for k, v in os.environ.items() if k != hidden}, log)
            limit = self._config.options.probe_seconds
            try:
                code = await asyncio.wait_for(child.wait(), limit)
            except TimeoutError:
                raise ServeError(
                    f"serve: the reference answers of version {champion.version} took longer than {limit:g} s. Raise "
                    "probe_seconds."
                ) from None
            finally:
                await child.stop()
            if code != 0:
                raise ServeError(
                    f"serve: the reference answers of version {champion.version} could not be computed (exit code "
                    f"{code}): {last_words(log)}"
                )
            return Reference.model_validate_json(answer.read_text(encoding="utf-8"))
