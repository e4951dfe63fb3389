"""Samples from an OpenAI-compatible endpoint: a teacher that others run, or an external generator to compare with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from evaluation.digests import derive_seed
from evaluation.endpoints.client import Endpoint
from evaluation.endpoints.config import check_key
from evaluation.endpoints.ledger import Ledger
from evaluation.endpoints.records import EndpointFailure, EndpointRequest, Outcome, Spent, most_tokens
from teacher.config import OpenAISampling
from teacher.samplers import Completion, FailedCompletion
from teacher.self_edit import self_edit_schema


class OpenAISampler:
    """Samples from an endpoint; the same call again is answered from the ledger, with the same texts."""

    def __init__(
        self,
        config: OpenAISampling,
        ledger_path: Path,
        *,
        scope: str = "sampling",
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Check the key; the server is not asked and the ledger not opened yet.

        Args:
            config: How to sample, and where.
            ledger_path: File of the ledger; made with the first call.
            scope: Whose calls the budget counts.
            progress: As for `Endpoint.complete`.

        Raises:
            ConfigError: The key is missing.
        """
        check_key(config.endpoint)
        self._config = config
        self._schema = self_edit_schema() if config.structured else None
        self._ledger_path = ledger_path
        self._scope = scope
        self._progress = progress
        self._ledger: Ledger | None = None
        self._endpoint: Endpoint | None = None

    @property
    def max_prompt_tokens(self) -> int | None:
        """None: an endpoint does not tell; a prompt that does not fit is a `FailedCompletion`."""
        return None

    @property
    def spent(self) -> Spent:
        """What the calls of the scope took so far, in this process and in earlier ones."""
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
        distinct = n if self._config.temperature > 0.0 else 1
        requests = [self._request(prompt, seed, index) for prompt in prompts for index in range(distinct)]
        outcomes = self._open()[1].complete(requests, self._progress)
        written = [_completion(outcome) for outcome in outcomes]
        return [[written[p * distinct + index % distinct] for index in range(n)] for p in range(len(prompts))]

    def close(self) -> None:
        """Close the ledger; sampling again opens it anew."""
        if self._ledger is not None:
            self._ledger.close()
        self._ledger = self._endpoint = None

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
        if self._ledger is None or self._endpoint is None:
            self._ledger = Ledger(self._ledger_path, self._scope)
            self._endpoint = Endpoint(self._config.endpoint, self._ledger)
        return self._ledger, self._endpoint


def _completion(outcome: Outcome) -> Completion | FailedCompletion:
    if isinstance(outcome, EndpointFailure):
        return FailedCompletion(outcome.reason.value, outcome.detail)
    return Completion(outcome.text, (), outcome.finish_reason, outcome.completion_tokens)
