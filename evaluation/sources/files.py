"""Documents from JSON Lines and SQuAD files and from data sets of the `datasets` library, with their `data` sections.

JSON Lines has one object per line; blank lines are skipped:
```json
{"id"?: str, "title"?: str, "text": str, "source"?: str, "entities"?: [str],
 "questions": [{"question": str, "answer": str}], "held_out_questions"?: [{"question": str, "answer": str}]}
```
SQuAD (arXiv 1606.05250) makes each paragraph a document, under its article's title, in one of two forms:
- official: `{"data": [{"title", "paragraphs": [{"context", "qas": [{"question", "answers": [{"text"}]}]}]}]}`;
- regrouped by paragraph: `[{"title", "context", "questions": [{"question", "answer"}]}]`, with an optional `id`.

The first answer is gold; other keys are ignored. Questions of SQuAD 2.0 without an answer are left out, and counted in
a warning. Duplicates are kept, as in SQuAD's published counts; splits keep equal documents on one side.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticKnownError

from evaluation.common.data import Frozen
from evaluation.common.errors import InputError
from evaluation.common.text import decode_text
from evaluation.sources.rows import (
    Content,
    DocumentRow,
    Intake,
    Label,
    LocalData,
    Phrase,
    QuestionRow,
    SampledData,
    WrittenFloat,
    as_written,
)
from evaluation.tasks import KnowledgeTask

_GZIP_MAGIC = b"\x1f\x8b"
_BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".arrow": "arrow"}
_MOST_KEYS = 5
"""Repeated keys that a message names."""
_COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
_INSTALLED = Path(__file__).resolve().parents[2]
"""Where files that ship lie, such as `configs/examples/real/passages.jsonl`."""


class JsonLinesData(LocalData):
    """A JSON Lines file with one document per line (`evaluation.sources.files`)."""

    type: Literal["jsonl"] = "jsonl"


class SquadData(SampledData, LocalData):
    """A SQuAD 1.1 or 2.0 file, in the official nested form or regrouped by paragraph (`evaluation.sources.files`)."""

    type: Literal["squad"] = "squad"


class ColumnMapping(Frozen):
    """Column names: `question` and `answer` for one question per row, or `questions` for one document per row."""

    text: str = Field(default="text", min_length=1)
    """Column with the passage."""
    title: str | None = Field(default=None, min_length=1)
    """Column with the title; None for empty titles."""
    id: str | None = Field(default=None, min_length=1)
    """Column with the document's id (not the question's); None derives ids from title and content."""
    question: str | None = Field(default=None, min_length=1)
    """Column with a question; requires `answer`, excludes `questions`."""
    answer: str | None = Field(default=None, min_length=1)
    """Column with its answer: a string, a list (the first is gold), or SQuAD's `{"text": [...]}`."""
    questions: str | None = Field(default=None, min_length=1)
    """Column with a list of `{question, answer}`; excludes `question` and `answer`."""

    @model_validator(mode="after")
    def _exclusive(self) -> ColumnMapping:
        flat = (self.question is not None, self.answer is not None)
        if flat not in ((True, True), (False, False)) or (self.questions is not None) == all(flat):
            raise ValueError(
                f"give either both question and answer, or questions alone; got question={self.question!r}, "
                f"answer={self.answer!r}, questions={self.questions!r}"
            )
        return self


class HuggingFaceData(SampledData):
    """A data set of the `datasets` library."""

    type: Literal["huggingface"] = "huggingface"
    path: str = Field(min_length=1)
    """A hub id, a directory from `save_to_disk`, or a local data file or directory (JSON, CSV, Parquet, Arrow)."""
    name: str | None = Field(default=None, min_length=1)
    """Configuration name on the hub; None for the default."""
    split: str = Field(default="train", min_length=1)
    """Such as `train` or `validation`."""
    columns: ColumnMapping


LoadedData: TypeAlias = JsonLinesData | SquadData | HuggingFaceData
"""Sections of `load_tasks`."""


