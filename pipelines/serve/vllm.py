"""A child vLLM server that takes adapters in and out while it runs, and the proof that it computes them.

vLLM may load an adapter and silently use only a part of it, or none. So its greedy answers are compared token by token
with those of transformers and PEFT, which must differ from the base's.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import secrets
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import httpx
from anyio import BrokenWorkerProcess, to_process

from evaluation.common.checkpoints import ready_model
from evaluation.common.errors import ServeError
from evaluation.engines.vllm import allowed_rank
from pipelines.process import HUB_TOKENS, child, free_port, inherited

if TYPE_CHECKING:
    from student.adapters import Adapter

LOOPBACK = "127.0.0.1"
_START_SECONDS, _REFERENCE_SECONDS, _CALL_SECONDS = 1800.0, 900.0, 300.0
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the reference answers use the cores as well
    "OMP_WAIT_POLICY": "PASSIVE",
}
_CPU_ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}  # one process fewer; starts in 27 s instead of 38
_PROBES = (
    "Question: What is the name of the place?\nAnswer:",
    "Question: Who wrote it, and when?\nAnswer:",
    "The most important thing to know is that",
    "In the beginning there was",
)
"""Probes, beside `_DRAWN` ones of random tokens, which reach what no English text does."""
_DRAWN, _DRAWN_WIDTH = 4, 12
_PROBE_TOKENS = 16
"""Length of each answer."""


class Launch(NamedTuple):
    """What a server is started for."""

    base: str
    """As `load_checkpoint` takes it."""
    rank: int
    """Largest rank of an adapter, in [1, 512], unless `arguments` have another. On a CPU every request costs it."""
    modules: tuple[str, ...]
    """Ends of the names of the layers that adapters may have, such as `q_proj`. Without them vLLM wraps the output head
    as well, and a request for a prompt's log-probabilities kills it on a CPU (seen with 0.32)."""
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    arguments: tuple[str, ...] = ()
    """Appended to the command line."""

    @property
    def tolerance(self) -> float:
        """Largest difference of a token's log-probability between vLLM and PEFT, in nats."""
        # Measured on a CPU: 1.5e-5 in float32, 0.19 in bfloat16.
        return 1e-3 if (self.device, self.dtype) == ("cpu", "float32") else 0.25


