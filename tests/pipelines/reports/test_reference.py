"""docs/configuration.md is what the command prints, and every setting says its unit and range."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

from typer.testing import CliRunner

from pipelines.cli import app, schemas
from pipelines.settings import TAGS, sections, settings

PAGE = Path(__file__).resolve().parents[3] / "docs" / "configuration.md"
_RANGE = re.compile(r"[\[(]-?\d|\b(at least|above) -?\d", re.IGNORECASE)


def is_number(annotation: Any) -> bool:
    return annotation in (int, float) or any(map(is_number, get_args(annotation)))


def test_the_page_is_what_the_command_prints() -> None:
    printed = CliRunner().invoke(app, ["config", "reference"]).stdout
    assert printed == PAGE.read_text(encoding="utf-8"), "run: preceptor config reference > docs/configuration.md"


def test_every_field_of_every_section_is_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8").partition("\n## ")[2].split("\n## ")
    for (model, keys), text in zip(sections(schemas()).items(), page, strict=True):
        assert all(f"`{key}`" in text.partition("\n")[0] for key in keys)
        assert re.findall(r"^\| `(\w+)`", text, re.MULTILINE) == [n for n in model.model_fields if n not in TAGS]


def test_there_are_few_settings_and_each_says_what_it_means_and_every_number_its_range() -> None:
    assert len(settings(schemas())) <= 160
    lacking = [
        ".".join(place)
        for place, (field, meaning) in settings(schemas()).items()
        if len(meaning) <= 8 or (is_number(field.annotation) and not _RANGE.search(meaning))
    ]
    assert lacking == []
