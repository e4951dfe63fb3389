"""JSON specifications inside model output: search, parsing and validation.

Two vocabularies are supported: SEAL's few-shot self-edits (arXiv 2506.10943, section 3.2), and the fields of `SelfEdit`
itself, so that `SelfEdit.model_dump_json` parses back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from teacher.parsing.lines import count_lines
from teacher.self_edit import AugmentationSpec, TrainingSpec

_Spec = TypeVar("_Spec", bound=BaseModel)

_PART_NAMES = {"data_generation": "augmentations"}
_PARTS = ("augmentations", "training", "implications")
_TRAINING_NAMES = {"num_train_epochs": "epochs", "strategy": "loss_on"}
_STRATEGIES = {"train_using_all_tokens": "all", "train_using_output_tokens": "answer"}
_AUGMENTATION_FIELDS = frozenset(AugmentationSpec.model_fields)
_TRAINING_FIELDS = frozenset(TrainingSpec.model_fields) | frozenset(_TRAINING_NAMES)

_OBJECT_START = re.compile(r'\{\s*["\'}]')
_SPECIFICATION_START = re.compile(
    r"\{\s*[\"']?(?:data_generation|augmentations|training|implications|use_(?:basic|size|chain|repeat)_augmentations"
    r"|learning_rate|num_train_epochs|epochs|rank|strategy|loss_on)[\"']?\s*:"
)
_BLOCK_END = re.compile(r"```|\n[ \t]*\n")
_NO_LINE_BREAK = re.compile(r"[^\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_MOST_BLOCKS = 64
"""Maximum number of specifications and broken objects in a text; the rest is not searched."""


class RejectReason(StrEnum):
    """Reason why a text is not a self-edit."""

    EMPTY = "empty"
    NO_USABLE_LINES = "no_usable_lines"
    """Every line was dropped, and there is no specification."""
    DIGIT_LOOP = "digit_loop"
    """As above, and the text counts or repeats a number."""
    INVALID_JSON = "invalid_json"
    UNKNOWN_FIELD = "unknown_field"
    """A field outside both vocabularies."""
    INVALID_VALUE = "invalid_value"
    OUT_OF_RANGE = "out_of_range"
    """A hyperparameter outside the range of `TrainingSpec`."""


class _SpecificationError(Exception):
    """An invalid specification: reason and detail."""


@dataclass
class Specification:
    """Content of the JSON blocks of a text."""

    augmentations: AugmentationSpec | None = None
    training: TrainingSpec | None = None
    entries: list[tuple[str, str | None]] = field(default_factory=list)
    """Text and answer of each implication, as written."""
    reason: RejectReason | None = None
    """Why the first invalid block was rejected; None if all are valid."""
    detail: str = ""
    rest: str = ""
    """The text with the blocks blanked out, line breaks preserved."""
    extra_lines: int = 0
    """Non-blank lines of blocks that repeat a part of an earlier block; these are ignored entirely."""


def read_specification(text: str) -> Specification:
    """Return the content of the JSON blocks in `text`; errors are reported in `reason`, never raised."""
    found = Specification(rest=text)
    seen: set[str] = set()
    for start, end, value in _blocks(text):
        block = _NO_LINE_BREAK.sub(" ", text[start:end])
        before = count_lines(found.rest)
        found.rest = found.rest[:start] + block + found.rest[end:]
        if found.reason is not None:
            continue
        try:
            parts = _parts(value)
            if seen & set(parts):
                found.extra_lines += before - count_lines(found.rest)
                continue
            augmentations = _model(AugmentationSpec, parts.get("augmentations"), "augmentations", {})
            training = _model(TrainingSpec, parts.get("training"), "training", _TRAINING_NAMES)
            found.entries += _entries(parts.get("implications"))
            found.augmentations, found.training = augmentations or found.augmentations, training or found.training
            seen |= set(parts)
        except _SpecificationError as error:
            found.reason, found.detail = error.args
    return found


def _blocks(text: str) -> Iterator[tuple[int, int, Mapping[str, Any] | str]]:
    """Yield start, end and value of each specification; for invalid JSON the value is the error message."""
    decoder = json.JSONDecoder(strict=False, object_pairs_hook=_unique_fields)
    position, found = 0, 0
    while found < _MOST_BLOCKS and (match := _OBJECT_START.search(text, position)):
        start = match.start()
        try:
            value, position = decoder.raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            found += 1
            position = start + 1
            if _SPECIFICATION_START.match(text, start):
                end = _BLOCK_END.search(text, start)
                position = end.start() if end else len(text)
                yield start, position, f"not JSON: {error}"
            continue
        while len(value) == 1 and not _is_specification(value) and isinstance(only := next(iter(value.values())), dict):
            value = only
        if _is_specification(value):
            found += 1
            yield start, position, value


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError(f"a field is given twice among {_quoted(sorted(name for name, _ in pairs))}")
    return value


def _is_specification(value: Mapping[str, Any]) -> bool:
    """Return whether an object is a specification: it names a part, or has only fields of one."""
    names = set(value)
    return bool(names & {*_PARTS, *_PART_NAMES}) or (bool(names) and names <= _AUGMENTATION_FIELDS | _TRAINING_FIELDS)


def _parts(value: Mapping[str, Any] | str) -> dict[str, Any]:
    """Return the parts of a block by the names of `SelfEdit`; bare fields are moved into their part."""
    if isinstance(value, str):
        raise _SpecificationError(RejectReason.INVALID_JSON, value)
    parts: dict[str, Any] = {}
    for name, content in value.items():
        if name in _AUGMENTATION_FIELDS or name in _TRAINING_FIELDS:
            part, content = ("augmentations" if name in _AUGMENTATION_FIELDS else "training"), {name: content}
        else:
            part = _PART_NAMES.get(name, name)
        if part not in _PARTS:
            detail = f"got the field {_quoted(name)}, allowed are {[*_PARTS, *_PART_NAMES]}"
            raise _SpecificationError(RejectReason.UNKNOWN_FIELD, detail)
        if isinstance(parts.get(part), dict) and isinstance(content, dict) and not set(parts[part]) & set(content):
            content = parts[part] | content
        elif part in parts:
            raise _SpecificationError(RejectReason.INVALID_VALUE, f"{part}: given twice in one block")
        parts[part] = content
    return parts


def _model(model: type[_Spec], value: Any, part: str, names: Mapping[str, str]) -> _Spec | None:
    """Return `value` as a model; `names` maps aliases to field names."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _SpecificationError(RejectReason.INVALID_VALUE, f"{part}: got {_quoted(value)}, allowed is an object")
    fields: dict[str, Any] = {}
    for name, content in value.items():
        own = names.get(name, name)
        if own not in model.model_fields:
            allowed = sorted({*model.model_fields, *names})
            detail = f"{part}: got the field {_quoted(name)}, allowed are {allowed}"
            raise _SpecificationError(RejectReason.UNKNOWN_FIELD, detail)
        if own in fields:
            raise _SpecificationError(RejectReason.INVALID_VALUE, f"{part}.{name}: given twice, as {own} too")
        fields[own] = _own_value(name, content, part)
    try:
        return model.model_validate(fields, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        own = str(first["loc"][0])
        written = next(name for name in value if names.get(name, name) == own)
        ranged = first["type"] in ("greater_than_equal", "less_than_equal")
        reason = RejectReason.OUT_OF_RANGE if ranged else RejectReason.INVALID_VALUE
        detail = f"{part}.{written}: got {_quoted(fields[own])}, allowed: {first['msg']}"
        raise _SpecificationError(reason, detail) from None


def _own_value(name: str, content: Any, part: str) -> Any:
    """Translate SEAL's strategies, and whole floats to integers."""
    if name == "strategy":
        if not isinstance(content, str) or content not in _STRATEGIES:
            detail = f"{part}.strategy: got {_quoted(content)}, allowed are {sorted(_STRATEGIES)}"
            raise _SpecificationError(RejectReason.INVALID_VALUE, detail)
        return _STRATEGIES[content]
    return int(content) if isinstance(content, float) and content.is_integer() and name != "learning_rate" else content


def _entries(value: Any) -> list[tuple[str, str | None]]:
    """Return text and answer of the implications: strings, or objects with `text` (or `question`) and `answer`."""
    if value is None:
        return []
    entries: list[tuple[str, str | None]] = []
    for entry in value if isinstance(value, list) else [value]:
        pair = entry if isinstance(entry, dict) else {"text": entry}
        text, answer = pair.get("text", pair.get("question")), pair.get("answer")
        known = set(pair) <= {"text", "answer"} or set(pair) <= {"question", "answer"}
        if not known or not isinstance(text, str) or not isinstance(answer, str | None) or not isinstance(value, list):
            allowed = "allowed is a list of strings or of objects with text and answer"
            raise _SpecificationError(RejectReason.INVALID_VALUE, f"implications: got {_quoted(entry)}, {allowed}")
        entries.append((text, answer))
    return entries


def _quoted(value: Any) -> str:
    """Return `value` for a message, in ASCII and at most 80 characters."""
    try:
        shown = ascii(value)
    except RecursionError:
        shown = f"a deeply nested {type(value).__name__}"
    return shown if len(shown) <= 80 else shown[:77] + "..."
