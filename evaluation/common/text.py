"""Text as models and answers need it: bytes decoded, characters that nobody sees taken out, and a model's thoughts."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

_LIGATURES = {code: unicodedata.normalize("NFKC", chr(code)) for code in range(0xFB00, 0xFB07)}
_SPACES = dict.fromkeys([0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000], " ")
_LINES = {0x2028: "\n", 0x2029: "\n\n", 0x85: "\n", 0x0B: "\n", 0x0C: "\n"}
_UNSEEN_CODES = [0xAD, 0x61C, 0x180E, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF]
_UNSEEN = dict.fromkeys([*_UNSEEN_CODES, *range(0xFFF9, 0xFFFC), *range(0xE0000, 0xE0080)])
_CONTROLS = dict.fromkeys([*range(0x09), *range(0x0E, 0x20), *range(0x7F, 0xA0)])
_TABLE = _CONTROLS | _UNSEEN | _LINES | _SPACES | _LIGATURES
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\))")
_SURROGATES = re.compile("[\ud800-\udfff]")
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"}
_MARKS |= {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def clean_text(text: str) -> str:
    r"""Return text in composed form (NFC) with ligatures spelled out, and without characters that nobody sees.

    Soft hyphens, zero-width spaces, marks of direction, tags, control characters and terminal escape sequences go;
    special spaces become a space; line ends are `\n`. The joiners U+200C and U+200D stay: Persian, Indic scripts and
    emoji mean something by them. Cleaning twice changes nothing.
    """
    text = _ESCAPES.sub("", text).replace("\r\n", "\n").replace("\r", "\n").translate(_TABLE)
    return unicodedata.normalize("NFC", _SURROGATES.sub("\ufffd", text))


def decode_text(content: bytes) -> str:
    """Return text of bytes in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Other encodings are refused, not guessed: a wrong guess teaches wrong words.

    Raises:
        ValueError: The bytes are not text in one of them; the message says where they stop being it.
    """
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    even, odd = (content[start:4096:2].count(0) for start in (0, 1))
    if encoding == "utf-8" and even + odd > len(content[:4096]) // 4:  # Latin letters of two or four bytes
        for wide in ("utf-32-le", "utf-32-be", "utf-16-be" if even > odd else "utf-16-le"):
            try:
                text = content.decode(wide)
            except UnicodeDecodeError:
                continue
            if "\0" not in text:
                return text
        raise ValueError("is not text: it is full of NUL bytes")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"is not {encoding.upper().removesuffix('-SIG')}: line {line} has the byte {content[error.start]:#04x}; "
            "convert it, for example with iconv -f WINDOWS-1252 -t UTF-8"
        ) from error


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
