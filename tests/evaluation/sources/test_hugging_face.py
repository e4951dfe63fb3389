from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from evaluation.sources.files import ColumnMapping, HuggingFaceData, load_tasks
from tests.evaluation.factories import ASKED, mistakes, pairs, paragraph, refusal, row, squad, write_squad

FLAT = ColumnMapping(text="context", title="title", question="question", answer="answers")
LISTED = ColumnMapping(questions="questions")
PLAIN = ColumnMapping(question="question", answer="answer")


@pytest.fixture(autouse=True)
def _no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")


def hub_row(name: str, title: str, context: str, question: str, *answers: str) -> dict[str, Any]:
    """Return a row with the columns of the hub's `squad`: one question a row, ids are the questions'."""
    answered = {"text": list(answers), "answer_start": list(range(len(answers)))}
    return {"id": name, "title": title, "context": context, "question": question, "answers": answered}


HUB_ROWS = [
    hub_row("q1", "Ada", "One.", "Who?", "Ada"),
    hub_row("q2", "Bob", "Two.", "Why?", "x", "y"),
    hub_row("q3", "Ada", "One.", "When?", "1843"),
]


def save(path: Path, rows: list[dict[str, Any]], **settings: Any) -> HuggingFaceData:
    import datasets

    datasets.Dataset.from_list(rows).save_to_disk(str(path))
    return HuggingFaceData(path=str(path), **settings)


def test_hugging_face_flat_rows_with_the_same_text_are_one_document_as_in_the_squad_file(tmp_path: Path) -> None:
    config = save(tmp_path / "saved", HUB_ROWS, columns=FLAT)
    ada, bob = load_tasks(config)
    assert (ada.document.title, ada.document.text) == ("Ada", "One.")
    assert pairs(ada) == [("Who?", "Ada"), ("When?", "1843")]
    assert pairs(bob) == [("Why?", "x")]
    assert ada.id == f"Ada-{ada.document.digest[:12]}"
    assert bob.document.source == f"{config.path}[train]: row 1"
    value = squad(paragraph("One.", ("Who?", ["Ada"]), ("When?", ["1843"])))
    value["data"].append({"title": "Bob", "paragraphs": [paragraph("Two.", ("Why?", ["x", "y"]))]})
    from_file = load_tasks(write_squad(tmp_path / "d.json", value))
    assert [(task.id, task.digest) for task in from_file] == [(ada.id, ada.digest), (bob.id, bob.digest)]


@pytest.mark.parametrize("suffix", [".parquet", ".json", ".jsonl", ".jsonl.gz", ".csv"])
def test_hugging_face_data_file_is_read_by_its_suffix(tmp_path: Path, suffix: str) -> None:
    import datasets

    rows = [{"text": f"Text {i // 2}.", "question": f"Q{i}?", "answer": f"a{i}"} for i in range(4)]
    dataset = datasets.Dataset.from_list(rows)
    path = tmp_path / f"data{suffix}"
    if suffix == ".parquet":
        dataset.to_parquet(str(path))
    elif suffix == ".csv":
        dataset.to_csv(str(path))
    else:
        dataset.to_json(str(path), compression="gzip" if suffix.endswith("gz") else None)
    tasks = load_tasks(HuggingFaceData(path=str(path), columns=PLAIN))
    assert [pairs(task) for task in tasks] == [[("Q0?", "a0"), ("Q1?", "a1")], [("Q2?", "a2"), ("Q3?", "a3")]]


def test_hugging_face_directory_of_data_files_has_splits_by_name(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"text": split, "questions": ASKED}))
    (task,) = load_tasks(HuggingFaceData(path=str(tmp_path), split="test", columns=LISTED))
    assert task.document.text == "test"


def test_hugging_face_questions_column_gives_one_document_a_row(tmp_path: Path) -> None:
    rows = [
        {"doc": 1, "body": "One.", "qa": [{"question": "Q1?", "answer": "a1", "page": 3}, *ASKED]},
        {"doc": 2, "body": "One.", "qa": ASKED},
    ]
    columns = ColumnMapping(text="body", id="doc", questions="qa")
    tasks = load_tasks(save(tmp_path / "saved", rows, columns=columns))
    assert [task.id for task in tasks] == ["1", "2"]
    assert [pairs(task) for task in tasks] == [[("Q1?", "a1"), ("Who?", "Ada")], [("Who?", "Ada")]]


def test_hugging_face_questions_as_a_struct_of_lists_are_the_same(tmp_path: Path) -> None:
    columns = ColumnMapping(questions="qa")
    listed = {"text": "One.", "qa": [{"question": "Q1?", "answer": "a1"}, *ASKED]}
    struct = {"text": "One.", "qa": {"question": ["Q1?", "Who?"], "answer": ["a1", "Ada"]}}
    first = load_tasks(save(tmp_path / "listed", [listed], columns=columns))
    second = load_tasks(save(tmp_path / "struct", [struct], columns=columns))
    assert [task.digest for task in first] == [task.digest for task in second]
    uneven = {"text": "One.", "qa": {"question": ["Q1?"], "answer": ["a1", "Ada"]}}
    assert "row 0: qa must be a valid list" in refusal(save(tmp_path / "uneven", [uneven], columns=columns))


