"""JSON specifications inside model output: search, parsing and validation.

Two vocabularies are supported: SEAL's few-shot self-edits (arXiv 2506.10943, section 3.2), and the fields of `SelfEdit`
itself, so that `SelfEdit.model_dump_json` parses back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from evaluation.common.text import blank
from evaluation.sources.rows import as_written
from teacher.parsing.lines import Kind, classify, count_lines, has_letter
from teacher.self_edit import AugmentationSpec, TrainingSpec

_Spec = TypeVar("_Spec", bound=BaseModel)

_PART_NAMES = {"data_generation": "augmentations"}
_PARTS = ("augmentations", "training", "implications")
_TRAINING_NAMES = {"num_train_epochs": "epochs", "strategy": "loss_on"}
_STRATEGIES = {"train_using_all_tokens": "all", "train_using_output_tokens": "answer"}
_AUGMENTATION_FIELDS = frozenset(AugmentationSpec.model_fields)
_TRAINING_FIELDS = frozenset(TrainingSpec.model_fields) | frozenset(_TRAINING_NAMES)

_OBJECT_START = re.compile(r'\{\s*["\'}]|(?<![^\n])[ \t]*\[\s*(?=["{])')
_ARGUMENTS = ("arguments", "parameters", "input", "function", "args")
_TEXT_FIELDS = ("text", "question", "statement", "implication", "fact", "q")
_ANSWER_FIELDS = ("answer", "response", "a")
_LISTED = frozenset({*_TEXT_FIELDS, *_ANSWER_FIELDS, "id", "number"})
"""Fields of an entry of a list."""
_PAIRS = ({"question", "answer"}, {"id", "question", "answer"}, {"q", "a"})
_ITEM = re.compile(
    r"<(?P<tag>implication|statement|fact|item|li|sentence)(?:\s[^<>]{0,40})?>(?P<text>[^<]+)</(?P=tag)>"
    r"|<question>(?P<question>[^<]+)</question>\s*<answer>(?P<answer>[^<]+)</answer>"
)
_WHOLE_STRING = re.compile(r'"((?:[^"\\\n]|\\.)+)"\s*[,\]]')
_TABLE = re.compile(r"(?:^[ \t]*\|.*\|[ \t]*$\n?){3,}", re.MULTILINE)
_SPECIFICATION_START = re.compile(
    r"\{\s*[\"']?(?:data_generation|augmentations|training|implications|use_(?:basic|size|chain|repeat)_augmentations"
    r"|learning_rate|num_train_epochs|epochs|rank|strategy|loss_on)[\"']?\s*:"
)
_BLOCK_END = re.compile(r"```|\n[ \t]*\n")
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
    items = list(_ITEM.finditer(text))
    found.entries = [(each["question"] or each["text"], each["answer"]) for each in items]
    found.rest = text = blank(text, (each.span() for each in items))
    for table in _TABLE.finditer(text):
        if rows := _rows(table[0]):
            found.entries += rows
            found.rest = blank(found.rest, [table.span()])
    text, seen = found.rest, set[str]()
    for start, end, value in _blocks(text):
        before = count_lines(found.rest)
        found.rest = blank(found.rest, [(start, end)])
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
            seen |= set(parts) - {"implications"}
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
            end = _BLOCK_END.search(text, start)
            until = end.start() if end else len(text)
            if _SPECIFICATION_START.match(text, start):
                position = until
                yield start, position, f"not JSON: {error}"
            elif text[start:until].lstrip()[:1] == "[" and (strings := _WHOLE_STRING.findall(text, start, until)):
                position = until  # a list that was cut, or has a comma too many
                yield start, position, {"implications": strings}
            continue
        while isinstance(value, dict) and not _is_specification(value):
            inner = next((value[name] for name in _ARGUMENTS if name in value), None)
            inner = next(iter(value.values())) if inner is None and len(value) == 1 else inner
            if isinstance(inner, str):
                with suppress(ValueError, RecursionError):
                    inner = decoder.decode(inner)
            if not isinstance(inner, dict | list):
                break
            value = inner
        listed = [value] if isinstance(value, dict) and set(value) in _PAIRS else value
        if isinstance(listed, list) and listed and all(map(_is_entry, listed)):
            value = {"implications": [_entry(each) for each in listed]}
        if isinstance(value, dict) and _is_specification(value):
            found += 1
            yield start, position, value


def _is_entry(value: Any) -> bool:
    """Return whether an element of a list is a statement, or an object with a text or a question."""
    if isinstance(value, dict):
        return set(value) <= _LISTED and isinstance(_entry(value)["text"], str)
    return isinstance(value, str) and len(value) > 6


def _entry(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {"text": value}
    found = [next((value[name] for name in names if name in value), None) for names in (_TEXT_FIELDS, _ANSWER_FIELDS)]
    return dict(zip(("text", "answer"), found, strict=True))


def _rows(table: str) -> list[tuple[str, str | None]]:
    """Return the rows of a Markdown table of questions and answers, or with one column of statements; else nothing."""
    head, rule, *rows = ([cell.strip() for cell in row.strip().strip("|").split("|")] for row in table.splitlines())
    kinds = [classify(f"{name}: ...").kind if has_letter(name) else None for name in head]
    rows = [row for row in rows if len(row) == len(head)]
    if not set("".join(rule)) <= set("-: "):
        return []
    if Kind.QUESTION in kinds and Kind.ANSWER in kinds:
        asked, given = kinds.index(Kind.QUESTION), kinds.index(Kind.ANSWER)
        return [(row[asked], row[given]) for row in rows if row[asked]]
    told = [i for i in range(len(head)) if rows and all(len(row[i].split()) > 2 for row in rows)]
    return [(row[told[0]], None) for row in rows] if len(told) == 1 else []


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
        text, answer = pair.get("text", pair.get("question")), as_written(pair.get("answer"))
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
