"""What the tests of endpoints have in common."""

from __future__ import annotations

from typing import Any

from evaluation.endpoints.config import EndpointConfig
from evaluation.endpoints.records import EndpointFailure, EndpointReply, EndpointRequest, Outcome
from tests.faults import MODEL, FaultyServer


def config_for(server: FaultyServer, **changes: Any) -> EndpointConfig:
    """Return a configuration with short waits."""
    fields: dict[str, Any] = {
        "base_url": server.base_url,
        "model": MODEL,
        "timeout": 20.0,
        "retries": 2,
        "backoff_first": 0.01,
        "backoff_longest": 0.05,
    }
    return EndpointConfig.model_validate(fields | changes)


def requests_for(count: int, **changes: Any) -> list[EndpointRequest]:
    """Return requests that differ by prompt."""
    fields: dict[str, Any] = {"max_tokens": 10, "seed": 3} | changes
    return [EndpointRequest(prompt=f"prompt {i:03}", **fields) for i in range(count)]


def replies(outcomes: list[Outcome]) -> list[EndpointReply]:
    """Return the outcomes, all of which must be replies."""
    assert not [outcome for outcome in outcomes if isinstance(outcome, EndpointFailure)]
    return [outcome for outcome in outcomes if isinstance(outcome, EndpointReply)]


def texts(outcomes: list[Outcome]) -> list[str]:
    """Return the texts of outcomes that are all replies."""
    return [reply.text for reply in replies(outcomes)]
