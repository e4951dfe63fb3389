"""Chats of agents, as `preceptor serve --learn` stores them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.inbox.lessons import Conversation
from tests.pipelines.inbox.test_interactions import interaction

Calls = Sequence[tuple[str, Mapping[str, Any]]]


def refund(order: str, amount: int = 3) -> list[tuple[str, dict[str, Any]]]:
    return [("find_order", {"order": order}), ("refund", {"order": order, "amount": amount})]


REFUND = "find_order(order), then refund(amount, order)"


def messages(request: str, calls: Calls = (), results: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Return a request, the calls with their results (`done` unless given), and an answer."""
    found: list[dict[str, Any]] = [{"role": "system", "content": "You serve."}, {"role": "user", "content": request}]
    for i, (tool, arguments) in enumerate(calls):
        made = {"id": f"c{i}", "type": "function", "function": {"name": tool, "arguments": json.dumps(arguments)}}
        found.append({"role": "assistant", "content": None, "tool_calls": [made]})
        if results is None or i < len(results):
            found.append(
                {"role": "tool", "tool_call_id": f"c{i}", "content": "done" if results is None else results[i]}
            )
    return [*found, {"role": "assistant", "content": "It is done."}]


def chat(request: str, calls: Calls = (), client: str = "ann", name: str = "", **more: Any) -> Conversation:
    results = more.pop("results", None)
    return Conversation(name or f"{client}: {request}", client, messages(request, calls, results), **more)


def stored(request: str, calls: Calls = (), client: str = "ann", name: str = "", **more: Any) -> Any:
    """Return the same as an interaction, with feedback."""
    said = messages(request, calls, more.pop("results", None))
    return interaction(name or f"{client}: {request}"[:60], client, messages=said, **more)
