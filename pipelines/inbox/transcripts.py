"""Transcripts of chats and agents: OpenAI's chat messages and response items, and Anthropic's messages.

Every speaker's turn is a paragraph. What a tool said is kept whole, its call abbreviated; attachments appear as their
type. System prompts, which are the operator's instructions, and a model's thoughts are left out.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from evaluation.common.text import clean_text, without_thoughts
from pipelines.inbox.readers.text import Block, Extract, UnreadableError, blocks_of, one_line, truncated
from pipelines.reports.format import counted

_ROLES = ("user", "assistant", "system", "developer", "tool", "function")
_TITLE_CHARACTERS, _ARGUMENT_CHARACTERS = 80, 200
_TEXTS = ("text", "input_text", "output_text", "refusal", "summary_text")
_THOUGHTS = ("reasoning", "thinking", "redacted_thinking", "reasoning_text")
EMBEDDED = re.compile(
    r"data:(?P<type>[\w.+-]{1,40}/[\w.+-]{1,60})[\w;=.-]{0,60},[A-Za-z0-9+/=_%-]*|[A-Za-z0-9+/_-]{400,}={0,2}"
)
"""A file inside a text, in base64."""


def is_transcript(raw: Any) -> bool:
    """Return whether a JSON value is a list of messages or items, some of which have a role."""
    return (
        isinstance(raw, list)
        and all(isinstance(item, dict) and ("role" in item or "type" in item) for item in raw)
        and any("role" in item for item in raw)
    )


class Turn(NamedTuple):
    """What was said in a transcript, or a call of a tool."""

    message: int
    """Index among the messages."""
    speaker: str
    """`user`, `assistant`, or `tool` with its name."""
    text: str
    """Cleaned, without thoughts and embedded files; empty for a call."""
    call: str = ""
    """Name of the tool that is called."""
    arguments: Any = None
    """Of the call, as JSON where they are."""
    failed: bool = False
    """The format marks it as the result of a call that failed."""


def read_turns(messages: Any) -> tuple[Turn, ...]:
    """Return the turns of a transcript, system prompts left out; raises UnreadableError, as `read_transcript`."""
    return tuple(_read(messages).turns)


def read_transcript(messages: Any) -> Extract:
    """Return a transcript with one paragraph per turn; the title is the first user message.

    Raises UnreadableError, with the JSON path and the type that is not known, for any other format.
    """
    reader = _read(messages)
    left_out = (f"{counted(count, what)} left out" for what, count in (+reader.left_out).items())
    return Extract(blocks_of(reader.blocks), truncated(reader.title, _TITLE_CHARACTERS), notes=tuple(left_out))


def last_question(messages: Any) -> str:
    """Return the text of the last message of the user; empty where that is no text, or there is none."""
    for message in reversed(messages if isinstance(messages, list) else []):
        if isinstance(message, dict) and message.get("role") == "user":
            parts = message.get("content")
            texts: list[Any] = parts if isinstance(parts, list) else [{"text": parts}]
            texts = [each.get("text") if isinstance(each, dict) else None for each in texts]
            return " ".join(texts).strip() if all(isinstance(text, str) for text in texts) else ""
    return ""


def _read(messages: Any) -> _Reader:
    if not isinstance(messages, list) or not messages:
        raise UnreadableError("messages must be a list with at least one message")
    reader = _Reader()
    for reader.number, message in enumerate(messages):
        reader.add(message, f"messages[{reader.number}]")
    return reader


class _Reader:
    """What some messages hold so far."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.title = ""
        self.tools: dict[str, str] = {}
        self.turns: list[Turn] = []
        self.number, self.failed = 0, False
        """Of the message that is read, and whether it marks a failed call."""
        self.left_out: Counter[str] = Counter()

    def add(self, message: Any, place: str) -> None:
        """Add a message, or an item that stands beside messages."""
        role, kind = (message.get("role"), message.get("type")) if isinstance(message, dict) else (None, None)
        if role is None and isinstance(kind, str):
            self._part(message, kind, "assistant", place)
            return
        if role not in _ROLES:
            allowed = ", ".join(_ROLES)
            raise UnreadableError(f"{place} must be an object with a role ({allowed}), got {str(message)[:60]!r}")
        if role in ("system", "developer"):
            return
        if message.get("reasoning_content") or message.get("reasoning"):
            self.left_out["thought"] += 1
        content, name = message.get("content"), str(message.get("name") or "")
        speaker = role if role in ("user", "assistant") else f"tool {name or self._tool(message)}"
        if isinstance(content, list):
            self._parts(content, speaker, f"{place}.content")
        elif content is None or isinstance(content, str):
            self._say(speaker, content or "")
        else:
            raise UnreadableError(f"{place}.content must be a text, a list of parts or null")
        calls = message.get("tool_calls") or []
        if not isinstance(calls, list):
            raise UnreadableError(f"{place}.tool_calls must be a list")
        for call in [*calls, *([{"function": message["function_call"]}] if message.get("function_call") else [])]:
            made = (call.get("function") or call.get("custom")) if isinstance(call, dict) else None
            if not isinstance(made, dict) or not made.get("name"):
                raise UnreadableError(f"{place}.tool_calls must hold functions with a name")
            self._call(made, call.get("id"))

    def _parts(self, parts: list[Any], speaker: str, place: str) -> None:
        """Add the parts of a message: its words, joined, and what tools were asked and said."""
        words: list[str] = []
        for i, part in enumerate(parts):
            if not isinstance(part, dict) or not isinstance(part.get("type"), str):
                raise UnreadableError(f"{place}[{i}] must be an object with a type")
            text = self._part(part, part["type"], speaker, f"{place}[{i}]", words)
            words += [text] if text is not None else []
        self._say(speaker, "\n".join(words))

    def _part(
        self, part: Mapping[str, Any], kind: str, speaker: str, place: str, before: list[str] | None = None
    ) -> str | None:
        """Return the words of a part; what a tool was asked or said is added behind the words `before` it."""
        if kind in _THOUGHTS:
            self.left_out["thought"] += 1
            return None
        if kind in _TEXTS:
            return next((part[key] for key in ("text", "refusal") if isinstance(part.get(key), str)), "")
        is_result = kind.endswith(("_result", "_output"))
        if not is_result and not kind.endswith(("_use", "_call")):
            if before is None:
                raise UnreadableError(f"{place} has the type {kind!r:.60}, which is not known; convert it to messages")
            return f"[{kind.removeprefix('input_').removesuffix('_url')}]"
        if before:
            self._say(speaker, "\n".join(before))
            before.clear()
        if not is_result:
            self._call({"name": kind.removesuffix("_call"), **part}, part.get("call_id") or part.get("id"))
        said = part.get("content") if kind.endswith("_result") else part.get("output", part.get("results"))
        speaker, self.failed = f"tool {self._tool(part)}", part.get("is_error") is True
        if isinstance(said, list) and all(isinstance(each, dict) and "type" in each for each in said):
            self._parts(said, speaker, place)
        elif is_result or said:
            self._say(speaker, said if isinstance(said, str) else json.dumps(said, ensure_ascii=False))
        self.failed = False
        return None

    def _tool(self, result: Mapping[str, Any]) -> str:
        """Return the name of the tool that a result is of."""
        names = (self.tools.get(str(result.get(key)), "") for key in ("tool_call_id", "tool_use_id", "call_id", "id"))
        return next(filter(None, names), "")

    def _call(self, made: Mapping[str, Any], call_id: Any) -> None:
        name = str(made["name"])
        self.tools[str(call_id)] = name
        arguments = next((made[key] for key in ("arguments", "input", "action", "queries") if key in made), "")
        arguments = _parsed(arguments)
        self.turns.append(Turn(self.number, "assistant", "", name, arguments))
        self.blocks.append(Block(f"Assistant calls {name}({_short(arguments)})"))

    def _say(self, speaker: str, words: str) -> None:
        """Add a turn, without thoughts and embedded files."""
        spoken = without_thoughts(words) if speaker == "assistant" else words
        self.left_out["thought"] += spoken.strip() != words.strip()
        text, files = EMBEDDED.subn(lambda found: f"[{found['type'] or 'data'}]", spoken)
        self.left_out["embedded file"] += files
        text = clean_text(text).strip()
        self.title = self.title or (one_line(text) if speaker == "user" else "")
        if text or speaker.startswith("tool"):
            self.turns.append(Turn(self.number, speaker, text, failed=self.failed))
        if text:
            self.blocks.append(Block(f"{speaker[:1].upper()}{speaker[1:]}".strip() + f": {text}"))


def _parsed(arguments: Any) -> Any:
    try:
        return json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        return arguments


def _short(value: Any) -> str:
    """Return a call's arguments as `name=value, ...`, truncated."""
    if isinstance(value, dict):
        shown = ", ".join(f"{name}={json.dumps(item, ensure_ascii=False)}" for name, item in value.items())
    else:
        shown = "" if value in (None, "") else str(value)
    return truncated(one_line(clean_text(shown)), _ARGUMENT_CHARACTERS)
