from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.cli import app, main
from pipelines.inbox.store import InboxStore
from pipelines.process import preceptor

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
    (of_old,) = (i for i, line in enumerate(lines) if line.startswith(old.id))
    (of_new,) = (i for i, line in enumerate(lines) if line.startswith(new.id) and "chat" in line)
    assert "2026-11-01" in lines[of_old]
    assert "waiting" in lines[of_old + 1]  # a quarantined document replaces nothing
    assert "quarantined: in night-7: forgot too much" in lines[of_new + 1]
    assert lines[-1] == f"Next: {preceptor('inbox', 'release', new.id, '--work-dir', '.preceptor')}"

    shown = printed("show", new.id)
    assert "Supersedes:  a.md, gone" in shown
    assert "Nine days.\n" in shown
    assert "- How many? Nine\n" in shown

    released = printed("release", new.id, old.id)
    assert f"{new.id}: back in the queue.\n{old.id}: was not quarantined.\n" in released
    with InboxStore(tmp_path / ".preceptor" / "inbox.db") as store:
        assert store.quarantined() == {}


def test_each_path_has_its_result_and_equal_refusals_share_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    for name in ("a.png", "b.png", "c.png", "d.png", "README", "x.gz"):
        (tmp_path / "notes" / name).write_bytes(b"1")
    (tmp_path / "notes" / "e\x1b[31m.md").write_text("# \x1b]0;title\x07\n\nText\x1b[2J.")
    added = printed("add", "notes", "gone", "no/where/", "notes/README", "notes")
    assert "notes: 1 document, 6 skipped" in added
    assert "gone: 0 documents, 1 skipped" in added
    assert "\n  4 .png: notes/a.png, notes/b.png, notes/c.png and 1 more: has no supported format" in added
    assert "\n  2 without suffix: gone, no/where: cannot be read: No such file" in added
    assert added.count("has no supported format") == 3
    assert printed("add", "notes", "--verbose").count("has no supported format") == 6
    (row,) = json.loads(printed("list", "--json", "--source", "notes/*"))
    shown = added + printed("list") + printed("show", row["id"])
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "\\x1b[31m" in shown
    assert failed("add", "gone", "notes/README", monkeypatch=monkeypatch, cwd=tmp_path) == 2
    assert "gone: cannot be read" in capsys.readouterr().err


def test_changed_file_is_one_document_until_both_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to("sub")
    file = tmp_path / "sub" / "vac ation.md"
    file.write_text("27 days.")
    printed("add", "sub")
    file.write_text("30 days.")
    changed = printed("add", str(file), "link", "--work-dir", ".preceptor")
    assert "Added 1 document from 2 files." in changed
    with InboxStore(tmp_path / ".preceptor" / "inbox.db") as store:
        old, new = store.documents()
        assert (old.source, new.source) == ("sub/vac ation.md", "sub/vac ation.md")
        assert store.superseded() == {old.id: new.id}
    listed = json.loads(printed("list", "--json", "--status", "superseded"))
    assert [(each["id"], each["reason"]) for each in listed] == [(old.id, f"by {new.id}")]
    monkeypatch.chdir(tmp_path / "sub")
    assert "Changed" not in printed("add", ".", "--work-dir", "../.preceptor")
    monkeypatch.chdir(tmp_path)
    (undo,) = (line.partition("preceptor inbox ")[2] for line in changed.splitlines() if "keep both" in line)
    assert f"In force again: {old.id}." in printed(*shlex.split(undo))
    file.write_text("31 days.")
    assert f"supersedes {new.id}." in printed("add", "sub")
    assert len(json.loads(printed("list", "--json", "--status", "waiting"))) == 2
    assert len(printed("list", "--limit", "1").splitlines()) == 1 + 1 + 2 + 1


def test_rows_of_a_file_replace_each_other_by_id_or_title(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"id": "k", "text": "One."}, {"title": "T", "text": "Two."}, {"text": "Three."}]

    def delivered(*given: dict[str, str]) -> list[str]:
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, given)))
        printed("add", "a.jsonl")
        with InboxStore(tmp_path / ".preceptor" / "inbox.db") as store:
            superseded = store.superseded()
            return [each.text for each in store.documents() if each.id not in superseded]

    assert delivered(*rows) == ["One.", "Two.", "Three."]
    assert delivered(rows[0] | {"text": "1."}, {"text": "Four."}) == ["Two.", "Three.", "1.", "Four."]
    assert delivered(rows[0], rows[1] | {"text": "2."}) == ["One.", "Three.", "Four.", "2."]


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
        (("add", "gone", "no/where/"), "cannot be read: No such file"),
        (("add", "a.txt", "--effective", "soon"), "Invalid value for '--effective'"),
        (("add", "a.txt", "--most-characters", "10"), "Invalid value for '--most-characters'"),
        (("list",), "there is none in '.preceptor'"),
        (("show", "doc-1"), "there is none in '.preceptor'"),
        (("remove", "doc-1", "--because", "x"), "there is none in '.preceptor'"),
        (("remove", "doc-1", "--because", " "), "is blank"),
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


def test_store_that_cannot_be_read_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".preceptor").mkdir()
    (tmp_path / ".preceptor" / "inbox.db").write_text("no database" * 100)
    assert failed("list", monkeypatch=monkeypatch, cwd=tmp_path) == 1
    assert capsys.readouterr().err.startswith("inbox ")
