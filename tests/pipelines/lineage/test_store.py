"""Opening the store, its errors, and what runs are tagged with."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from evaluation.common.errors import LineageError
from pipelines.lineage.store import flatten_params, git_tags, lineage_errors, open_store
from pipelines.settings import TrackingConfig


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
