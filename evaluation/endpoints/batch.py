"""Asks the requests of one call to `Endpoint.complete`, several at once, until all have an outcome or one ends the run.

All of it runs in one event loop, so that nothing here needs a lock and a cancelled run leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING

from evaluation.endpoints.config import EndpointConfig
from evaluation.endpoints.ledger import Charge, Ledger, Limits
from evaluation.endpoints.reading import Answer, AnswerReader
from evaluation.endpoints.records import EndpointFailure, EndpointFailureReason, EndpointReply, EndpointRequest, Outcome
from evaluation.endpoints.wire import open_client, post
from evaluation.errors import BudgetError, EndpointError

if TYPE_CHECKING:
    from openai import AsyncOpenAI


class Batch:
    """Distinct requests that the ledger has no reply to."""

    def __init__(
        self,
        config: EndpointConfig,
        ledger: Ledger,
        key: str | None,
        requests: Mapping[str, EndpointRequest],
        done: Callable[[str, Outcome], None],
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            config: Of the endpoint.
            ledger: Where calls and replies go.
            key: To send; None sends none.
            requests: By digest, in the order in which to ask them.
            done: Called with each outcome as soon as it is stored.
        """
        self._config = config
        self._ledger = ledger
        self._key = key
        self._requests = requests
        self._done = done
        self._reader = AnswerReader(config, key)
        self._limits = Limits(config.budget_tokens, config.budget_cost)
        self._in_flight = 0
        self._error: Exception | None = None

    async def run(self) -> None:
        """Ask everything; what ends the run is raised after the calls in flight have ended and are stored.

        Raises:
            BudgetError: The next call could exceed the budget.
            EndpointError: The server refused for good, or the ledger cannot be written.
        """
        self._freed, self._stopped = asyncio.Event(), asyncio.Event()
        waiting = iter(self._requests.items())
        async with open_client(self._config, self._key) as client:
            workers = min(self._config.concurrency, len(self._requests))
            await asyncio.gather(*(self._work(client, waiting) for _ in range(workers)))
        if self._error is not None:
            raise self._error

    async def _work(self, client: AsyncOpenAI, waiting: Iterator[tuple[str, EndpointRequest]]) -> None:
        """Take one request after the other until there are none, or the run has ended."""
        for digest, request in waiting:
            try:
                outcome = await self._ask(client, digest, request)
                if outcome is not None:
                    self._done(digest, outcome)
            except Exception as error:  # whatever it is, calls in flight must still be stored
                self._error = self._error or error
                self._stopped.set()
                self._freed.set()
            if self._stopped.is_set():
                return

    async def _ask(self, client: AsyncOpenAI, digest: str, request: EndpointRequest) -> Outcome | None:
        """Return what became of a request after its retries; None when the run ended before it had an outcome."""
        for attempt in count():
            call = await self._begin(digest, request)
            if call is None:
                return None
            answer = await self._call(client, call, digest, request)
            if answer.stop:
                raise EndpointError(
                    f"endpoint {self._config.base_url!r}, model {self._config.model!r}: {answer.stop} "
                    f"{self._ledger.stored()} replies are stored in {str(self._ledger.path)!r}; give the same command "
                    "again to go on."
                )
            wait = self._wait(attempt, answer)
            if wait is None:
                return answer.outcome
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), wait)
        return None  # never reached: `_wait` ends the loop

    def _wait(self, attempt: int, answer: Answer) -> float | None:
        """Return how long to wait before the next call in seconds; None when there is to be none.

        Exponential, and half of it drawn at random, so that calls that failed together do not come back together. The
        draw decides nothing but time, hence needs no seed.
        """
        config = self._config
        if not answer.may_pass or attempt == config.retries:
            return None
        if answer.wait is not None and answer.wait > config.retry_after_longest:
            return None
        backoff = min(config.backoff_first * 2.0**attempt, config.backoff_longest)
        return max(answer.wait or 0.0, backoff * random.uniform(0.5, 1.0))

    async def _begin(self, digest: str, request: EndpointRequest) -> int | None:
        """Return the number of a call that fits the budget; None when the run has ended.

        What does not fit beside the calls in flight may fit when they have ended, since they rarely use all they may.
        """
        config = self._config
        prompt = request.most_prompt_tokens(config.api)
        most = Charge(prompt + request.max_tokens, config.cost(prompt, request.max_tokens))
        while not self._stopped.is_set():
            call = self._ledger.begin(digest, config.model, most, config.currency, self._limits)
            if call is not None:
                self._in_flight += 1
                return call
            if not self._in_flight:
                raise BudgetError(self._over_budget(most))
            self._freed.clear()
            await self._freed.wait()
        return None

    async def _call(self, client: AsyncOpenAI, call: int, digest: str, request: EndpointRequest) -> Answer:
        """Make one call and settle it in the ledger, whatever comes of it."""
        from openai import OpenAIError

        try:
            try:
                # The client's own time limit is for each read, which a server that trickles never reaches.
                async with asyncio.timeout(self._config.timeout):
                    answer = self._reader.body(await post(client, self._config, request))
            except (OpenAIError, TimeoutError) as error:
                answer = self._reader.error(error)
            except BaseException as error:
                detail = f"{type(error).__name__}: the call was in flight"
                failure = EndpointFailure(EndpointFailureReason.INTERRUPTED, detail)
                self._ledger.fail(call, failure, free=False)
                raise
            if isinstance(answer.outcome, EndpointReply):
                return answer._replace(outcome=self._ledger.keep(call, digest, answer.outcome))
            prompt, completion = answer.usage
            cost = None if prompt is None or completion is None else self._config.cost(prompt, completion)
            self._ledger.fail(call, answer.outcome, usage=answer.usage, cost=cost, free=answer.free)
            return answer
        finally:
            self._in_flight -= 1
            self._freed.set()

    def _over_budget(self, most: Charge) -> str:
        config, spent = self._config, self._ledger.spent()
        lines, remedies = [], []
        if config.budget_tokens is not None:
            lines.append(
                f"{spent.tokens} of {config.budget_tokens} tokens are spent, the next call may take {most.tokens}"
            )
            remedies.append(f"budget_tokens (now {config.budget_tokens})")
        if config.budget_cost is not None and most.cost is not None:
            money = f"{spent.cost or 0.0:.6g} of {config.budget_cost:g} {config.currency}"
            lines.append(f"{money} are spent, the next call may cost {most.cost:.6g}")
            remedies.append(f"budget_cost (now {config.budget_cost:g})")
        bound = (
            f" {spent.unsettled} calls whose use is unknown count with the most that they can have used."
            if spent.unsettled
            else ""
        )
        return (
            f"endpoint {config.base_url!r}, model {config.model!r}: the budget allows no further call: "
            f"{'; '.join(lines)}.{bound} {self._ledger.stored()} replies are stored in {str(self._ledger.path)!r}. "
            f"Raise {' or '.join(remedies)} and give the same command again: what is stored is not paid for again."
        )
