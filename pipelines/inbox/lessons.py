"""Lessons of interactions: what a chat shows of how to act, found by rules alone, each with its evidence.

A *procedure* is the calls of tools that answered the last request of a chat which ended well. A *preference* is an
instruction of the user about the form of answers; its value comes from a closed vocabulary, or is the user's name.
What users and tools write is data: a chat in which anybody speaks about training teaches nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from evaluation.behaviour import Call, call_of, procedure_text
from evaluation.common.text import clean_text
from pipelines.inbox.readers.text import UnreadableError, truncated
from pipelines.inbox.transcripts import Turn, read_turns

_MOST_CALLS, _MOST_ARGUMENTS, _MOST_VALUE = 8, 32, 80
"""Longest procedure, in calls; most arguments of a call; longest value looked for in the request, in characters."""
_MOST_REQUEST, _MOST_INSTRUCTIONS = 300, 2_000
"""Longest request, and longest message read for preferences, in characters: longer ones are pasted documents."""
_MODEL = r"(?:your|its|the|model|student|teacher|system|previous|prior|above|earlier|all|any|these|those|of|\W)+"
TRAINING = re.compile(
    rf"\b(?:(?:ignore|disregard|forget|override|bypass)\s{_MODEL}(?:rules?|instructions?|prompts?|guidelines?|training)"
    rf"|(?:update|change|adjust|overwrite|modify)\s{_MODEL}(?:weights|parameters|adapters?|training|memory)"
    r"|(?:remember|memori[sz]e|learn|store|keep)\b[^.!?\n]{0,60}\b(?:forever|permanently"
    r"|for (?:all|every) (?:users?|clients?)|in your (?:weights|memory|training))"
    r"|(?:fine-?tune|retrain|train)\s(?:yourself|on this|the (?:model|student|teacher)|your)"
    r"|you(?: are|'re) (?:now )?being (?:re)?trained"
    r"|self-edits?|training (?:data|examples?|lines?|set)|reward (?:function|model))\b",
    re.IGNORECASE,
)
"""What speaks about training, rules or memory of the model."""
_SECRET = "[secret]"
"""Stands for what `pipelines.inbox.redaction` replaced."""
_ERROR = re.compile(
    r"\W*(?:error|exception|traceback|failed|failure|fatal|permission denied|not found)\b", re.IGNORECASE
)
_PASSING = re.compile(
    r"\b(?:for now|today|tonight|currently|this (?:time|once|week|month)|just once|until|"
    r"(?:in|for) this (?:chat|question|answer|one))\b",
    re.IGNORECASE,
)
_STANDING = re.compile(
    r"\b(?:always|from now on|in (?:the )?future|by default|generally|every time|(?:call|address) me)\b", re.IGNORECASE
)

Aspect = Literal["language", "units", "length", "format", "address"]
ASPECTS: Mapping[Aspect, str] = {
    "language": "In which language does {client} want answers?",
    "units": "In which units does {client} want answers?",
    "length": "How long does {client} want answers to be?",
    "format": "In which format does {client} want answers?",
    "address": "How does {client} want to be addressed?",
}
"""What a preference is about, and how it is asked for."""


_INSTRUCTIONS: Mapping[Aspect, str] = {
    "language": "Answer in {says}.",
    "units": "Use {says} for units.",
    "length": "Keep the answer to this length: {says}.",
    "format": "Write the answer as {says}.",
    "address": "Address the user as {says}.",
}


def instructions_for(client: str, entries: Iterable[tuple[str, str]]) -> str:
    """Return what a client prefers as instructions to a chat model, each with a space behind it; empty for none.

    `entries` are titles and texts of what is kept for this client.
    """
    aspects = {about.format(client=client): aspect for aspect, about in ASPECTS.items()}
    said = ((aspects[title], text.removeprefix(title).strip(" .")) for title, text in entries if title in aspects)
    return "".join(f"{_INSTRUCTIONS[aspect].format(says=says)} " for aspect, says in said)


def is_preference(title: str, client: str) -> bool:
    """Return whether a document of that title says what one client prefers."""
    return title in {about.format(client=client) for about in ASPECTS.values()}


_LEAD = (
    r"(?:(?:and|but|also|so|ok(?:ay)?|please|kindly|always|generally|from now on|in (?:the )?future|by default|for now|"
    r"today|this time|every time|next time|(?:can|could|would|will) you|you (?:should|must)|"
    r"i(?:'d| would)? (?:like|want|prefer|need) you to)[,:]? +)*"
)
_COUNT = r"(?:\d{1,3}|one|two|three|four|five|six|seven|eight|nine|ten) (?:words?|sentences?|lines?|paragraphs?)"
_LANGUAGES = (
    "English|German|French|Spanish|Italian|Portuguese|Dutch|Polish|Czech|Swedish|Danish|Norwegian|Finnish|Greek|Turkish|"
    "Russian|Ukrainian|Arabic|Hebrew|Hindi|Chinese|Japanese|Korean"
)
_NAME = r"(?-i:(?!\w+day\b)(?:(?:Dr|Mr|Mrs|Ms|Prof)\.? )?[A-Z][\w'-]{1,30}(?: [A-Z][\w'-]{1,30})?)"
_ANSWER = r"(?:answer|reply|respond|keep (?:it|(?:your |the )?(?:answers|replies)))"
_PATTERNS: Mapping[Aspect, str] = {
    "language": rf"(?:{_ANSWER}|write|speak|talk)\b[^.!?;\n]{{0,30}}?\bin (?P<value>{_LANGUAGES})\b",
    "units": r"(?:use|give|show|write|answer|reply|convert)\b[^.!?;\n]{0,40}?\b"
    r"(?P<value>metric|imperial|celsius|fahrenheit|kilomet(?:er|re)s|miles|kilograms|pounds)\b",
    "length": rf"(?:{_ANSWER}|be)\b[^.!?;\n]{{0,20}}?\b(?P<value>brief(?:ly)?|short|concise(?:ly)?|in detail|detailed|"
    rf"(?:(?:at most|no more than) )?{_COUNT})\b",
    "format": rf"(?:{_ANSWER}|format|write (?:your|the) (?:answers|replies))\b[^.!?;\n]{{0,25}}?\b(?:as|in|with|using) "
    r"(?:an? )?(?P<value>JSON|YAML|Markdown|plain text|bullet points|bullets|numbered list|table)\b",
    "address": rf"(?:call|address) me (?:as |by )?(?P<value>formally|informally|{_NAME})",
}
_PREFERENCES: Mapping[Aspect, re.Pattern[str]] = {
    aspect: re.compile(rf"(?:\A|[.!?\n])[^\S\n]*(?P<said>{_LEAD}{pattern}[^.!?\n]{{0,200}})", re.IGNORECASE)
    for aspect, pattern in _PATTERNS.items()
}
"""An instruction begins a sentence: what others say, ask or forbid is none."""
_NEGATED = re.compile(r"\b(?:not|never|without|instead|rather)\b|n't\b", re.IGNORECASE)
_QUOTED = re.compile(r"```.*?(?:```|\Z)|^\s*>.*?$|\"[^\"\n]*\"|“[^”\n]*”|‘[^’\n]*’", re.DOTALL | re.MULTILINE)
_SAME = {
    "briefly": "brief",
    "short": "brief",
    "concise": "brief",
    "concisely": "brief",
    "detailed": "in detail",
    "bullets": "bullet points",
    "formally": "formally",
    "informally": "informally",
    "json": "JSON",
    "yaml": "YAML",
    "markdown": "Markdown",
    "celsius": "Celsius",
    "fahrenheit": "Fahrenheit",
}
"""Values in other words."""


class Conversation(NamedTuple):
    """A stored chat."""

    id: str
    client: str
    messages: Sequence[Mapping[str, Any]]
    end: Literal["well", "badly", ""] = ""
    """What the client's feedback says; empty without any."""


