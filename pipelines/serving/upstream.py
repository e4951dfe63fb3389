"""What is asked of the running vLLM: adapters in and out, and greedy answers for the probes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from evaluation.errors import ServeError
from pipelines.serving.child import LOOPBACK, Child
from pipelines.serving.probes import ServedAnswer

_MANAGEMENT_SECONDS = 300.0
_TOP = 5
"""Likeliest tokens that are asked for at each place, to find the reference's token among them."""


class Upstream:
    """A client of one vLLM server; requests of clients go through `client` as well."""

    def __init__(self, port: int, key: str) -> None:
        """Connect to nothing yet.

        Args:
            port: On loopback.
            key: That the server asks for.
        """
        self.client = httpx.AsyncClient(
            base_url=f"http://{LOOPBACK}:{port}",
            headers={"authorization": f"Bearer {key}"},
            # An answer may take as long as it takes: a server that died closes its connections.
            timeout=httpx.Timeout(None, connect=5.0),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            trust_env=False,  # no proxy of the environment stands between two processes of one machine
        )

    async def wait_ready(self, child: Child, seconds: float) -> bool:
        """Return whether the server answers within some seconds; False as soon as it has ended."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while child.code is None and loop.time() < end:
            try:
                if (await self.client.get("/health", timeout=5.0)).status_code == 200:
                    return True
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.25)
        return False

    async def load(self, name: str, directory: Path) -> None:
        """Load an adapter under a name that was never used in this server.

        Raises:
            ServeError: vLLM refused it or did not answer.
        """
        await self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(directory)}, f"load {name!r}")

    async def unload(self, name: str) -> None:
        """Forget a name; requests that use it go on.

        Raises:
            ServeError: vLLM refused or did not answer.
        """
        await self._post("/v1/unload_lora_adapter", {"lora_name": name}, f"unload {name!r}")

    async def answers(self, name: str, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[ServedAnswer]:
        """Return what an adapter writes greedily after each prompt, end tokens ignored.

        Args:
            name: Of a loaded adapter.
            prompts: Token ids, at least one each.
            new_tokens: Tokens to write after each.

        Raises:
            ServeError: vLLM refused or did not answer, or not in the expected form.
        """
        body = {
            "model": name,
            "prompt": [list(ids) for ids in prompts],
            "max_tokens": new_tokens,
            "temperature": 0.0,
            "ignore_eos": True,
            "logprobs": _TOP,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        reply = (await self._post("/v1/completions", body, f"probe {name!r}")).json()
        try:
            choices = sorted(reply["choices"], key=lambda choice: choice["index"])
            found = [_served_answer(choice) for choice in choices]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ServeError(f"serve: vLLM's answer to the probes of {name!r} has another form: {error!r}") from error
        if len(found) != len(prompts):
            raise ServeError(f"serve: vLLM gave {len(found)} answers to {len(prompts)} probes of {name!r}")
        return found

    async def close(self) -> None:
        """Close all connections."""
        await self.client.aclose()

    async def _post(self, path: str, body: dict[str, Any], action: str) -> Any:
        try:
            reply = await self.client.post(path, json=body, timeout=_MANAGEMENT_SECONDS)
        except httpx.HTTPError as error:
            raise ServeError(f"serve: vLLM could not {action}: {type(error).__name__}: {error}") from error
        if reply.status_code != 200:
            raise ServeError(f"serve: vLLM could not {action}: status {reply.status_code}: {reply.text[:500]}")
        return reply


def _served_answer(choice: dict[str, Any]) -> ServedAnswer:
    logprobs = choice["logprobs"]
    tops = [{_token_id(token): float(value) for token, value in top.items()} for top in logprobs["top_logprobs"]]
    return ServedAnswer([int(token) for token in choice["token_ids"]], tops)


def _token_id(text: str) -> int:
    """Return 17 for `token_id:17`, vLLM's way to name a token without its text."""
    return int(text.removeprefix("token_id:"))