def test_hugging_face_saved_splits_are_told_apart(tmp_path: Path) -> None:
    import datasets

    splits = {name: datasets.Dataset.from_list([row(text=name)]) for name in ("train", "validation")}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    config = HuggingFaceData(path=str(tmp_path / "saved"), split="validation", columns=LISTED)
    assert load_tasks(config)[0].document.text == "validation"
    missing = config.model_copy(update={"split": "test"})
    assert "no split 'test', only 'train', 'validation'" in refusal(missing)


def test_hugging_face_sample_counts_documents_not_rows(tmp_path: Path) -> None:
    rows = [{"text": f"Text {i % 10}.", "question": f"Q{i}?", "answer": "a"} for i in range(30)]
    config = save(tmp_path / "saved", rows, columns=PLAIN, max_documents=4)
    tasks = load_tasks(config)
    assert [len(task.questions) for task in tasks] == [3] * 4
    assert tasks == load_tasks(config)


def test_hugging_face_missing_columns_are_named_with_those_there_are(tmp_path: Path) -> None:
    columns = ColumnMapping(text="body", question="question", answer="answer")
    message = refusal(save(tmp_path / "saved", HUB_ROWS, columns=columns))
    assert "no column 'body', 'answer'; the data set has 'id', 'title', 'context', 'question', 'answers'" in message


def test_hugging_face_flat_mistakes_are_listed_by_row_and_column(tmp_path: Path) -> None:
    bad: list[dict[str, Any]] = [
        {"context": "", "question": "Q?", "answers": {"text": ["a"]}},
        {"context": None, "question": "Q?", "answers": {"text": ["a"]}},
        {"context": "C.", "question": " ", "answers": {"text": ["a"]}},
        {"context": "C.", "question": "Q?", "answers": {"text": []}},
        {"context": "C.", "question": "Q?", "answers": None},
        {"context": "C\0", "question": None, "answers": {"text": [""]}},
    ]
    config = save(tmp_path / "saved", [HUB_ROWS[0], *({"title": "T", "id": "x"} | b for b in bad)], columns=FLAT)
    assert mistakes(config, "[train]") == [
        "row 1: context is empty",
        "row 2: context must be a valid string",
        "row 3: question is only white space",
        "row 5: answers must be a valid string",
        "row 6: question must be a valid string; answers is empty; context holds a NUL character (U+0000)",
    ]


def test_hugging_face_nested_mistakes_are_listed_by_row_and_item(tmp_path: Path) -> None:
    rows = [
        row(id="x"),
        row(id="x"),
        row(id="y", questions=[]),
        row(id="z", questions=None),
        row(id="w", questions=[*ASKED, {"question": "Q?", "answer": None}]),
        row(id=None, text=" "),
    ]
    config = save(tmp_path / "saved", rows, columns=ColumnMapping(id="id", questions="questions"))
    assert mistakes(config, "[train]") == [
        "row 1: id 'x' was already given at row 0",
        "row 2: questions must have at least 1 item after validation, not 0",
        "row 3: questions must be a valid list",
        "row 4: questions[1].answer must be a valid string",
        "row 5: text is only white space",
    ]


def test_hugging_face_question_ids_used_as_document_ids_are_refused(tmp_path: Path) -> None:
    config = save(tmp_path / "saved", HUB_ROWS, columns=FLAT.model_copy(update={"id": "id"}))
    assert "row 2: id 'q3', but row 0 with the same text has id 'q1'" in refusal(config)
    same = [row | {"id": "one"} for row in HUB_ROWS]
    config = save(tmp_path / "same", same, columns=FLAT.model_copy(update={"id": "id"}))
    assert "row 1: id 'one' was already given at row 0" in refusal(config)


def test_hugging_face_source_that_does_not_open_is_refused(tmp_path: Path) -> None:
    def message(path: Path | str, **changes: Any) -> str:
        return refusal(HuggingFaceData(path=str(path), columns=LISTED, **changes))

    (tmp_path / "bad.jsonl").write_text('{"text": "T."\n{]')
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and nothing more")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "blank.jsonl").write_text("\n \n")
    (tmp_path / "good.jsonl").write_text(json.dumps(row()))
    (tmp_path / "notes.md").write_text("text")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{")
    (tmp_path / "nothing").mkdir()
    for name in ("bad.jsonl", "bad.parquet", "empty.jsonl", "blank.jsonl", "saved", "nothing"):
        assert re.search(rf"data set '.*{name}', split 'train', could not be opened", message(tmp_path / name))
    assert 'Unknown split "validation"' in message(tmp_path / "good.jsonl", split="validation")
    assert "must end in one of .json" in message(tmp_path / "notes.md")
    for name in (str(tmp_path / "missing"), "nobody/nothing"):
        assert f"'{name}', split 'train', could not be opened" in message(name)


def test_csv_cells_are_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("text,id,q,a\nT.,,Q?,1.50\nU.,007,R?,9\nV.,v,S?,true\nNone,w,NA,N/A\n", encoding="utf-8")
    tasks = load_tasks(HuggingFaceData(path=str(path), columns=ColumnMapping(id="id", question="q", answer="a")))
    found = [(task.document.text, *pairs(task)[0]) for task in tasks]
    assert found == [("T.", "Q?", "1.50"), ("U.", "R?", "9"), ("V.", "S?", "true"), ("None", "NA", "N/A")]
    assert tasks[1].id == "007"