class Evidence(NamedTuple):
    """Where a lesson comes from."""

    message: int
    """Index among the messages."""
    quote: str
    """Found verbatim in that message."""


class Lesson(NamedTuple):
    """What a chat shows of how to act."""

    kind: Literal["procedure", "preference"]
    about: str
    """The request, with `{name}` in place of the values of arguments; or what is asked about the client."""
    says: str
    """The calls on one line (`procedure_text`), or the value."""
    evidence: tuple[Evidence, ...]
    client: str
    chat: str
    """Id of the interaction."""
    talk: str
    """Its first message, which is the same in all chats of a longer conversation."""
    durable: bool
    """Not only for a time, or for this chat."""
    values: Mapping[str, str] = MappingProxyType({})
    """Of a procedure's arguments, where the request says them."""

    @property
    def line(self) -> str:
        """The lesson on one line."""
        return f"{self.about}: {self.says}" if self.kind == "procedure" else f"{self.about} {self.says}."


class Found(NamedTuple):
    """What a chat teaches."""

    lessons: tuple[Lesson, ...]
    refused: str
    """Why it teaches nothing, or less than it seems to; empty otherwise."""


def lessons_of(chat: Conversation) -> Found:
    """Return the lessons of a chat from its last request on: what stands before it belongs to earlier chats."""
    try:
        return _found(chat, read_turns(chat.messages))
    except UnreadableError as error:
        return Found((), str(error))
    except RecursionError:
        return Found((), "is nested too deeply")


