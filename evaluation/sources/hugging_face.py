"""Documents from a data set of the `datasets` library: from the hub, saved to disk, or local data files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evaluation.common.errors import InputError
from evaluation.sources.config import ColumnMapping, HuggingFaceData
from evaluation.sources.rows import DocumentRow, Intake, Location, check_file, sample_documents
from evaluation.tasks import KnowledgeTask

_BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".arrow": "arrow"}
_COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
_QUESTION = ("question", "answer")


def load_hugging_face(config: HuggingFaceData) -> tuple[KnowledgeTask, ...]:
    """Return the tasks of a data set, sampled if configured.

    Without a `questions` column, rows with the same text are one document, with the first row's title.

    Raises:
        InputError: The data set cannot be opened, lacks the split or a column, or has bad rows; the message lists all.
    """
    dataset, columns = _open(config), config.columns
    names = list(dict.fromkeys(name for name in columns.model_dump().values() if name is not None))
    source = f"{config.path}[{config.split}]"
    if missing := [name for name in names if name not in dataset.column_names]:
        raise InputError(
            f"{source}: no column {', '.join(map(repr, missing))}; the data set has "
            f"{', '.join(map(repr, dataset.column_names))}. Correct data.columns in the config."
        )
    intake, rows = Intake(source), dataset.select_columns(names)
    if columns.questions is None:
        _take_flat(intake, rows, columns)
    else:
        _take_nested(intake, rows, columns, columns.questions)
    return sample_documents(intake.tasks(), config)


def _open(config: HuggingFaceData) -> Any:
    """Return the split as a `datasets.Dataset`."""
    path = Path(config.path).expanduser()
    # Only unambiguous local paths are checked; anything else may be a hub id.
    local = config.path.startswith(("/", ".", "~")) or config.path.count("/") > 1 or _builder(path) is not None
    if path.is_file():
        check_file(path)
    elif local and not path.exists():
        raise InputError(
            f"data set '{config.path}' does not exist (current directory: '{Path.cwd()}'). Correct data.path in the "
            "config: a local file or directory, or a hub id such as 'rajpurkar/squad'."
        )
    try:
        return _open_any(config, path)
    except InputError:
        raise
    except Exception as error:  # readers raise anything, even StopIteration for a blank file
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise InputError(
            f"data set '{config.path}', split '{config.split}', could not be opened: "
            f"{str(error) or type(error).__name__}{cause}. "
            "Check data.path, data.name and data.split; a data set from the hub needs the network on first use."
        ) from error


def _builder(path: Path) -> str | None:
    """Return the library's reader for a data file; None if the suffix is unknown."""
    return _BUILDERS.get((path.with_suffix("") if path.suffix in _COMPRESSIONS else path).suffix)


def _open_any(config: HuggingFaceData, path: Path) -> Any:
    from datasets import DatasetDict, load_dataset, load_from_disk  # takes a second

    if path.is_file():
        builder = _builder(path)
        if builder is None:
            raise InputError(
                f"data file '{config.path}': its name must end in one of {', '.join(_BUILDERS)} "
                f"(then {', '.join(_COMPRESSIONS)} where compressed). Rename it, or convert it to one of these."
            )
        return load_dataset(builder, data_files=str(path), split=config.split)
    if not any((path / marker).is_file() for marker in ("state.json", "dataset_dict.json")):
        return load_dataset(str(path) if path.is_dir() else config.path, config.name, split=config.split)
    saved = load_from_disk(str(path))
    splits = saved if isinstance(saved, DatasetDict) else {str(saved.split or config.split): saved}
    if config.split not in splits:
        raise InputError(
            f"data set '{config.path}' has no split '{config.split}', only {', '.join(map(repr, splits))}. "
            "Correct data.split in the config."
        )
    return splits[config.split]


def _take_nested(intake: Intake, rows: Any, columns: ColumnMapping, questions: str) -> None:
    """Add rows that are documents."""
    for number, cells in enumerate(rows):
        place, raw = f"row {number}", _shared_values(cells, columns)
        intake.claim_id(place, raw.get("id"))
        raw["questions"] = asked = _asked(cells[questions])
        names = _shared_names(columns) | {("questions",): f"column {questions!r}"}
        for i in range(len(asked) if isinstance(asked, list) else 0):
            for key in ("question", "answer"):
                names["questions", i, key] = f"column {questions!r}, item {i}: {key!r}"
        intake.add(place, intake.parse(place, raw, DocumentRow, names))


def _take_flat(intake: Intake, rows: Any, columns: ColumnMapping) -> None:
    """Add rows that are questions, grouped by text."""
    names = _shared_names(columns) | {
        ("questions", 0, "question"): f"column {columns.question!r}",
        ("questions", 0, "answer"): f"column {columns.answer!r}",
    }
    grouped: dict[str, tuple[str, list[DocumentRow]]] = {}
    for number, cells in enumerate(rows):
        place, raw = f"row {number}", _shared_values(cells, columns)
        raw["questions"] = [{"question": cells[columns.question], "answer": _first_answer(cells[columns.answer])}]
        row = intake.parse(place, raw, DocumentRow, names)
        if row is None:
            continue
        first_place, group = grouped.setdefault(row.text, (place, []))
        if not group:
            intake.claim_id(place, row.id)
        elif row.id != group[0].id:
            intake.refuse(
                place,
                f"id {row.id!r}, but {first_place} with the same text has id {group[0].id!r}; rows with the same text "
                "are one document: point columns.id at a document's id, or leave it out",
            )
        group.append(row)
    for place, group in grouped.values():
        questions = [row.questions[0] for row in group]
        intake.add(place, group[0].model_copy(update={"questions": questions}))


def _shared_values(cells: dict[str, Any], columns: ColumnMapping) -> dict[str, Any]:
    """Return a row's id, title and text by field name; integer ids become strings."""
    raw = {"text": cells[columns.text]}
    if columns.title is not None:
        raw["title"] = cells[columns.title]
    if columns.id is not None:
        given = cells[columns.id]
        raw["id"] = str(given) if isinstance(given, int) else given
    return raw


def _shared_names(columns: ColumnMapping) -> dict[Location, str]:
    """Return the column names of text, title and id for messages."""
    ours = {"text": columns.text, "title": columns.title, "id": columns.id}
    return {(name,): f"column {column!r}" for name, column in ours.items() if column is not None}


def _first_answer(cell: Any) -> Any:
    """Return the gold answer of a cell: itself, the first of a list, or that of SQuAD's `{"text": [...]}`; or None."""
    if isinstance(cell, dict):
        return _first_answer(cell.get("text"))
    if isinstance(cell, list):
        return _first_answer(cell[0]) if cell else None
    return cell


def _asked(cell: Any) -> Any:
    """Return a cell's questions with gold answers; a list of structs may come as a struct of lists."""
    if isinstance(cell, dict) and all(isinstance(values, list) for values in cell.values()):
        if len({len(values) for values in cell.values()}) != 1:
            return cell
        cell = [dict(zip(cell, values, strict=True)) for values in zip(*cell.values(), strict=True)]
    if not isinstance(cell, list):
        return cell
    return [
        {key: _first_answer(value) if key == "answer" else value for key, value in item.items() if key in _QUESTION}
        if isinstance(item, dict)
        else item
        for item in cell
    ]
