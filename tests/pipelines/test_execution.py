"""Content keys and the store of updates."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pipelines import execution
from pipelines.execution import RESULT_FOLDERS, UpdateStore, code_digest, content_key
from pipelines.process import prepare_process
from tests.pipelines.factories import make_replicate, small_config


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a copy of the source tree that content keys are made from."""
    root = execution.PACKAGE_ROOT
    for package in ("evaluation", "teacher", "student", "pipelines"):
        shutil.copytree(root / package, tmp_path / package, ignore=shutil.ignore_patterns("models", "__pycache__"))
    monkeypatch.setattr(execution, "PACKAGE_ROOT", tmp_path)
    code_digest.cache_clear()
    yield tmp_path
    code_digest.cache_clear()


def changed(path: Path) -> str:
    """Return the code digest after a change of a file."""
    path.write_text(path.read_text(encoding="utf-8") + "\n# another line\n", encoding="utf-8")
    code_digest.cache_clear()
    return code_digest()


def test_changes_of_reports_command_line_and_flows_leave_half_finished_runs_resumable(tree: Path) -> None:
    before = code_digest()
    for name in ("reports/plots.py", "reports/console.py", "cli.py", "train_teacher/flow.py", "lineage/tables.py"):
        assert changed(tree / "pipelines" / name) == before, name


@pytest.mark.parametrize("name", ["evaluation/exact_match.py", "student/updates.py", "pipelines/loop/update.py"])
def test_changes_of_folders_that_make_results_change_every_key(tree: Path, name: str) -> None:
    assert name.startswith(RESULT_FOLDERS)
    before = code_digest()
    assert changed(tree / name) != before


def test_content_key_depends_on_what_decides_the_result_and_on_nothing_else() -> None:
    config = small_config()
    key = content_key(config, "learn", {"seed": 1})
    assert content_key(small_config("name=other", "loop.rounds=1", "threads=2"), "learn", {"seed": 1}) == key
    others = [
        content_key(config, "learn", {"seed": 2}),
        content_key(config, "sample", {"seed": 1}),
        content_key(config, "learn", {"seed": 1}, "other code"),
        content_key(small_config("dtype=bfloat16"), "learn", {"seed": 1}),
        content_key(small_config("device=cuda"), "learn", {"seed": 1}),
    ]
    assert len({key, *others}) == 6


def test_updates_are_found_again_by_key_and_a_later_one_replaces_an_earlier_one(tmp_path: Path) -> None:
    one, other = make_replicate("a"), make_replicate("b", seed=12)
    with UpdateStore(tmp_path / "updates.sqlite") as store:
        store.keep({"k1": one, "k2": other})
    with UpdateStore(tmp_path / "updates.sqlite") as store:
        assert store.find(["k2", "k1", "k3"]) == {"k1": one, "k2": other}
        store.keep({"k1": other})
        assert store.find(["k1"]) == {"k1": other}


DAMAGE = {
    "changed": "UPDATE updates SET record = replace(record, '\"seed\":11', '\"seed\":13') WHERE key = 'k2'",
    "no text": "UPDATE updates SET record = CAST(X'ff' || record AS TEXT) WHERE key = 'k2'",
    "swapped": "UPDATE updates SET (record, bank, checksum) = (SELECT record, bank, checksum FROM updates WHERE "
    "key = 'k3') WHERE key = 'k2'",
    "renamed bank": "UPDATE updates SET bank = 'k4 k9' WHERE key = 'k2'",
    "not sealed": "UPDATE updates SET checksum = '' WHERE key = 'k2'",
    "deleted": "DELETE FROM updates WHERE key = 'k2'",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_update_is_not_found_and_its_bank_is_known(tmp_path: Path, kind: str) -> None:
    path, keys = tmp_path / "updates.sqlite", ["k1", "k2", "k3", "k4"]
    with UpdateStore(path) as store:
        store.keep({key: make_replicate(key, seed=11) for key in keys[:3]})
        store.keep({"k4": make_replicate("d", seed=11)})
        assert list(store.find(keys)) == keys
    with closing(sqlite3.connect(path)) as db, db:
        assert db.execute(DAMAGE[kind]).rowcount == 1
    with UpdateStore(path) as store:
        assert list(store.find(keys)) == ["k1", "k3", "k4"]
        assert store.damaged == (kind != "deleted")
        assert store.banks(keys, ["k2"]) == [["k1", "k2", "k3"]]
        assert store.banks(["k1", "k2", "k4"], ["k2", "k4"]) == [["k4"]]


def test_updates_of_a_release_without_checksums_are_made_again(tmp_path: Path) -> None:
    path = tmp_path / "updates.sqlite"
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript("CREATE TABLE updates (key TEXT PRIMARY KEY, record TEXT NOT NULL); PRAGMA user_version = 1;")
        db.execute("INSERT INTO updates VALUES ('k1', ?)", (make_replicate("a").model_dump_json(),))
    with UpdateStore(path) as store:
        assert (store.find(["k1"]), store.damaged) == ({}, 1)
        store.keep({"k1": make_replicate("a")})
        assert list(store.find(["k1"])) == ["k1"]


def test_damaged_database_of_prefect_is_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_HOME", "PREFECT_LOCAL_STORAGE_PATH", "PREFECT_MEMO_STORE_PATH"):
        monkeypatch.setenv(name, str(tmp_path))
    file = tmp_path / "prefect" / "prefect.db"
    prepare_process(tmp_path)
    with closing(sqlite3.connect(file)) as db, db:
        db.execute("CREATE TABLE runs AS SELECT 1 AS number")
    prepare_process(tmp_path)
    assert file.is_file()
    file.write_bytes(file.read_bytes()[:4096] + b"\xa5" * 4096)
    prepare_process(tmp_path)
    assert [path.name for path in file.parent.iterdir()] == ["prefect.db.damaged"]