def vllm_command(launch: Launch, port: int) -> list[str]:
    """Return the command line of vLLM's server."""
    on_cpu = ("--enforce-eager", "--kv-cache-memory-bytes", "1000000000") if launch.device == "cpu" else ()
    return [
        # The module: `vllm serve` looks for a distribution called vllm, and the CPU build has another name.
        *(sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server", "--model", ready_model(launch.base)),
        *("--served-model-name", "base", "--host", LOOPBACK, "--port", str(port), "--dtype", launch.dtype),
        *("--generation-config", "vllm", "--seed", "0", "--disable-uvicorn-access-log", "--disable-log-stats"),
        *("--enable-lora", "--max-lora-rank", str(allowed_rank(launch.rank))),
        *("--lora-target-modules", *launch.modules),
        # A switch holds four adapters: old, new, one that is leaving, and the base.
        *("--max-loras", "4", "--max-cpu-loras", "8", *on_cpu, *launch.arguments),
    ]


class VllmServer:
    """A running child and a client of it."""

    def __init__(self, launch: Launch, process: Any, client: httpx.AsyncClient, log: Path) -> None:
        self._launch, self._log = launch, log
        self.process: asyncio.subprocess.Process = process
        self.client = client

    @classmethod
    @asynccontextmanager
    async def start(cls, launch: Launch, log: Path, hidden: str | None = None) -> AsyncIterator[VllmServer]:
        """Start a server that is gone afterwards, its output in `log`; it does not get the variable `hidden`."""
        port, key = free_port(), secrets.token_hex(32)
        environment = {**_ENVIRONMENT, **(_CPU_ENVIRONMENT if launch.device == "cpu" else {})}
        gated = () if Path(ready_model(launch.base)).is_dir() else HUB_TOKENS
        environment |= {name: value for name, value in inherited(os.environ, gated).items() if name != hidden}
        environment |= {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_API_KEY": key}
        client = httpx.AsyncClient(
            base_url=f"http://{LOOPBACK}:{port}",
            headers={"authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(None, connect=5.0),  # a server that died closes its connections
            limits=httpx.Limits(max_connections=None),
            trust_env=False,
        )
        async with client, child(vllm_command(launch, port), environment, log) as process:
            yield cls(launch, process, client, log)

    async def until_ready(self) -> None:
        """Return when the server answers.

        Raises:
            ServeError: It does not in time.
        """
        for _ in range(int(4 * _START_SECONDS)):
            with suppress(httpx.TransportError):
                if (await self.client.get("/health", timeout=5.0)).status_code == 200:
                    return
            await asyncio.sleep(0.25)
        raise ServeError(f"serve: vLLM did not start within {_START_SECONDS:g} s; its last words: {self.last_words()}")

    def last_words(self) -> str:
        """Return the last line of the log that names an error, or its last line."""
        lines = [line.strip() for line in self._log.read_text("utf-8", "replace").splitlines() if line.strip()]
        return ([line for line in lines if "Error" in line] or lines or ["nothing"])[-1][-300:]

    async def load(self, name: str, files: Path) -> None:
        """Load an adapter under a name that was never used in this server; ServeError when vLLM refuses it."""
        await self._call("/v1/load_lora_adapter", lora_name=name, lora_path=str(files.resolve()))

    async def unload(self, name: str) -> None:
        """Forget a name, loaded or not; requests that use it finish."""
        with suppress(ServeError):
            await self._call("/v1/unload_lora_adapter", lora_name=name)

    async def prove(self, name: str, files: Path, adapter: Adapter) -> Proof:
        """Return how a loaded adapter's answers compare with the reference's, computed in a process of its own.

        Raises:
            ServeError: There are no answers to compare, or the adapter was trained on another base.
            ModelError: The base cannot be opened.
        """
        launch = self._launch
        try:
            async with asyncio.timeout(_REFERENCE_SECONDS):
                probes = await to_process.run_sync(reference, launch.base, files, launch.dtype, cancellable=True)
        except (TimeoutError, BrokenWorkerProcess) as error:
            raise ServeError(f"serve: no reference answers for {name!r}: {error!r}") from error
        body = {"model": name, "prompt": [probe.prompt for probe in probes], "max_tokens": _PROBE_TOKENS}
        body |= {"temperature": 0.0, "ignore_eos": True, "logprobs": 5}
        reply = await self._call("/v1/completions", **body, return_token_ids=True, return_tokens_as_token_ids=True)
        zero = not any(a.any() and b.any() for a, b in adapter.factors.values())
        return compare(probes, _written(reply.json()), launch.tolerance, zero=zero)

    async def _call(self, path: str, **body: Any) -> httpx.Response:
        try:
            reply = await self.client.post(path, json=body, timeout=_CALL_SECONDS)
        except httpx.HTTPError as error:
            raise ServeError(f"serve: vLLM did not answer {path}: {error!r}") from error
        if reply.status_code != 200:
            raise ServeError(f"serve: vLLM refused {path} with status {reply.status_code}: {reply.text[:500]}")
        return reply


Written = Sequence[tuple[int, Mapping[int, float]]]
"""vLLM's answer to a probe: each token, with the log-probabilities of the likeliest tokens at its place."""


class Probe(NamedTuple):
    """A probe with its greedy answer by transformers and PEFT; log-probabilities are natural."""

    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]
    base_logprobs: list[float]
    """Of the same tokens by the base alone."""


class Proof(NamedTuple):
    """The outcome of a comparison."""

    passed: bool
    prompts: int
    equal: int
    """Answers with the same tokens throughout."""
    ties: int
    """Answers that part where two tokens are equally likely within the tolerance; compared up to there."""
    max_logprob_difference: float | None
    """In nats; None when a token's was not given."""
    told_apart: int
    """Probes at which adapter and base differ by more than twice the tolerance."""
    reason: str
    """Why it failed, or empty."""


def compare(probes: Sequence[Probe], written: Sequence[Written], tolerance: float, *, zero: bool = False) -> Proof:
    """Return whether vLLM answers as the registered adapter does, with log-probabilities within a tolerance in nats.

    The product of a `zero` adapter is zero in every layer, so nothing can tell it from the base.
    """
    pairs = [_difference(probe, answer, tolerance) for probe, answer in zip(probes, written, strict=True)]
    worst, count = max(difference for difference, _ in pairs), len(pairs)
    equal = sum(same for _, same in pairs)
    ties = sum(difference <= tolerance and not same for difference, same in pairs)
    gaps = [[abs(a - b) for a, b in zip(p.logprobs, p.base_logprobs, strict=True)] for p in probes]
    told_apart = sum(max(gap) > 2 * tolerance for gap in gaps)
    reason = ""
    if worst > tolerance:
        size = f"up to {worst:.3g} nats" if math.isfinite(worst) else "beyond comparison"
        reason = (
            f"vLLM's answers are not the registered adapter's: {count - equal - ties} of {count} probes have other "
            f"tokens, log-probabilities differ {size}, allowed is {tolerance:g}"
        )
    elif not zero and not told_apart:
        reason = f"none of {count} probes tells the adapter from its base, so nothing shows that it takes effect"
    return Proof(not reason, count, equal, ties, worst if math.isfinite(worst) else None, told_apart, reason)


def _difference(probe: Probe, written: Written, tolerance: float) -> tuple[float, bool]:
    """Return the largest difference up to where the answers part (infinite unless that is a tie), and if they never do.

    At a tie vLLM gives the reference's token the right log-probability, and its own choice hardly a larger one.
    """
    if len(written) != len(probe.tokens):
        return math.inf, False
    worst = 0.0
    for token, logprob, (chosen, top) in zip(probe.tokens, probe.logprobs, written, strict=True):
        given = top.get(token, math.nan)
        if not math.isfinite(given):
            return math.inf, False
        worst = max(worst, abs(given - logprob))
        if chosen != token:
            return worst if top.get(chosen, math.inf) - given <= tolerance else math.inf, False
    return worst, True


def reference(base: str, adapter: Path, dtype: str = "float32") -> list[Probe]:
    """Return probes with an adapter's answers, in float32 with weights rounded to `dtype`, one at a time, unpadded.

    Raises:
        ModelError: The base cannot be opened.
        ServeError: The adapter was trained on another base.
    """
    import torch
    from peft import PeftModel

    from evaluation.common.checkpoints import load_checkpoint, model_digest
    from evaluation.exact_match import prompt_ids
    from student.adapters import load_adapter

    wanted = load_adapter(adapter).base_digest  # of the base in the dtype of the training
    dtypes = (torch.float32, torch.bfloat16)
    if wanted and wanted not in (model_digest(load_checkpoint(base, dtype=each).model) for each in dtypes):
        raise ServeError(
            f"serve: the adapter was trained on the base {wanted[:12]!r}, which {base!r} is not. Serve it with its own "
            "base (--student)."
        )
    model, tokenizer = load_checkpoint(base)
    for weight in model.parameters():
        weight.data = weight.data.to(getattr(torch, dtype)).float()
    model = PeftModel.from_pretrained(model, str(adapter)).eval()
    ordinary = sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids))
    draw = random.Random(0)
    encoded = [prompt_ids(tokenizer, prompt) for prompt in _PROBES]
    encoded += [draw.choices(ordinary, k=_DRAWN_WIDTH) for _ in range(_DRAWN)]
    probes = []
    with torch.inference_mode():
        for prompt in encoded:
            tokens: list[int] = []
            for _ in range(_PROBE_TOKENS):  # `generate` would stop at an end token or forbid it
                tokens.append(int(model(input_ids=torch.tensor([prompt + tokens])).logits[0, -1].argmax()))
            logprobs = _logprobs(model, prompt, tokens)
            with model.disable_adapter():
                probes.append(Probe(prompt, tokens, logprobs, _logprobs(model, prompt, tokens)))
    return probes


