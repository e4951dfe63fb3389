"""The one form that every source is brought into, and the words for what is wrong with a row.

What is done to strings, in every source: line ends become LF, so that a file saved on Windows has the same digests;
questions and answers lose white space at their ends, because exact match would count it; everything else stays as it
is. Strings with NUL characters or unpaired surrogates are refused: tokenizers, trackers and UTF-8 cannot carry them.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import ErrorDetails

Location = tuple[int | str, ...]
"""Keys and indices from a row, or a file, to the value meant."""


_SURROGATE = re.compile("[\ud800-\udfff]")


def _clean(value: str) -> str:
    if "\0" in value:
        raise ValueError("holds a NUL character (U+0000)")
    if _SURROGATE.search(value):
        raise ValueError("holds an unpaired surrogate, which is not Unicode text")
    return value.replace("\r\n", "\n").replace("\r", "\n")


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("is empty" if not value else "is only white space")
    return value


Label = Annotated[str, AfterValidator(_clean)]
"""A string that may be empty."""
Content = Annotated[Label, AfterValidator(_not_blank)]
"""A string with something in it, kept as it is."""
Phrase = Annotated[Content, AfterValidator(str.strip)]
"""A question or an answer: white space at the ends is dropped."""


class QuestionRow(BaseModel):
    """A question with its answer, as a source gives it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    question: Phrase
    answer: Phrase


class DocumentRow(BaseModel):
    """A document with its questions, as a source gives it; null stands for an optional value that is absent."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: Content | None = None
    """Unique in the source; None derives one (`derived_id`)."""
    title: Label | None = None
    text: Content
    source: Label | None = None
    """Where the document came from; None: the place of the row."""
    entities: list[Content] | None = None
    """Names of what the document is about; splits keep them on one side."""
    questions: list[QuestionRow] = Field(min_length=1)
    held_out_questions: list[QuestionRow] | None = None
    """Asked in comparisons only; none: `questions` are asked there too."""


def json_path(location: Location) -> str:
    """Return a location as a JSON path, such as `data[3].paragraphs[2].qas[0]`; odd keys are quoted and escaped."""
    keys = (part if isinstance(part, int) or part.isprintable() else repr(part) for part in location)
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")


_KINDS = {"string_type": "a string", "list_type": "a list", "model_type": "an object"}
_GOT = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    type(None): "null",
}


def reason(details: ErrorDetails) -> str:
    """Return what is wrong with a value, in the words of JSON."""
    got: Any = details["input"]
    match details["type"]:
        case "missing":
            return "is missing"
        case "extra_forbidden":
            return f"is an unknown key (allowed: {', '.join(_allowed_beside(details['loc']))})"
        case "too_short":
            return "is empty, must hold at least one item"
        case "string_unicode":  # values are checked by `_clean`
            return "has a key with an unpaired surrogate, which is not Unicode text"
        case "value_error":
            return str(details["ctx"]["error"])
        case kind if kind in _KINDS:
            return f"must be {_KINDS[kind]}, got {_GOT.get(type(got), type(got).__name__)}"
        case _:
            return details["msg"]


def _allowed_beside(location: Location) -> list[str]:
    """Return the keys that the object with an unknown key may have."""
    return list((DocumentRow if len(location) == 1 else QuestionRow).model_fields)
