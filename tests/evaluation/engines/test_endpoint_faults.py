"""An endpoint under faults, budgets, kills and interrupts, against a real server on loopback."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from evaluation.common.errors import BudgetError
from evaluation.engines.endpoint import Endpoint
from evaluation.engines.ledger import EndpointFailure, FailureReason, Ledger
from tests.evaluation.factories import config_for, counts, replies, requests_for, texts
from tests.faults import ALL_PASSING, COMPLETION_TOKENS, RETRY_AFTER, Fault, FaultyServer

REASONS: dict[Fault, FailureReason] = {
    "429": "rate_limited",
    "500": "server_error",
    "hang": "timeout",
    "truncated": "malformed",
    "cut": "connection",
    "not json": "malformed",
    "empty": "empty_choice",
    "no text": "empty_choice",
    "reset": "connection",
}
UNBILLED: set[Fault] = {"429", "500", "empty"}
"""Faults after which the use is known: none for the first two, reported by the server for the third."""


@pytest.mark.parametrize("fault", ALL_PASSING)
def test_fault_that_passes_loses_nothing(tmp_path: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluation.engines.endpoint.RETRIES", 3)
    with FaultyServer() as server, Ledger(tmp_path / "l.db") as ledger:
        expected = texts(Endpoint(config_for(server), ledger).complete(requests_for(6)))
    with FaultyServer() as server, Ledger(tmp_path / "other.db") as ledger:
        server.fail_next([fault] * 3)
        monkeypatch.setattr("evaluation.engines.protocol.TIMEOUT", 1.5 if fault == "hang" else 20.0)
        endpoint = Endpoint(config_for(server, concurrency=6), ledger)
        assert texts(endpoint.complete(requests_for(6))) == expected
        spent = ledger.spent()
        assert (spent.calls, spent.failures) == (9, 3)
        assert spent.unsettled == (0 if fault in UNBILLED else 3)


@pytest.mark.parametrize("fault", ALL_PASSING)
def test_fault_that_stays_is_a_failure_of_its_request_alone(
    tmp_path: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluation.engines.protocol.TIMEOUT", 1.0 if fault == "hang" else 20.0)
    with FaultyServer() as server, Ledger(tmp_path / "l.db") as ledger:
        server.always["prompt 001"] = fault
        endpoint = Endpoint(config_for(server), ledger)
        outcomes = endpoint.complete(requests_for(3))
        assert isinstance(outcomes[1], EndpointFailure)
        assert outcomes[1].reason == REASONS[fault]
        assert outcomes[1].detail
        assert all(texts([outcomes[0], outcomes[2]]))
        assert server.prompts.count("prompt 001") == 3
        server.always.clear()
        assert all(texts(endpoint.complete(requests_for(3))))
        assert len(server.seen) == 6


def test_retry_after_is_waited_for_and_a_long_one_is_not(tmp_path: Path) -> None:
    with FaultyServer() as server, Ledger(tmp_path / "l.db") as ledger:
        server.fail_next(["429"])
        texts(Endpoint(config_for(server), ledger).complete(requests_for(1)))
        assert server.seen[1].at - server.seen[0].at >= RETRY_AFTER
        server.fail_next(["429 for long"])
        (outcome,) = Endpoint(config_for(server), ledger).complete(requests_for(1, seed=4))
        assert isinstance(outcome, EndpointFailure)
        assert outcome.reason == "rate_limited"
        assert len(server.seen) == 3


def test_prompt_that_does_not_fit_fails_alone(tmp_path: Path) -> None:
    with FaultyServer(context=12) as server, Ledger(tmp_path / "l.db") as ledger:
        requests = [*requests_for(2), *requests_for(1, max_tokens=11), *requests_for(1, seed=9)]
        outcomes = Endpoint(config_for(server), ledger).complete(requests)
        assert isinstance(outcomes[2], EndpointFailure)
        assert outcomes[2].reason == "prompt_too_long"
        assert len(texts([outcomes[0], outcomes[1], outcomes[3]])) == len(server.seen) - 1 == 3


def test_server_that_is_gone_is_a_failure_that_costs_nothing(tmp_path: Path) -> None:
    with FaultyServer() as server:
        config = config_for(server)
    with Ledger(tmp_path / "l.db") as ledger:
        (outcome,) = Endpoint(config, ledger).complete(requests_for(1))
        assert isinstance(outcome, EndpointFailure)
        assert outcome.reason == "connection"
        assert counts(ledger) == (3, 3, 0, 0)


USED = COMPLETION_TOKENS + 2
MOST = 16 + len("prompt 000") + 10
"""Upper bound of one call: template, bytes of the prompt, longest completion."""


@pytest.mark.parametrize("concurrency", [1, 32])
def test_budget_is_never_exceeded_and_the_stop_is_clean(tmp_path: Path, concurrency: int) -> None:
    budget = 150
    with FaultyServer(delay=0.02) as server, Ledger(tmp_path / "l.db") as ledger:
        endpoint = Endpoint(config_for(server, concurrency=concurrency, budget_tokens=budget), ledger)
        with pytest.raises(BudgetError, match="of 150 tokens are spent, the next call may use 36") as caught:
            endpoint.complete(requests_for(40))
        spent, made = ledger.spent(), len(server.seen)
        assert spent.tokens == made * USED <= budget
        assert spent.tokens + MOST > budget
        assert (spent.unsettled, ledger.stored()) == (0, made)
        assert f"{made} replies are stored in" in str(caught.value)
        assert "Raise budget_tokens (now 150)" in str(caught.value)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_run_goes_on_when_the_budget_is_raised(tmp_path: Path) -> None:
    requests = requests_for(40)
    with FaultyServer() as server, Ledger(tmp_path / "l.db") as ledger:
        with pytest.raises(BudgetError):
            Endpoint(config_for(server, budget_tokens=150), ledger).complete(requests)
        paid = set(server.prompts)
        with pytest.raises(BudgetError):  # what an earlier process spent counts
            Endpoint(config_for(server, budget_tokens=150), ledger).complete(requests)
        assert set(server.prompts) == paid
        enough = Endpoint(config_for(server, budget_tokens=40 * USED + MOST), ledger)
        assert len(set(texts(enough.complete(requests)))) == 40
        assert sorted(server.prompts) == sorted(request.prompt for request in requests)
        used_up = Endpoint(config_for(server, budget_tokens=1), ledger)
        assert len(replies(used_up.complete(requests))) == 40  # what is stored needs no budget


def test_untold_use_counts_with_its_upper_bound(tmp_path: Path) -> None:
    with FaultyServer(tells_usage=False) as server, Ledger(tmp_path / "l.db") as ledger:
        with pytest.raises(BudgetError, match="4 calls of unknown usage count with their maximum"):
            Endpoint(config_for(server, concurrency=8, budget_tokens=150), ledger).complete(requests_for(10))
        assert ledger.spent().tokens == 4 * MOST
    with FaultyServer() as server, Ledger(tmp_path / "other.db") as ledger:
        server.always["prompt"] = "truncated"
        with pytest.raises(BudgetError):
            Endpoint(config_for(server, budget_tokens=100), ledger).complete(requests_for(10))
        assert len(server.seen) == 2


SCRIPT = """
import sys
from pathlib import Path
from evaluation.engines.endpoint import Endpoint
from evaluation.engines.endpoint import EndpointConfig
from evaluation.engines.ledger import Ledger
from tests.evaluation.factories import requests_for