def _logprobs(model: Any, prompt: list[int], tokens: list[int]) -> list[float]:
    """Return the log-probability of each token after the prompt and the tokens before it."""
    import torch

    logits = model(input_ids=torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    chosen: list[float] = logits.float().log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()
    return chosen


def _written(reply: dict[str, Any]) -> list[Written]:
    """Return vLLM's answers to probes from its reply to a request with `logprobs` and `return_tokens_as_token_ids`."""
    answers: list[Written] = []
    for choice in sorted(reply["choices"], key=lambda choice: int(choice["index"])):
        tops = [
            {int(token.removeprefix("token_id:")): float(value) for token, value in top.items()}
            for top in choice["logprobs"]["top_logprobs"]
        ]
        answers.append(list(zip(choice["token_ids"], tops, strict=True)))
    return answers


def zero_adapter(adapter: Adapter, directory: Path) -> Path:
    """Write an adapter on the same layers that changes nothing, and return its directory.

    On a CPU vLLM mixes up requests with and without an adapter in one batch; so the base answers through one, too.
    """
    import torch

    from student.adapters import Adapter, save_adapter

    factors = {n: (torch.zeros(1, a.shape[1]), torch.zeros(b.shape[0], 1)) for n, (a, b) in adapter.factors.items()}
    return save_adapter(Adapter(factors, 1, 1.0, adapter.base_digest), directory)
