from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.cli import app, main
from pipelines.inbox.store import InboxStore
from pipelines.process import preceptor
from tests.pipelines.inbox.files import document

ROOT = Path(__file__).resolve().parents[3]


def piped(*arguments: str, cwd: Path, stdin: str) -> str:
    """Run the command as a user does, in a process of its own, and return what it prints."""
    found = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "inbox", *arguments],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    return found.stdout


def printed(*arguments: str) -> str:
    """Run the command in this process and return what it prints."""
    outcome = CliRunner().invoke(app, ["inbox", *arguments], catch_exceptions=False, env={"COLUMNS": "200"})
    assert outcome.exit_code == 0, outcome.output
    return outcome.stdout


def test_day_at_the_inbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.md").write_text("# Refunds\n\nTen days.")
    (tmp_path / "b.png").write_bytes(b"\x89PNG")
    first = printed("add", ".", "--effective", "2026-11-01")
    assert "Added 1 document from 2 files." in first
    assert "Skipped 1:\n  b.png: has no supported format" in first
    assert first.endswith(f"Next: {preceptor('inbox', 'list', '--work-dir', '.preceptor')}\n")
    again = printed("add", "a.md")
    assert "Added 0 documents from 1 file. Already in the inbox: 1." in again

    asked = [{"question": "How many?", "answer": "Nine"}]
    row = json.dumps({"text": "Nine days.", "title": "Refunds", "questions": asked})
    options = ("--supersedes", "a.md", "--supersedes", "gone", "--source", "chat")
    added = piped("add", "-", *options, cwd=tmp_path, stdin=row)
    assert "supersedes 'gone', which is not in the inbox" in added
    assert "'a.md', which" not in added
    with InboxStore(tmp_path / ".preceptor" / "inbox.db") as store:
        old, new = store.documents()
        store.quarantine([new.id], "forgot too much", "night-7")

    lines = printed("list").splitlines()
    (of_old,) = (line for line in lines if line.lstrip().startswith(old.id))
    (of_new,) = (line for line in lines if line.lstrip().startswith(new.id) and "chat" in line)
    assert "2026-11-01" in of_old
    assert f"superseded by {new.id}" in of_old
    assert "quarantined: forgot too much (night-7)" in of_new
    assert lines[-1] == f"Next: {preceptor('inbox', 'release', new.id, '--work-dir', '.preceptor')}"

    shown = printed("show", new.id)
    assert "Supersedes:  a.md, gone" in shown
    assert "Nine days.\n" in shown
    assert "- How many? Nine\n" in shown

    released = printed("release", new.id, old.id)
    assert f"{new.id}: back in the queue.\n{old.id}: was not quarantined.\n" in released
    with InboxStore(tmp_path / ".preceptor" / "inbox.db") as store:
        assert store.quarantined() == {}


def failed(*arguments: str, monkeypatch: pytest.MonkeyPatch, cwd: Path) -> int:
    """Run the command in this process and return its exit code."""
    monkeypatch.chdir(cwd)
    monkeypatch.setattr(sys, "argv", ["preceptor", "inbox", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("add", "absent.md"), "cannot be read: No such file"),
        (("add", "a.txt", "--effective", "soon"), "Invalid value for '--effective'"),
        (("add", "a.txt", "--most-characters", "10"), "Invalid value for '--most-characters'"),
        (("list",), "there is none in '.preceptor'"),
        (("show", "doc-1"), "there is none in '.preceptor'"),
    ],
)
def test_misuse_ends_with_2_and_makes_no_store(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "a.txt").write_text("Text.")
    assert failed(*arguments, monkeypatch=monkeypatch, cwd=tmp_path) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / ".preceptor").exists()


def test_unknown_id_ends_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with InboxStore(tmp_path / ".preceptor" / "inbox.db") as store:
        store.add([document()])
    assert failed("release", "doc-1", monkeypatch=monkeypatch, cwd=tmp_path) == 2
    assert "'doc-1'" in capsys.readouterr().err


def test_store_that_cannot_be_read_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".preceptor").mkdir()
    (tmp_path / ".preceptor" / "inbox.db").write_text("no database" * 100)
    assert failed("list", monkeypatch=monkeypatch, cwd=tmp_path) == 1
    assert capsys.readouterr().err.startswith("inbox ")
