"""Text in blocks, as all readers return it; plain text; transcripts in the OpenAI chat format."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

_BLANK_LINES = re.compile(r"\n[ \t\f\v]*(?:\n[ \t\f\v]*)+")
_UNFIT = re.compile("[\0\ud800-\udfff]")
_SPEAKERS = {"user": "User", "assistant": "Assistant", "system": "System", "developer": "System"}
_TITLE_CHARACTERS, _ARGUMENT_CHARACTERS = 80, 200
"""Longest title of a transcript, and longest arguments of a tool call in it."""


class UnreadableError(ValueError):
    """A file or line is refused; the message is the reason alone, to which the caller adds the place."""


class Block(NamedTuple):
    """A paragraph, or a heading."""

    text: str
    """Not blank."""
    level: int = 0
    """0 for a paragraph, 1 to 6 for a heading, 1 the highest."""


class Extract(NamedTuple):
    """The content of a file."""

    blocks: tuple[Block, ...]
    """In reading order."""
    title: str = ""
    """As the file itself gives it; empty where it gives none."""
    fields: Mapping[str, Any] = MappingProxyType({})
    """Raw fields of a document that the file gives beside its text."""
    notes: tuple[str, ...] = ()
    """Warnings, such as pages without text."""

    @property
    def first_heading(self) -> str:
        """The first heading of the highest level, on one line; empty where there is none."""
        highest = min((block.level for block in self.blocks if block.level), default=0)
        return next((one_line(block.text) for block in self.blocks if highest and block.level == highest), "")


class Reader(NamedTuple):
    """A reader of files that hold one document."""

    format: str
    """Name of the format."""
    suffixes: tuple[str, ...]
    """Ends of the files' names, in lower case."""
    read: Callable[[bytes], Extract]
    """Raises UnreadableError for a file that it refuses."""


def read_plain(content: bytes) -> Extract:
    """Return the paragraphs of a text in UTF-8; raises UnreadableError for another encoding."""
    return Extract(paragraphs(decoded(content)))


PLAIN = Reader("text", (".txt", ".text"), read_plain)


def paragraphs(text: str) -> tuple[Block, ...]:
    """Return the paragraphs of a plain text, which blank lines divide."""
    return blocks_of(Block(part) for part in _BLANK_LINES.split(text))


def blocks_of(blocks: Iterable[Block]) -> tuple[Block, ...]:
    """Return the blocks that are not blank, stripped."""
    return tuple(Block(block.text.strip(), block.level) for block in blocks if block.text.strip())


def joined(blocks: Sequence[Block]) -> str:
    """Return the text of blocks, with an empty line between two of them."""
    return "\n\n".join(block.text for block in blocks)


def one_line(text: str) -> str:
    """Return a text with each run of white space as one space."""
    return " ".join(text.split())


def cut(text: str, most: int) -> str:
    """Return a text of at most `most` characters; an ellipsis ends one that was longer."""
    return text if len(text) <= most else text[: most - 1] + "…"


def without_unfit(text: str) -> str:
    """Return a text with NUL characters and unpaired surrogates replaced by U+FFFD."""
    return _UNFIT.sub("\ufffd", text)


def decoded(content: bytes) -> str:
    """Return the text of bytes in UTF-8, or in UTF-16 with its mark; line ends become LF.

    Raises:
        UnreadableError: They are neither.
    """
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UnreadableError(
            f"is not UTF-8: line {line} has the byte {content[error.start]:#04x}; convert it, "
            "for example with iconv -f WINDOWS-1252 -t UTF-8"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_transcript(messages: Any, *, with_system: bool = False) -> Extract:
    """Return a transcript, one paragraph a turn; the title is what the user asked first.

    Tool calls are kept in short form, tool results in full; images, sounds and files by their kind.

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
        first = first or (one_line(words) if role == "user" else "")
        if words.strip():
            tool = message.get("name") or tools.get(str(message.get("tool_call_id")), "")
            blocks.append(Block(f"{_SPEAKERS.get(role, f'Tool {tool}'.strip())}: {words.strip()}"))
        blocks += [Block(f"Assistant calls {name}({_short(given)})") for name, given in _calls(message, tools, place)]
    return Extract(blocks_of(blocks), cut(first, _TITLE_CHARACTERS))


def _calls(message: Mapping[str, Any], tools: dict[str, str], place: str) -> Iterator[tuple[str, Any]]:
    """Yield name and raw arguments of each call, in today's form or the one before; note the names for the results."""
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
        shown = ", ".join(f"{name}={json.dumps(item, ensure_ascii=False)}" for name, item in value.items())
    else:
        shown = "" if value in (None, "") else str(value)
    return cut(without_unfit(one_line(shown)), _ARGUMENT_CHARACTERS)


def _content(content: Any, place: str) -> str:
    """Return the words of a message's content: a text, nothing, or a list of parts."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, Sequence):
        raise UnreadableError(f"{place}.content must be a text, a list of parts or null")
    words = []
    for i, part in enumerate(content):
        if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
            raise UnreadableError(f"{place}.content[{i}] must be an object with a type")
        kind = f"[{part['type'].removeprefix('input_').removesuffix('_url')}]"
        words.append(next((str(part[key]) for key in ("text", "refusal") if isinstance(part.get(key), str)), kind))
    return "\n".join(words)
