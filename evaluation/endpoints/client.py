"""An endpoint that answers requests in order, pays for none twice and keeps its budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from evaluation.endpoints.batch import Batch
from evaluation.endpoints.config import EndpointConfig, check_key
from evaluation.endpoints.ledger import Ledger
from evaluation.endpoints.reading import AnswerReader, model_names
from evaluation.endpoints.records import EndpointRequest, Outcome
from evaluation.endpoints.wire import listed_models, open_client
from evaluation.errors import ConfigError, EndpointError

_CHECK_RETRIES = 2


class Endpoint:
    """Asks a server for completions; every reply goes through the ledger."""

    def __init__(self, config: EndpointConfig, ledger: Ledger) -> None:
        """Check all that can be checked without asking the server.

        Args:
            config: Where it is and what may be spent.
            ledger: Where replies are found and stored; its scope is what the budget counts. It stays the caller's to
                close.

        Raises:
            ConfigError: The key is missing, or the scope holds calls that the budget cannot count.
            EndpointError: The ledger cannot be read.
        """
        self._config = config
        self._ledger = ledger
        self._key = check_key(config)
        spent = ledger.spent()
        if spent.currency not in ("", config.currency):
            raise ConfigError(
                f"endpoint {config.base_url!r}: the ledger {str(ledger.path)!r} counts in {spent.currency} for the "
                f"scope {ledger.scope!r}, the configuration in {config.currency}. Set currency back, or use another "
                "ledger."
            )
        if config.budget_cost is not None and spent.cost is None:
            raise ConfigError(
                f"endpoint {config.base_url!r}: the ledger {str(ledger.path)!r} holds calls that were made without "
                "prices, which budget_cost cannot count. Limit budget_tokens, or use another ledger."
            )

    def complete(
        self, requests: Sequence[EndpointRequest], progress: Callable[[int], None] | None = None
    ) -> list[Outcome]:
        """Return the outcome of each request, in order.

        Requests that were answered before are answered from the ledger, the same ones are asked once. A failure that
        may pass is tried again; one that does not pass is the outcome of that request alone, and is asked anew the
        next time. The calls run in a thread of their own, which is gone when this returns or is interrupted.

        Args:
            requests: What to ask; `system` only with the `chat` protocol.
            progress: Called with the number of requests that have an outcome, each time it grows; from another thread.

        Raises:
            ValueError: A request has a system instruction and the protocol is `completions`.
            BudgetError: The next call could exceed the budget; calls in flight have ended and are stored.
            EndpointError: The server refuses for good, or the ledger cannot be used; calls in flight are stored.
        """
        from anyio.from_thread import start_blocking_portal

        if self._config.api == "completions" and any(request.system for request in requests):
            raise ValueError("system: allowed is none with the `completions` protocol; put it into the prompt")
        digests = [request.digest(self._config) for request in requests]
        outcomes: dict[str, Outcome] = dict(self._ledger.find(list(dict.fromkeys(digests))))
        missing = {d: request for d, request in zip(digests, requests, strict=True) if d not in outcomes}
        repeats = Counter(digests)
        count = sum(d in outcomes for d in digests)

        def done(digest: str, outcome: Outcome) -> None:
            nonlocal count
            outcomes[digest] = outcome
            count += repeats[digest]
            if progress is not None:
                progress(count)

        if count and progress is not None:
            progress(count)
        if missing:
            # A loop in another thread serves callers with and without a running loop alike, and leaves this thread
            # where an interrupt reaches it; leaving the block on one cancels the calls and waits for the thread.
            with start_blocking_portal(name="endpoint") as portal:
                portal.call(Batch(self._config, self._ledger, self._key, missing, done).run)
        return [outcomes[digest] for digest in digests]

    def check(self) -> None:
        """Ask the server for its models, so that a wrong address, key or model name shows before any work.

        Servers that do not list their models are taken at their word.

        Raises:
            EndpointError: The server cannot be reached, refuses the key, or does not list the model.
        """
        from anyio.from_thread import start_blocking_portal

        with start_blocking_portal(name="endpoint") as portal:
            names = portal.call(self._models)
        if names is not None and self._config.model not in names:
            shown = ", ".join(sorted(names)[:10]) + (", …" if len(names) > 10 else "")
            raise EndpointError(
                f"endpoint {self._config.base_url!r}: it has no model {self._config.model!r}; it lists "
                f"{shown or 'none'}. Set model to one of these."
            )

    async def _models(self) -> list[str] | None:
        """Return the names of the server's models; None when it does not list them."""
        from openai import APIStatusError, OpenAIError

        try:
            async with open_client(self._config, self._key) as client:
                return model_names(await listed_models(client.with_options(max_retries=_CHECK_RETRIES)))
        except OpenAIError as error:
            if isinstance(error, APIStatusError) and error.status_code in (404, 405, 501):
                return None
            answer = AnswerReader(self._config, self._key).error(error)
            said = (answer.stop or getattr(answer.outcome, "detail", "")).rstrip(".")
            raise EndpointError(
                f"endpoint {self._config.base_url!r}: it does not answer: {said}. Check base_url and that the server "
                "runs."
            ) from error
