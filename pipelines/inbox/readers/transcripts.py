"""Interactions of an agent: a transcript in the OpenAI chat format as a text that can be read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines.inbox.blocks import Block, Extract, UnreadableError, blocks_of, cut, one_line, without_unfit

_SPEAKERS = {"user": "User", "assistant": "Assistant", "system": "System", "developer": "System"}
_TITLE_CHARACTERS = 80
_ARGUMENT_CHARACTERS = 200
"""What is told of a tool call's arguments, at most."""


def read_transcript(messages: Any, *, with_system: bool = False) -> Extract:
    """Return a transcript, one paragraph a turn; the title is what the user asked first.

    Calls of tools are kept in short form, what the tools gave back in full; images, sounds and files by their kind.

    Args:
        messages: The raw value of `messages`.
        with_system: Keep system prompts too: they are the operator's instructions, not what happened.

    Raises:
        UnreadableError: It is not in the chat format; the message names the place.
    """
    if not isinstance(messages, list) or not messages:
        raise UnreadableError("messages must be a list with at least one message")
    tools: dict[str, str] = {}
    blocks: list[Block] = []
    first = ""
    for number, message in enumerate(messages):
        place = f"messages[{number}]"
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in (*_SPEAKERS, "tool", "function"):
            allowed = ", ".join((*_SPEAKERS, "tool"))
            raise UnreadableError(f"{place} must be an object with a role ({allowed}), got {str(message)[:60]!r}")
        if role in ("system", "developer") and not with_system:
            continue
        words = _content(message.get("content"), place)
        if role == "user" and not first:
            first = one_line(words)
        blocks += _turn(role, words, message, tools, place)
    return Extract(blocks_of(blocks), cut(first, _TITLE_CHARACTERS))


def _turn(role: str, words: str, message: Mapping[str, Any], tools: dict[str, str], place: str) -> Iterator[Block]:
    """Yield what a message says and which tools it calls; the names of calls are noted for their results."""
    if words.strip():
        if role in _SPEAKERS:
            speaker = _SPEAKERS[role]
        else:
            name = message.get("name") or tools.get(str(message.get("tool_call_id")), "")
            speaker = f"Tool {name}".strip()
        yield Block(f"{speaker}: {words.strip()}")
    for name, arguments in _calls(message, tools, place):
        yield Block(f"Assistant calls {name}({_short(arguments)})")


def _calls(message: Mapping[str, Any], tools: dict[str, str], place: str) -> Iterator[tuple[str, Any]]:
    """Yield name and raw arguments of each call, in today's form or the one before it."""
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise UnreadableError(f"{place}.tool_calls must be a list")
    if message.get("function_call"):
        calls = [*calls, {"function": message["function_call"]}]
    for call in calls:
        made = (call.get("function") or call.get("custom")) if isinstance(call, Mapping) else None
        if not isinstance(made, Mapping) or not made.get("name"):
            raise UnreadableError(f"{place}.tool_calls must hold functions with a name")
        tools[str(call.get("id"))] = str(made["name"])
        yield str(made["name"]), made.get("arguments", made.get("input", ""))


def _short(arguments: Any) -> str:
    """Return a call's arguments as `name=value, ...`, cut where they are long."""
    try:
        value = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        value = arguments
    if isinstance(value, Mapping):
        told = ", ".join(f"{name}={json.dumps(item, ensure_ascii=False)}" for name, item in value.items())
    else:
        told = "" if value in (None, "") else str(value)
    return cut(without_unfit(one_line(told)), _ARGUMENT_CHARACTERS)


def _content(content: Any, place: str) -> str:
    """Return the words of a message's content: a text, nothing, or a list of parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise UnreadableError(f"{place}.content must be a text, a list of parts or null")
    return "\n".join(_part(part, f"{place}.content[{i}]") for i, part in enumerate(content))


def _part(part: Any, place: str) -> str:
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
        raise UnreadableError(f"{place} must be an object with a type")
    for name in ("text", "refusal"):
        if isinstance(part.get(name), str):
            return str(part[name])
    return f"[{part['type'].removeprefix('input_').removesuffix('_url')}]"