def load_tasks(config: LoadedData) -> tuple[KnowledgeTask, ...]:
    """Return the tasks of a source, in its order or that of its seeded shuffle, with unique ids.

    Raises:
        InputError: The source cannot be read or has bad rows; the message lists all with place and reason.
    """
    match config:
        case JsonLinesData():
            content, intake = read_data_file(config.path), Intake(str(config.path))
            for place, raw in json_lines(content, intake.refuse):
                intake.take(place, raw)
            return intake.tasks()
        case SquadData():
            return _load_squad(config)
        case HuggingFaceData():
            return _load_hugging_face(config)


class JsonSyntaxError(ValueError):
    """Invalid JSON; the message is the reason, without a place."""


def read_data_file(path: Path, field: str = "data.path") -> bytes:
    """Return a file's content (see `in_utf8`), decompressed if it is gzip; of a shipped one where there is no other.

    Raises:
        InputError: The file named by a `field` of the configuration cannot be read, is empty or damaged.
    """
    try:
        file = path.expanduser()
        content = (file if file.exists() or not (_INSTALLED / file).is_file() else _INSTALLED / file).read_bytes()
        if content.startswith(_GZIP_MAGIC):
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"data file '{path}': the gzip stream is truncated or damaged ({error}). Copy it again."
        ) from error
    except OSError as error:
        raise InputError(
            f"data file '{path}' cannot be read: {error.strerror} (current directory: '{Path.cwd()}'). Correct {field} "
            "in the config."
        ) from error
    content = in_utf8(content)
    if not content.strip():
        raise InputError(f"data file '{path}' is empty: give at least one entry, or correct {field} in the config.")
    return content


def in_utf8(content: bytes) -> bytes:
    """Return a text in UTF-8 without byte order mark; bytes in none of `decode_text`'s encodings unchanged."""
    with suppress(ValueError):
        return decode_text(content).encode("utf-8")
    return content


def read_json(path: Path) -> Any:
    """Return the value of a JSON file; InputError as in `read_data_file`, or if it is not JSON."""
    try:
        return parse_json(read_data_file(path))
    except JsonSyntaxError as error:
        raise InputError(f"{path}: {error}. Nothing was loaded; correct the file and run again.") from error


def parse_json(content: bytes) -> Any:
    """Return the value of a UTF-8 JSON text; JsonSyntaxError if invalid, too deeply nested, or with repeated keys.

    NaN, which some libraries write for what is absent, is null; `WrittenFloat`s keep their digits.
    """
    try:
        text = content.decode("utf-8")
        return json.loads(
            text, parse_float=WrittenFloat, object_pairs_hook=_object_without_repeats, parse_constant=_constant
        )
    except UnicodeDecodeError as error:
        raise JsonSyntaxError(f"not UTF-8: byte {error.start + 1} has {content[error.start]:#04x}") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}" if b"\n" in content else f"column {error.colno}"
        raise JsonSyntaxError(f"broken JSON: {error.msg.removesuffix(' at')} at {place}") from error
    except RecursionError as error:
        raise JsonSyntaxError("broken JSON: nested too deeply") from error
    except JsonSyntaxError:
        raise
    except ValueError as error:  # Python's limit on the digits of an integer
        raise JsonSyntaxError("broken JSON: a number has too many digits") from error


def json_lines(content: bytes, refuse: Callable[[str, str], None]) -> Iterator[tuple[str, Any]]:
    """Yield place and value of each non-blank line, or element of a single array; `refuse` gets bad lines."""
    if content.lstrip().startswith(b"["):
        with suppress(JsonSyntaxError):
            whole = parse_json(content)
            if all(isinstance(item, dict) for item in whole):
                yield from ((f"[{i}]", item) for i, item in enumerate(whole))
                return
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            try:
                value = parse_json(line)
            except JsonSyntaxError as error:
                refuse(f"line {number}", str(error))
            else:
                yield f"line {number}", value


