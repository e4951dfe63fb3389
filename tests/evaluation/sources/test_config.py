from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from evaluation.domains import DataConfig
from evaluation.sources.config import HuggingFaceData, JsonLinesData, SquadData
from tests.evaluation.factories import row, write_lines

ADAPTER: TypeAdapter[DataConfig] = TypeAdapter(DataConfig)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"type": "jsonl", "path": "d.jsonl"}, JsonLinesData),
        ({"type": "squad", "path": "d.json", "max_documents": 200}, SquadData),
        (
            {"type": "huggingface", "path": "org/name", "columns": {"question": "q", "answer": "a"}, "split_seed": 3},
            HuggingFaceData,
        ),
    ],
)
def test_data_config_type_chooses_the_variant(section: dict[str, Any], expected: type) -> None:
    config = ADAPTER.validate_python(section)
    assert type(config) is expected
    assert ADAPTER.validate_json(ADAPTER.dump_json(config)) == config
    assert ADAPTER.validate_python(config.model_dump()) == config


@pytest.mark.parametrize(
    "section",
    [
        {"path": "d.jsonl"},
        {"type": "csv", "path": "d"},
        {"type": "jsonl"},
        {"type": "jsonl", "path": "d", "max_documents": 3},
        {"type": "jsonl", "path": "d", "test_documents": 0},
        {"type": "jsonl", "path": "d", "development_documents": -1},
        {"type": "squad", "path": "d", "max_documents": 0},
        {"type": "huggingface", "path": "p"},
        {"type": "huggingface", "path": "p", "columns": {"question": "q"}},
        {"type": "huggingface", "path": "p", "columns": {"answer": "a"}},
        {"type": "huggingface", "path": "p", "columns": {"text": "t"}},
        {"type": "huggingface", "path": "p", "columns": {"question": "q", "answer": "a", "questions": "qs"}},
        {"type": "huggingface", "path": "p", "columns": {"question": "q", "questions": "qs"}},
    ],
)
def test_data_config_refuses(section: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(section)


def test_data_config_and_loaders_of_files_import_nothing_heavy(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", row()).path
    code = (
        "import sys\n"
        "from evaluation.sources.config import JsonLinesData\n"
        "from evaluation.sources.files import load_tasks\n"
        f"config = JsonLinesData(path={str(path)!r})\n"
        "load_tasks(config)\n"
        "print(sorted({'torch', 'datasets', 'transformers', 'pandas', 'pyarrow', 'numpy'} & set(sys.modules)))\n"
    )
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
