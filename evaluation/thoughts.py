"""What a model thinks before it answers, in all common spellings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

NO_THOUGHTS: Mapping[str, Any] = MappingProxyType({"enable_thinking": False, "thinking": False, "thinking_budget": 0})
"""The switches by which chat templates leave thoughts out; a template passes over those that it does not know."""
_NAMES = (
    r"(?:seed:)?(?:think|thinking|thoughts?|reasoning|reflection|analysis|scratchpad|(?:inner_|internal_)?monologue)"
)
_TAG = re.compile(
    rf"(?P<open><{_NAMES}(?:\s[^<>]{{0,80}})?>|\[think\]|◁think▷|<\|(?:begin_of_thought|start_thinking)\|>)"
    rf"|</{_NAMES}\s?>|\[/think\]|◁/think▷|<\|(?:end_of_thought|end_thinking)\|>",
    re.IGNORECASE,
)
_CHANNEL = re.compile(
    r"(?:<\|start\|>\w{0,20})?<\|channel\|>(?P<name>[^<]{0,60})(?:<\|constrain\|>\w{0,20})?<\|message\|>"
)
_BARE_CHANNELS = re.compile(r"\s*analysis(?=[A-Z]).*?assistant\s?final", re.DOTALL)
"""The same with its special tokens left out."""
_NO_LINE_BREAK = re.compile(r"[^\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")


def blank(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """Return a text with spans, of any order, replaced by spaces; line breaks stay, so that lines keep their places."""
    parts, position = list[str](), 0
    for start, end in sorted(spans):
        if end > position:
            parts += text[position : max(start, position)], _NO_LINE_BREAK.sub(" ", text[max(start, position) : end])
            position = end
    return "".join((*parts, text[position:]))


def without_thoughts(text: str, prompt: str = "") -> str:
    """Return what a model wrote with its thoughts blanked (see `blank`).

    A thought that never ends goes on to the end of the text; one that ends without a beginning, which may stand at the
    end of the `prompt`, began with the text. Of a text in channels only `<|channel|>final<|message|>` stays.
    """
    spans = [bare.span()] if (bare := _BARE_CHANNELS.match(text)) else []
    channels = list(_CHANNEL.finditer(text))
    ends = [*(each.start() for each in channels[1:]), len(text)]
    for match, end in zip(channels, ends, strict=False):
        spans.append((match.start(), match.end() if match["name"].strip() == "final" else end))
    tail = prompt[-40:].rstrip()
    opened = [match for match in _TAG.finditer(tail) if match["open"] and match.end() == len(tail)]
    start = 0 if opened else None
    for tag in _TAG.finditer(text):
        if tag["open"]:
            start = tag.start() if start is None else start
        else:
            spans.append((start or 0, tag.end()))
            start = None
    found = blank(text, spans)
    if start is None or found[found.rfind("\n", 0, start) + 1 : start].strip():
        return found
    return blank(found, [(start, len(text))])
