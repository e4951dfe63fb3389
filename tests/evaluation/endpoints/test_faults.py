from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.endpoints.client import Endpoint
from evaluation.endpoints.ledger import Ledger
from evaluation.endpoints.records import EndpointFailure, EndpointFailureReason
from tests.evaluation.endpoints.settings import config_for, requests_for, texts
from tests.faults import ALL_PASSING, RETRY_AFTER, Fault, FaultyServer

REASONS: dict[Fault, EndpointFailureReason] = {
    "429": EndpointFailureReason.RATE_LIMITED,
    "500": EndpointFailureReason.SERVER_ERROR,
    "hang": EndpointFailureReason.TIMEOUT,
    "truncated": EndpointFailureReason.MALFORMED,
    "cut": EndpointFailureReason.CONNECTION,
    "not json": EndpointFailureReason.MALFORMED,
    "empty": EndpointFailureReason.EMPTY_CHOICE,
    "no text": EndpointFailureReason.EMPTY_CHOICE,
    "reset": EndpointFailureReason.CONNECTION,
}
UNBILLED: set[Fault] = {"429", "500", "empty"}
"""Faults after which the use is known: none for the first two, told by the server for the third."""


@pytest.mark.parametrize("fault", ALL_PASSING)
def test_fault_that_passes_loses_nothing(tmp_path: Path, fault: Fault) -> None:
    with FaultyServer() as server, Ledger(tmp_path / "l.db") as ledger:
        expected = texts(Endpoint(config_for(server), ledger).complete(requests_for(6)))
    with FaultyServer() as server, Ledger(tmp_path / "other.db") as ledger:
        server.fail_next([fault] * 3)
        timeout = 1.5 if fault == "hang" else 20.0
        endpoint = Endpoint(config_for(server, concurrency=6, retries=3, timeout=timeout), ledger)
        assert texts(endpoint.complete(requests_for(6))) == expected
        spent = ledger.spent()
        assert (spent.calls, spent.failures) == (9, 3)
        assert spent.unsettled == (0 if fault in UNBILLED else 3)


@pytest.mark.parametrize("fault", ALL_PASSING)
def test_fault_that_stays_is_a_failure_of_its_request_alone(tmp_path: Path, fault: Fault) -> None:
    with FaultyServer() as server, Ledger(tmp_path / "l.db") as ledger:
        server.always["prompt 001"] = fault
        endpoint = Endpoint(config_for(server, timeout=1.0 if fault == "hang" else 20.0), ledger)
        outcomes = endpoint.complete(requests_for(3))
        assert isinstance(outcomes[1], EndpointFailure)
        assert outcomes[1].reason is REASONS[fault]
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
        assert outcome.reason is EndpointFailureReason.RATE_LIMITED
        assert len(server.seen) == 3


def test_prompt_that_does_not_fit_fails_alone(tmp_path: Path) -> None:
    with FaultyServer(context=12) as server, Ledger(tmp_path / "l.db") as ledger:
        requests = [*requests_for(2), *requests_for(1, max_tokens=11), *requests_for(1, seed=9)]
        outcomes = Endpoint(config_for(server), ledger).complete(requests)
        assert isinstance(outcomes[2], EndpointFailure)
        assert outcomes[2].reason is EndpointFailureReason.PROMPT_TOO_LONG
        assert len(texts([outcomes[0], outcomes[1], outcomes[3]])) == len(server.seen) - 1 == 3


def test_server_that_is_gone_is_a_failure_that_costs_nothing(tmp_path: Path) -> None:
    with FaultyServer() as server:
        config = config_for(server)
    with Ledger(tmp_path / "l.db") as ledger:
        (outcome,) = Endpoint(config, ledger).complete(requests_for(1))
        assert isinstance(outcome, EndpointFailure)
        assert outcome.reason is EndpointFailureReason.CONNECTION
        assert ledger.spent()[:6] == (3, 3, 0, 0, 0, 0)