config = EndpointConfig(base_url=sys.argv[1], model="tiny", concurrency=2)
Endpoint(config, Ledger(Path(sys.argv[2]))).complete(requests_for(30))
"""


def test_killed_run_pays_for_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "l.db"
    with FaultyServer(delay=0.1) as server:
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, server.base_url, str(path)])
        while len(server.seen) < 8:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.wait(60)
        with Ledger(path) as ledger:
            stored, spent = ledger.stored(), ledger.spent()
            assert stored >= 6
            assert spent.unsettled == spent.calls - stored <= 2
            asked_before = len(server.seen)
            written = texts(Endpoint(config_for(server), ledger).complete(requests_for(30)))
            assert len(set(written)) == 30
            assert len(server.seen) - asked_before == 30 - stored
            assert ledger.spent().calls == spent.calls + 30 - stored


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let an interrupt through even where the tests run in the background of a shell, which has them ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_interrupt_ends_the_calls_at_once_and_leaves_no_thread(tmp_path: Path, interruptible: None) -> None:
    with FaultyServer() as server, Ledger(tmp_path / "l.db") as ledger:
        server.always["prompt 00"] = "hang"
        endpoint = Endpoint(config_for(server, concurrency=4), ledger)

        def interrupt() -> None:
            while len(server.seen) < 4:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        before = set(threading.enumerate())
        threading.Thread(target=interrupt, daemon=True).start()
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            endpoint.complete(requests_for(8))
        assert time.monotonic() - started < 10
        left = [t.name for t in set(threading.enumerate()) - before if "process_request" not in t.name]
        assert left == []
        assert counts(ledger)[:3] == (4, 4, 4)
        server.always.clear()
        assert len(texts(endpoint.complete(requests_for(8)))) == 8