def _object_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    whole = dict(pairs)
    if len(whole) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = sorted(key for key, count in counts.items() if count > 1)
        listed = [*map(repr, twice[:_MOST_KEYS]), *([f"{len(twice) - _MOST_KEYS} more"] if twice[_MOST_KEYS:] else [])]
        raise JsonSyntaxError(f"an object gives the key {', '.join(listed)} more than once")
    return whole


def _constant(name: str) -> None:
    if name != "NaN":
        raise JsonSyntaxError(f"broken JSON: {name} is no JSON")


class _Lenient(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class _Answer(_Lenient):
    text: Annotated[Phrase, BeforeValidator(as_written)]


class _OfficialQuestion(_Lenient):
    question: Phrase
    is_impossible: bool = False
    answers: list[_Answer]

    @field_validator("answers")
    @classmethod
    def _answered(cls, value: list[_Answer], info: ValidationInfo) -> list[_Answer]:
        if not value and not info.data.get("is_impossible"):
            raise PydanticKnownError("too_short", {"field_type": "List", "min_length": 1, "actual_length": 0})
        return value


class _Paragraph(_Lenient):
    context: Content
    qas: list[_OfficialQuestion] = Field(min_length=1)


class _Article(_Lenient):
    title: Label | None = None
    paragraphs: list[_Paragraph] = Field(min_length=1)


class _Official(_Lenient):
    data: list[_Article] = Field(min_length=1)


class _RegroupedQuestion(QuestionRow):
    model_config = ConfigDict(extra="ignore")


class _Regrouped(_Lenient):
    id: Content | None = None
    title: Label | None = None
    context: Content
    questions: list[_RegroupedQuestion] = Field(min_length=1)


def _load_squad(config: SquadData) -> tuple[KnowledgeTask, ...]:
    raw, intake = read_json(config.path), Intake(str(config.path))
    if isinstance(raw, dict) and "data" in raw:
        whole = intake.parse_whole(TypeAdapter(_Official), raw)
        for a, article in enumerate(whole.data if whole else ()):
            for p, paragraph in enumerate(article.paragraphs):
                posed = [qa for qa in paragraph.qas if not qa.is_impossible]
                asked = [QuestionRow(question=qa.question, answer=qa.answers[0].text) for qa in posed]
                intake.unanswerable += len(paragraph.qas) - len(posed)
                if asked:
                    row = DocumentRow(title=article.title, text=paragraph.context, questions=asked)
                    intake.add(f"data[{a}].paragraphs[{p}]", row)
    elif isinstance(raw, list):
        for i, item in enumerate(raw):
            intake.claim_id(f"[{i}]", item)
        for i, item in enumerate(intake.parse_whole(TypeAdapter(list[_Regrouped]), raw) or ()):
            row = DocumentRow(id=item.id, title=item.title, text=item.context, questions=[*item.questions])
            intake.add(f"[{i}]", row)
    else:
        raise InputError(
            f"{config.path}: not SQuAD: the top level must be an object with 'data' (the official form) or a list of "
            "objects with 'context' and 'questions'. A file with one object a line is data.type 'jsonl'."
        )
    return config.sample(intake.tasks())


class _FlatRow(QuestionRow):
    """A question with its document."""

    id: Content | None = None
    title: Label | None = None
    text: Content


def _load_hugging_face(config: HuggingFaceData) -> tuple[KnowledgeTask, ...]:
    """Without a `questions` column, rows with the same text are one document, with the first row's title."""
    dataset, source = _open(config), f"{config.path}[{config.split}]"
    columns = {field: column for field, column in config.columns.model_dump().items() if column is not None}
    if missing := [name for name in dict.fromkeys(columns.values()) if name not in dataset.column_names]:
        raise InputError(
            f"{source}: no column {', '.join(map(repr, missing))}; the data set has "
            f"{', '.join(map(repr, dataset.column_names))}. Correct data.columns in the config."
        )
    intake, rows = Intake(source), dataset.select_columns(list(dict.fromkeys(columns.values())))
    answer, raws = columns.get("answer", ""), dict[int, dict[str, Any]]()
    for number, cells in enumerate(rows):
        if answer and (cells[answer] == [] or (isinstance(cells[answer], dict) and cells[answer].get("text") == [])):
            intake.unanswerable += 1
        else:
            raws[number] = {field: _value(field, cells[column]) for field, column in columns.items()}
    if config.columns.questions is None:
        _take_flat(intake, raws, columns)
    else:
        for number, raw in raws.items():
            intake.take(f"row {number}", raw, columns)
    return config.sample(intake.tasks())


def _open(config: HuggingFaceData) -> Any:
    """Return the split as a `datasets.Dataset`."""
    from datasets import DatasetDict, load_dataset, load_from_disk  # takes a second

    path = Path(config.path).expanduser()
    builder = _BUILDERS.get((path.with_suffix("") if path.suffix in _COMPRESSIONS else path).suffix)
    if path.is_file() and builder is None:
        raise InputError(
            f"data file '{config.path}': its name must end in one of {', '.join(_BUILDERS)} "
            f"(then {', '.join(_COMPRESSIONS)} where compressed). Rename it, or convert it to one of these."
        )
    try:
        if path.is_file():
            # Cells of CSV files are texts, as they were written: 1.50 is not 1.5, 007 not 7, and NA a word.
            texts: dict[str, Any] = {"converters": dict.fromkeys(config.columns.model_dump().values(), str)}
            texts |= {"keep_default_na": False, "na_values": [""]}
            return load_dataset(builder, data_files=str(path), split=config.split, **texts if builder == "csv" else {})
        if not any((path / marker).is_file() for marker in ("state.json", "dataset_dict.json")):
            return load_dataset(str(path) if path.is_dir() else config.path, config.name, split=config.split)
        saved = load_from_disk(str(path))
        splits = saved if isinstance(saved, DatasetDict) else {str(saved.split or config.split): saved}
        if config.split not in splits:
            raise ValueError(f"no split '{config.split}', only {', '.join(map(repr, splits))}")
        return splits[config.split]
    except Exception as error:  # readers raise anything, even StopIteration for a blank file
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise InputError(
            f"data set '{config.path}', split '{config.split}', could not be opened: "
            f"{str(error) or type(error).__name__}{cause}. "
            "Check data.path, data.name and data.split; a data set from the hub needs the network on first use."
        ) from error


def _take_flat(intake: Intake, raws: Mapping[int, dict[str, Any]], columns: Mapping[str, str]) -> None:
    """Add rows that are questions, grouped by text."""
    grouped: dict[str, tuple[str, list[_FlatRow]]] = {}
    for number, raw in raws.items():
        place = f"row {number}"
        row = intake.parse(place, raw, _FlatRow, columns)
        if row is None:
            continue
        first_place, group = grouped.setdefault(row.text, (place, []))
        if not group:
            intake.claim_id(place, raw)
        elif row.id != group[0].id:
            intake.refuse(
                place,
                f"id {row.id!r}, but {first_place} with the same text has id {group[0].id!r}; rows with the same text "
                "are one document: point columns.id at a document's id, or leave it out",
            )
        group.append(row)
    for place, group in grouped.values():
        asked = [QuestionRow(question=row.question, answer=row.answer) for row in group]
        intake.add(place, DocumentRow(id=group[0].id, title=group[0].title, text=group[0].text, questions=asked))


def _value(field: str, cell: Any) -> Any:
    """Return a cell as the row schema wants it: ids as text, one answer per question, a list of questions."""
    match field, cell:
        case "id", int():
            return str(cell)
        case "answer", {"text": answers}:  # SQuAD's
            return _value("answer", answers)
        case "answer", list() | dict():
            return cell[0] if isinstance(cell, list) and cell else None
        case "questions", dict() if len({len(values) for values in cell.values() if isinstance(values, list)}) == 1:
            # A list of structs may come as a struct of lists.
            return _value(field, [dict(zip(cell, values, strict=True)) for values in zip(*cell.values(), strict=True)])
        case "questions", list():
            return [
                {key: _value(key, item[key]) for key in ("question", "answer") if key in item}
                if isinstance(item, dict)
                else item
                for item in cell
            ]
    return cell
