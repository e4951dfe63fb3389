from __future__ import annotations

import os
import time
import zipfile
from pathlib import Path

import pytest

from pipelines.inbox.intake import Intake
from pipelines.inbox.worker import ExceededError, ReadingLimits, Worker
from tests.pipelines.inbox.files import word_file

WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"


def word(path: Path, body: str) -> None:
    """Write a DOCX file with another body."""
    path.write_bytes(word_file())
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["word/document.xml"] = f'<w:document xmlns:w="{WORD}"><w:body>{body}</w:body></w:document>'.encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    ("limit", "name", "content"),
    [
        ({"seconds": 3.0}, "headings.md", b"# h\n" * 300_000),
        ({"seconds": 3.0}, "nested.html", b"<div>" * 300_000),
        ({"memory_mb": 100}, "many.html", b"<p>" * 2_000_000),
        ({"file_mb": 1}, "large.txt", b"word " * 200_001),
        ({"documents": 20}, "rows.jsonl", b'{"text": "One."}\n' * 21),
        ({"documents": 2}, "long.txt", b"A sentence. " * 1_000),
    ],
)
def test_file_that_exceeds_a_limit_is_refused_with_its_name_and_the_others_are_read(
    tmp_path: Path, limit: dict[str, float], name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "zz.md").write_text("Nine berths.")
    found = Intake(limits=ReadingLimits.model_validate(limit)).read(tmp_path)
    assert [each.text for each in found.documents] == ["Nine berths."]
    ((place, reason),) = found.skipped.items()
    assert (Path(place).name, f"limits.{next(iter(limit))}" in reason) == (name, True)


@pytest.mark.parametrize(
    ("limit", "body"),
    [
        ({"memory_mb": 200}, "<w:p/>" * 9_000_000),
        (
            {"seconds": 3.0, "memory_mb": 500},
            '<w:tbl><w:tr><w:tc><w:tcPr><w:gridSpan w:val="999999999"/></w:tcPr><w:p/></w:tc></w:tr></w:tbl>',
        ),
    ],
)
def test_small_word_file_that_unpacks_to_much_is_refused_in_time(
    tmp_path: Path, limit: dict[str, float], body: str
) -> None:
    word(tmp_path / "a.docx", body)
    found = Intake(limits=ReadingLimits.model_validate(limit)).read(tmp_path / "a.docx")
    assert found.documents == []
    assert len(found.skipped) == 1


def pid(_: object = None) -> int:
    return os.getpid()


def dies() -> None:
    os.abort()


def test_child_is_reused_replaced_and_ended() -> None:
    worker = Worker(ReadingLimits(seconds=2.0))
    first = worker.call(pid)
    assert first == worker.call(pid, b"x" * 10**7) != os.getpid()
    for function, arguments in ((time.sleep, (60,)), (dies, ()), (int, ("x",))):
        with pytest.raises(ExceededError):
            worker.call(function, *arguments)
    second = worker.call(pid)
    assert second != first
    del worker
    assert not {first, second} & {int(name) for name in os.listdir("/proc") if name.isdigit()}


def test_child_has_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert Worker(ReadingLimits()).call(os.getenv, "OPENAI_API_KEY") is None
