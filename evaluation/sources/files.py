"""Documents from JSON Lines and SQuAD files.

JSON Lines has one object per line; blank lines are skipped:
```json
{"id"?: str, "title"?: str, "text": str, "source"?: str, "entities"?: [str],
 "questions": [{"question": str, "answer": str}], "held_out_questions"?: [{"question": str, "answer": str}]}
```
SQuAD v1.1 (arXiv 1606.05250) makes each paragraph a document, under its article's title, in one of two forms:
- official: `{"data": [{"title", "paragraphs": [{"context", "qas": [{"question", "answers": [{"text"}]}]}]}]}`;
- regrouped by paragraph: `[{"title", "context", "questions": [{"question", "answer"}]}]`, with an optional `id`.

The first answer is gold; other keys are ignored. Duplicates are kept, as in SQuAD's published counts; splits keep equal
documents on one side.
"""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from evaluation.common.errors import InputError
from evaluation.sources.config import HuggingFaceData, JsonLinesData, LoadedData, SquadData
from evaluation.sources.rows import (
    Content,
    DocumentRow,
    Intake,
    Label,
    Phrase,
    QuestionRow,
    Refusals,
    check_file,
    sample_documents,
)
from evaluation.tasks import KnowledgeTask

_GZIP_MAGIC = b"\x1f\x8b"


def load_tasks(config: LoadedData) -> tuple[KnowledgeTask, ...]:
    """Return the tasks of a source, in its order or that of its seeded shuffle, with unique ids.

    Raises:
        InputError: The source cannot be read or has bad rows; the message lists all with place and reason.
    """
    if isinstance(config, HuggingFaceData):
        from evaluation.sources.hugging_face import load_hugging_face

        return load_hugging_face(config)
    return _load_squad(config) if isinstance(config, SquadData) else _load_json_lines(config)


class JsonSyntaxError(ValueError):
    """Invalid JSON; the message is the reason, without a place."""


def read_data_file(path: Path) -> bytes:
    """Return a file's content without byte order mark, decompressed if it is gzip.

    Raises:
        InputError: See `check_file`; or the gzip stream is damaged, the content is empty or UTF-16.
    """
    found = check_file(path)
    try:
        content = found.read_bytes()
        if content.startswith(_GZIP_MAGIC):
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"data file '{path}': the gzip stream is truncated or damaged ({error}). Copy it again."
        ) from error
    except OSError as error:
        raise InputError(f"data file '{path}' could not be read: {error}. Check the file and its disk.") from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"data file '{path}' is UTF-16, only UTF-8 is read. Convert it: iconv -f UTF-16 -t UTF-8.")
    content = content.removeprefix(codecs.BOM_UTF8)
    if not content.strip():
        raise InputError(f"data file '{path}' is empty: it holds no document. Give a file with at least one document.")
    return content


def read_json(path: Path) -> Any:
    """Return the value of a JSON file; InputError as in `read_data_file`, or if it is not JSON."""
    try:
        return parse_json(read_data_file(path))
    except JsonSyntaxError as error:
        raise InputError(f"{path}: {error}. Nothing was loaded; correct the file and run again.") from error


def parse_json(content: bytes) -> Any:
    """Return the value of a UTF-8 JSON text; JsonSyntaxError if invalid, too deeply nested, or with repeated keys."""
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=_object_without_repeats)
    except UnicodeDecodeError as error:
        place, bad = _position(content, error.start), content[error.start]
        raise JsonSyntaxError(f"not UTF-8: {place} has {bad:#04x}") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}" if b"\n" in content else f"column {error.colno}"
        raise JsonSyntaxError(f"broken JSON: {error.msg.removesuffix(' at')} at {place}") from error
    except RecursionError as error:
        raise JsonSyntaxError("broken JSON: nested too deeply") from error
    except JsonSyntaxError:
        raise
    except ValueError as error:  # Python's limit on the digits of an integer
        raise JsonSyntaxError("broken JSON: a number has too many digits") from error


def json_lines(content: bytes, refusals: Refusals) -> Iterator[tuple[str, Any]]:
    """Yield place and value of each non-blank line; invalid lines are refused."""
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            try:
                value = parse_json(line)
            except JsonSyntaxError as error:
                refusals.refuse(f"line {number}", str(error))
            else:
                yield f"line {number}", value


def _position(content: bytes, offset: int) -> str:
    before = content[:offset]
    line, column = before.count(b"\n") + 1, offset - before.rfind(b"\n")
    return f"line {line} byte {column}" if b"\n" in content else f"byte {column}"


def _object_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    whole = dict(pairs)
    if len(whole) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        raise JsonSyntaxError(f"an object gives the key {', '.join(map(repr, twice))} more than once")
    return whole


def _load_json_lines(config: JsonLinesData) -> tuple[KnowledgeTask, ...]:
    content, intake = read_data_file(config.path), Intake(str(config.path))
    for place, raw in json_lines(content, intake):
        if isinstance(raw, dict):
            intake.claim_id(place, raw.get("id"))
        intake.add(place, intake.parse(place, raw, DocumentRow))
    return intake.tasks()


class _Lenient(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class _Answer(_Lenient):
    text: Phrase


class _OfficialQuestion(_Lenient):
    question: Phrase
    answers: list[_Answer] = Field(min_length=1)


class _Paragraph(_Lenient):
    context: Content
    qas: list[_OfficialQuestion] = Field(min_length=1)


class _Article(_Lenient):
    title: Label | None = None
    paragraphs: list[_Paragraph] = Field(min_length=1)


class _Official(_Lenient):
    data: list[_Article] = Field(min_length=1)


class _RegroupedQuestion(_Lenient):
    question: Phrase
    answer: Phrase


class _Regrouped(_Lenient):
    id: Content | None = None
    title: Label | None = None
    context: Content
    questions: list[_RegroupedQuestion] = Field(min_length=1)


def _load_squad(config: SquadData) -> tuple[KnowledgeTask, ...]:
    raw, intake = read_json(config.path), Intake(str(config.path))
    if isinstance(raw, dict) and "data" in raw:
        _take_official(intake, raw)
    elif isinstance(raw, list):
        _take_regrouped(intake, raw)
    else:
        raise InputError(
            f"{config.path}: not SQuAD: the top level must be an object with 'data' (the official form) or a list of "
            "objects with 'context' and 'questions'. A file with one object a line is data.type 'jsonl'."
        )
    return sample_documents(intake.tasks(), config)


def _take_official(intake: Intake, raw: dict[str, object]) -> None:
    whole = intake.parse_whole(TypeAdapter(_Official), raw)
    for a, article in enumerate(whole.data if whole else ()):
        for p, paragraph in enumerate(article.paragraphs):
            questions = [QuestionRow(question=qa.question, answer=qa.answers[0].text) for qa in paragraph.qas]
            row = DocumentRow(title=article.title, text=paragraph.context, questions=questions)
            intake.add(f"data[{a}].paragraphs[{p}]", row)


def _take_regrouped(intake: Intake, raw: list[object]) -> None:
    for i, item in enumerate(raw):
        if isinstance(item, dict):
            intake.claim_id(f"[{i}]", item.get("id"))
    for i, item in enumerate(intake.parse_whole(TypeAdapter(list[_Regrouped]), raw) or ()):
        questions = [QuestionRow(question=asked.question, answer=asked.answer) for asked in item.questions]
        intake.add(f"[{i}]", DocumentRow(id=item.id, title=item.title, text=item.context, questions=questions))
