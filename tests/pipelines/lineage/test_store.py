"""Opening the store, its errors, and what runs are tagged with."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from evaluation.common.data import digest_files
from evaluation.common.errors import LineageError
from pipelines.inbox.store import INBOX_FILE, InboxStore
from pipelines.lineage.registry import Registry
from pipelines.lineage.store import flatten_params, follow_move, git_tags, lineage_errors, open_store
from pipelines.settings import TrackingConfig
from student.adapters import CONFIG_FILE, WEIGHTS_FILE, load_adapter, save_adapter
from tests.pipelines.adapt_student.factories import document
from tests.pipelines.conftest import open_lineage
from tests.pipelines.factories import make_adapter, make_task


def register(work_dir: Path, value: float, place: Path) -> int:
    """Register a student, as a night does; its files are made in `place`."""
    lineage, adapter = open_lineage(work_dir, key=str(value), student={"model": "micro-student"}), make_adapter(value)
    lineage.log_documents("train", [make_task()])
    directory = save_adapter(adapter, place / str(value))
    return lineage.registry.register("student", directory, digest=adapter.digest, run_id=lineage.run_id, tags={})


def snapshot(directory: Path) -> dict[str, tuple[int, int, str]]:
    """Return inode, time of the last change and content of every file but locks."""
    return {
        str(path.relative_to(directory)): (path.stat().st_ino, path.stat().st_mtime_ns, digest_files(path.parent))
        for path in directory.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


def mentions(work_dir: Path, text: str) -> int:
    with closing(sqlite3.connect(work_dir / "mlflow.db")) as db:
        return sum(text in line for line in db.iterdump())


@pytest.mark.parametrize("name", ["plain", "with %20, # and é?"])
def test_moved_store_works_and_a_copy_leaves_the_original_alone(work_dir: Path, tmp_path: Path, name: str) -> None:
    register(work_dir, 0.5, tmp_path)
    Registry.open(TrackingConfig(), work_dir).promote("student", 1, report="passed")
    assert mentions(work_dir, work_dir.as_uri()) == 5
    moved, copy = tmp_path / name, tmp_path / f"copy {name}"
    work_dir.rename(moved)
    files = Registry.open(TrackingConfig(), moved).fetch("student", "champion", tmp_path / "fetched")
    assert load_adapter(files).digest == make_adapter(0.5).digest
    assert (mentions(moved, work_dir.as_uri()), mentions(moved, f"{moved.as_uri()}/artifacts")) == (0, 5)
    before = snapshot(moved)
    shutil.copytree(moved, copy)
    assert register(copy, 0.25, tmp_path) == 2
    Registry.open(TrackingConfig(), copy).promote("student", 2, report="passed, too")
    assert snapshot(moved) == before
    assert mentions(copy, moved.as_uri() + "/") == 0
    shutil.rmtree(moved)
    for version in (1, 2):
        Registry.open(TrackingConfig(), copy).fetch("student", version, tmp_path / f"fetched-{version}")
    before = snapshot(copy)
    follow_move(copy / "mlflow.db")
    assert snapshot(copy) == before, "a store at its place is only read"


def test_store_that_lost_its_content_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"")
    assert Registry.open(TrackingConfig(), tmp_path).history("student") == []


def test_error_says_what_failed_and_hides_passwords() -> None:
    from mlflow.exceptions import MlflowException

    place = "postgresql://user:secret@host/lineage"
    with pytest.raises(LineageError) as caught, lineage_errors("log 'round-010'", place):
        raise MlflowException("disk full\nand a long trace")
    message = str(caught.value)
    assert "could not log 'round-010' in the store 'postgresql://***@host/lineage': disk full." in message
    assert "secret" not in message
    assert "long trace" not in message


def test_open_store_in_a_place_that_is_a_file_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(LineageError, match="could not open the tracking store"):
        open_store(TrackingConfig(), tmp_path / "taken")


def test_flatten_params_names_are_dotted_and_none_is_left_out() -> None:
    content = {"a": {"b": 1, "c": {"d": "x"}}, "flag": True, "none": None, "list": [1, "é"], "rate": 0.5}
    assert flatten_params(content) == {"a.b": 1, "a.c.d": "x", "flag": "true", "list": '[1, "é"]', "rate": 0.5}


def test_git_tags_tell_commit_and_changes(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # hooks set GIT_DIR
        return subprocess.run(command, check=True, capture_output=True, text=True, env=own).stdout.strip()

    assert git_tags(tmp_path)["preceptor.git_sha"] == "unknown"
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "a.py").write_text("1\n")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--no-verify", "-m", "first")
    assert git_tags(tmp_path) == {"preceptor.git_sha": git("rev-parse", "HEAD"), "preceptor.git_dirty": "false"}
    (tmp_path / "notes.txt").write_text("not code")
    assert git_tags(tmp_path)["preceptor.git_dirty"] == "false"
    (tmp_path / "pipelines" / "a.py").write_text("2\n")
    assert git_tags(tmp_path)["preceptor.git_dirty"] == "true"
    assert git_tags(tmp_path / "pipelines")["preceptor.git_sha"] == "unknown"  # another project's checkout around it


ODD = "w?x=1&y=%41 %20#z; 'q' \"é\" 日本"


def test_odd_characters_of_a_directory_leave_nothing_beside_it(tmp_path: Path) -> None:
    work_dir, moved = tmp_path / ODD, tmp_path / "moved %3F?#&"
    with InboxStore(work_dir / INBOX_FILE) as inbox:
        inbox.add([document("Zyx")])
    version, digest = register(work_dir, 0.5, tmp_path / "made"), make_adapter(0.5).digest
    for place in (work_dir, moved):
        registry = Registry.open(TrackingConfig(), place)
        assert load_adapter(registry.fetch("student", version, place / "copy")).digest == digest
        assert {each.name for each in tmp_path.iterdir()} == {place.name, "made"}
        if place == work_dir:
            shutil.rmtree(place / "copy")
            place.rename(moved)


@pytest.mark.parametrize("damaged", [WEIGHTS_FILE, CONFIG_FILE, "gone"])
def test_damaged_copy_of_a_version_is_copied_again(work_dir: Path, tmp_path: Path, damaged: str) -> None:
    version, registry = register(work_dir, 0.5, tmp_path), Registry.open(TrackingConfig(), work_dir)
    copy = registry.fetch("student", version, tmp_path / "copy")
    whole = digest_files(copy)
    if damaged == "gone":
        (copy / CONFIG_FILE).unlink()
    else:
        content = (copy / damaged).read_bytes()
        (copy / damaged).write_bytes(content[:-3] + bytes([content[-3] ^ 4]) + content[-2:])
    assert registry.fetch("student", version, copy) == copy
    assert digest_files(copy) == whole
