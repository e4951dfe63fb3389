"""Sampling from an OpenAI-compatible endpoint: a hosted teacher, or an external generator as a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field

from evaluation.common.data import derive_seed
from evaluation.engines.endpoint import Endpoint, EndpointConfig, EndpointRequest, check_key, most_tokens
from evaluation.engines.ledger import EndpointFailure, Ledger, Outcome, Spent
from teacher.samplers.sampler import Completion, FailedCompletion, Sampling, Seeds, seeds_of


class OpenAISampling(Sampling):
    """Sampling from an endpoint; it returns text only, so its teacher cannot be trained.

    Of the sampling parameters only temperature and top_p are sent; the server may apply others, such as a model's
    default top-k (`vllm serve --generation-config vllm` disables these).
    """

    type: Literal["openai"]
    endpoint: EndpointConfig
    temperature: float = Field(default=1.0, ge=0.0, le=2.0)
    """Divides the logits, in [0, 2]; 0 is greedy, with one request per prompt."""
    max_new_tokens: int = Field(default=1024, ge=1, le=32_768)
    """Longest completion in tokens, in [1, 32768]; together with the prompt it must fit the model's context."""


class OpenAISampler:
    """Samples from an endpoint; repeated calls are served from the ledger with the same texts."""

    def __init__(self, config: OpenAISampling, ledger_path: Path, *, scope: str = "sampling") -> None:
        """Check the API key; the ledger is opened with the first call. Calls of one `scope` share a budget.

        Raises:
            ConfigError: The key is missing.
        """
        check_key(config.endpoint)
        self._config, self._ledger_path, self._scope = config, ledger_path, scope
        self.max_prompt_tokens: int | None = None
        """Unknown; a prompt that does not fit becomes a `FailedCompletion`."""

    @property
    def spent(self) -> Spent:
        """Usage of the scope, across processes."""
        return self._opened[0].spent()

    def count_tokens(self, prompt: str) -> int:
        """Return an upper bound, since the server's tokenizer is unknown."""
        return most_tokens(prompt)

    def check(self) -> None:
        """See `Endpoint.check`."""
        self._opened[1].check()

    def sample(
        self, prompts: Sequence[str], *, n: int, seed: Seeds, stop: str | None = None
    ) -> list[list[Completion | FailedCompletion]]:
        """Return `n` completions for each prompt; see `Sampler.sample`.

        Servers need not honor the seeds, so repeatability comes from the ledger.

        Raises:
            BudgetError: The next call could exceed the budget; replies received are stored.
            EndpointError: A permanent refusal or an unusable ledger; replies received are stored.
        """
        distinct = self._config.distinct_samples(n)
        requests = [
            EndpointRequest(
                prompt=prompt,
                max_tokens=self._config.max_new_tokens,
                temperature=self._config.temperature,
                top_p=self._config.top_p,
                seed=derive_seed(own, prompt, index),
                index=index,
                stop=stop,
            )
            for prompt, own in zip(prompts, seeds_of(seed, prompts), strict=True)
            for index in range(distinct)
        ]
        written = [_completion(outcome, stop) for outcome in self._opened[1].complete(requests)]
        return [[written[p * distinct + index % distinct] for index in range(n)] for p in range(len(prompts))]

    def close(self) -> None:
        """Close the ledger; the next call reopens it."""
        if "_opened" in vars(self):
            self._opened[0].close()
            del self._opened

    @cached_property
    def _opened(self) -> tuple[Ledger, Endpoint]:
        ledger = Ledger(self._ledger_path, self._scope)
        return ledger, Endpoint(self._config.endpoint, ledger)


def _completion(outcome: Outcome, stop: str | None) -> Completion | FailedCompletion:
    if isinstance(outcome, EndpointFailure):
        return FailedCompletion(outcome.reason, outcome.detail)
    text, cut, _ = outcome.text.partition(stop) if stop else (outcome.text, "", "")
    return Completion(text, (), "stop" if cut else outcome.finish_reason, outcome.completion_tokens)
