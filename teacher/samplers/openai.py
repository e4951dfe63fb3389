"""Samples from an OpenAI-compatible endpoint: a teacher that others run, or an external generator to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from evaluation.common.data import derive_seed
from evaluation.engines.endpoint import Endpoint, EndpointConfig, EndpointRequest, check_key, most_tokens
from evaluation.engines.ledger import EndpointFailure, Ledger, Outcome, Spent
from teacher.samplers.sampler import Completion, FailedCompletion, Sampling
from teacher.self_edit import self_edit_schema


class OpenAISampling(Sampling):
    """Sampling from an endpoint: text alone, so a teacher behind one writes self-edits but does not learn.

    Only temperature and nucleus are sent; what else a server applies, such as the authors' own top-k, is its own
    (`vllm serve --generation-config vllm` applies nothing).
    """

    type: Literal["openai"]
    endpoint: EndpointConfig
    temperature: float = Field(default=1.0, ge=0.0, le=2.0)
    """Divides the logits, in [0, 2]; 0 takes the most likely token each time (each prompt is then sent once)."""
    max_new_tokens: int = Field(default=1024, ge=1, le=32_768)
    """Longest completion in tokens, in [1, 32768]; together with the prompt it must fit the model's context."""
    structured: bool = False
    """Ask for each self-edit as JSON of the self-edit's schema; the server must know `response_format`."""


class OpenAISampler:
    """Samples from an endpoint; the same call again is answered from the ledger, with the same texts."""

    def __init__(self, config: OpenAISampling, ledger_path: Path, *, scope: str = "sampling") -> None:
        """Check the key; no request is sent and the ledger is not opened yet.

        Args:
            config: How to sample, and where.
            ledger_path: File of the ledger; made with the first call.
            scope: Whose calls the budget counts.

        Raises:
            ConfigError: The key is missing.
        """
        check_key(config.endpoint)
        self._config = config
        self._schema = self_edit_schema() if config.structured else None
        self._ledger_path = ledger_path
        self._scope = scope
        self._opened: tuple[Ledger, Endpoint] | None = None

    @property
    def max_prompt_tokens(self) -> int | None:
        """None: an endpoint does not say; a prompt that does not fit is a `FailedCompletion`."""
        return None

    @property
    def spent(self) -> Spent:
        """Usage of the scope so far, in this process and in earlier ones."""
        return self._open()[0].spent()

    def count_tokens(self, prompt: str) -> int:
        """Return an upper bound of the number of tokens: the server's tokenizer is not known."""
        return most_tokens(prompt)

    def check(self) -> None:
        """See `Endpoint.check`."""
        self._open()[1].check()

    def sample(self, prompts: Sequence[str], *, n: int, seed: int) -> list[list[Completion | FailedCompletion]]:
        """Return `n` completions of each prompt; see `Sampler.sample`.

        Every request has a seed of its own, made of (seed, prompt, index); whether it decides the sample is up to the
        server, so it is the ledger that makes a run repeatable.

        Raises:
            ValueError: `n` is not positive.
            BudgetError: The next call could exceed the budget; what was answered is stored.
            EndpointError: The server refuses for good, or the ledger cannot be used; what was answered is stored.
        """
        if n < 1:
            raise ValueError(f"n: got {n}, allowed is at least 1")
        distinct = self._config.distinct_of(n)
        requests = [self._request(prompt, seed, index) for prompt in prompts for index in range(distinct)]
        written = [_completion(outcome) for outcome in self._open()[1].complete(requests)]
        return [[written[p * distinct + index % distinct] for index in range(n)] for p in range(len(prompts))]

    def close(self) -> None:
        """Close the ledger; sampling again opens it anew."""
        if self._opened is not None:
            self._opened[0].close()
        self._opened = None

    def _request(self, prompt: str, seed: int, index: int) -> EndpointRequest:
        config = self._config
        return EndpointRequest(
            prompt=prompt,
            max_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            seed=derive_seed(seed, prompt, index),
            index=index,
            schema=self._schema,
        )

    def _open(self) -> tuple[Ledger, Endpoint]:
        """Return the ledger and the endpoint on it, opened if they are not."""
        if self._opened is None:
            ledger = Ledger(self._ledger_path, self._scope)
            self._opened = ledger, Endpoint(self._config.endpoint, ledger)
        return self._opened


def _completion(outcome: Outcome) -> Completion | FailedCompletion:
    if isinstance(outcome, EndpointFailure):
        return FailedCompletion(outcome.reason, outcome.detail)
    return Completion(outcome.text, (), outcome.finish_reason, outcome.completion_tokens)