def _found(chat: Conversation, turns: Sequence[Turn]) -> Found:
    for turn in turns:
        for text in _texts([turn.text, turn.arguments]):
            if about := TRAINING.search(clean_text(text)):
                return Found((), f"message {turn.message} speaks about training ({truncated(about[0], 60)!r})")
    asked = [place for place, turn in enumerate(turns) if turn.speaker == "user" and turn.text]
    if not asked:
        return Found((), "")
    talk, refused, kept = turns[asked[0]].text, list[str](), list[Lesson]()
    for lesson in (*_preferences(chat, turns[asked[-1]], talk), *_procedure(chat, turns[asked[-1] :], talk)):
        if any(_SECRET in quote for _, quote in lesson.evidence):
            refused.append(f"a {lesson.kind} holds a secret")
        elif not all(any(q in text for text in _texts(chat.messages[i])) for i, q in lesson.evidence):
            refused.append(f"a {lesson.kind} is not said in these words")
        else:
            kept.append(lesson)
    return Found(tuple(kept), "; ".join(refused))


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts in a JSON value, names of fields included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        values = [*value, *value.values()] if isinstance(value, Mapping) else value
        yield from (text for each in values for text in _texts(each))


def _preferences(chat: Conversation, turn: Turn, talk: str) -> Iterator[Lesson]:
    if len(turn.text) > _MOST_INSTRUCTIONS:
        return
    own = _QUOTED.sub(lambda quoted: " " * len(quoted[0]), turn.text)
    for aspect, pattern in _PREFERENCES.items():
        for match in pattern.finditer(own):
            if _NEGATED.search(match["said"]):
                continue
            value = match["value"]
            value = value.capitalize() if aspect == "language" else value if aspect == "address" else value.lower()
            said = Evidence(turn.message, turn.text[match.start("said") : match.end("said")].strip())
            durable = bool(_STANDING.search(said.quote)) and not _PASSING.search(said.quote)
            about = ASPECTS[aspect].format(client=chat.client)
            says = _SAME.get(value.lower(), value)
            yield Lesson("preference", about, says, (said,), chat.client, chat.id, talk, durable)


def _procedure(chat: Conversation, turns: Sequence[Turn], talk: str) -> Iterator[Lesson]:
    """Yield the procedure of a request and what follows it, if that ended well."""
    request, made = turns[0], [turn for turn in turns if turn.call]
    results = [_failed(turn) for turn in turns if turn.speaker.startswith("tool")]
    if chat.end == "badly" or not made or len(request.text) > _MOST_REQUEST:
        return
    if chat.end != "well" and (any(results) or len(results) < len(made)):
        return
    failed = [*results, *[False] * len(made)]  # praised without a result: it served
    used = [turn for turn, wrong in zip(made, failed, strict=False) if not wrong]
    calls = list[Call | None]()
    for turn in used:
        names = turn.arguments if isinstance(turn.arguments, dict) else ()
        call = call_of(turn.call, names) if len(names) <= _MOST_ARGUMENTS else None
        calls += [call] if not calls or call != calls[-1] else []  # the next page, or once more
    named = [call for call in calls if call is not None]
    if not named or len(named) < len(calls) or len(calls) > _MOST_CALLS:
        return
    about, values = _masked(request.text, [turn.arguments for turn in used])
    evidence = Evidence(request.message, request.text), *(Evidence(turn.message, turn.call) for turn in used)
    durable = not _PASSING.search(request.text)
    yield Lesson(
        "procedure", about, procedure_text(named), evidence, chat.client, chat.id, talk, durable=durable, values=values
    )


def _failed(result: Turn) -> bool:
    """Return whether the result of a call is an error: marked as one, begins like one, or is JSON that says so."""
    if result.failed or _ERROR.match(result.text):
        return True
    try:
        said = json.loads(result.text)
    except (ValueError, RecursionError):
        return False
    if not isinstance(said, dict):
        return False
    status = said.get("status")
    bad = status in ("error", "failed", "failure") or (isinstance(status, int) and status >= 400)
    return bad or bool(said.get("error") or said.get("errors")) or False in (said.get("ok"), said.get("success"))


def _masked(request: str, arguments: Sequence[Any]) -> tuple[str, dict[str, str]]:
    """Return a request with `{name}` for each value of an argument that it says, and these values."""
    given = {name: value for each in arguments if isinstance(each, dict) for name, value in each.items()}
    texts = {name: str(value) for name, value in given.items() if isinstance(value, str | int | float)}
    values = dict[str, str]()
    for name, value in sorted(texts.items(), key=lambda item: -len(item[1])):
        if value.strip() and len(value) <= _MOST_VALUE:
            pattern = rf"(?<![\w{{]){re.escape(value)}(?![\w}}])"
            request, count = re.subn(pattern, f"{{{name}}}", request)
            values |= {name: value} if count else {}
    return request, values
