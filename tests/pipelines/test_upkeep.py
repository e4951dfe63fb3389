"""Backup, restore and garbage collection of a work directory with a real store; and what `make clean` leaves alone."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from evaluation.common.errors import ConfigError, LineageError
from pipelines.cli import app
from pipelines.inbox.store import INBOX_FILE, InboxStore
from pipelines.lineage.registry import Registry
from pipelines.lineage.run import Lineage
from pipelines.process import BusyError, exclusive
from pipelines.settings import TrackingConfig
from pipelines.upkeep import MANIFEST, UpkeepError
from student.adapters import load_adapter, save_adapter
from tests.pipelines.adapt_student.factories import document
from tests.pipelines.factories import make_adapter

Open = Callable[..., Lineage]


def preceptor(*arguments: str | Path) -> str:
    """Run a command and return what it prints; what it raises is raised."""
    done = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=True)
    if done.exception is not None:
        raise done.exception
    return done.output


def register(lineage: Lineage, role: Any, value: float, place: Path) -> str:
    """Register an adapter, and return the name by which a work directory calls it."""
    adapter = make_adapter(value)
    directory = save_adapter(adapter, place / f"{role}-{value}")
    lineage.registry.register(role, directory, digest=adapter.digest, run_id=lineage.run_id, tags={})
    return adapter.digest[:20]


def put(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(file.name)


def tree(work_dir: Path) -> set[str]:
    return {str(path.relative_to(work_dir)) for path in work_dir.rglob("*") if path.is_file()}


@pytest.fixture
def kept(open_run: Open, work_dir: Path, tmp_path: Path) -> Path:
    """A work directory with a champion, a document in the inbox, and things that can be made again."""
    lineage = open_run()
    register(lineage, "student", 0.5, tmp_path)
    lineage.registry.promote("student", 1, report="passed")
    with InboxStore(work_dir / INBOX_FILE) as inbox:
        inbox.add([document("a")])
    put(*(work_dir / name for name in ("nights/night-0001/morning.html", "prefect/storage/sample/v5/ab/abc")))
    put(*(work_dir / name for name in ("run.lock", "students/1/x", "teachers/version-1-of-t/x", "prefect/prefect.db")))
    put(
        *(work_dir / name for name in (".result.json.0123456789abcdef", "tmpabcd_123/x", "serving-abc/x", "engine.log"))
    )
    return work_dir


def test_restored_directory_has_all_that_is_not_made_again(kept: Path, tmp_path: Path) -> None:
    archive, new = tmp_path / "away" / "b.tar.gz", tmp_path / "new place" / "work"
    with InboxStore(kept / INBOX_FILE) as inbox:  # in use, its last change in the write-ahead log
        inbox.add([document("b")])
        said = preceptor("backup", archive, "--work-dir", kept)
    assert f"preceptor restore {archive} --work-dir NEW" in said
    shutil.rmtree(kept)
    assert f"preceptor versions --work-dir '{new}'" in preceptor("restore", archive, "--work-dir", new)
    assert {path.name for path in archive.parent.iterdir()} == {archive.name}
    top = {name.partition("/")[0] for name in tree(new)}
    assert top == {"artifacts", "champions.json", "mlflow.db", INBOX_FILE, "nights", "prefect"}
    assert [name for name in tree(new) if name.startswith("prefect")] == ["prefect/storage/sample/v5/ab/abc"]
    with InboxStore(new / INBOX_FILE) as inbox:
        assert {each.title for each in inbox.documents()} == {"a", "b"}
    files = Registry.open(TrackingConfig(), new).fetch("student", "champion", tmp_path / "files")
    assert load_adapter(files).digest == make_adapter(0.5).digest


def test_backup_refuses_what_it_cannot_save_whole(kept: Path, tmp_path: Path) -> None:
    archive = tmp_path / "away" / "b.tar.gz"
    with pytest.raises(ConfigError, match="neither runs nor an inbox"):
        preceptor("backup", archive, "--work-dir", tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="outside"):
        preceptor("backup", kept / "b.tar.gz", "--work-dir", kept)
    for held in (kept, kept / "lane-0"):
        with exclusive(held), pytest.raises(BusyError, match="in use"):
            preceptor("backup", archive, "--work-dir", kept)
    (kept / "nights" / "link").symlink_to(tmp_path)
    with pytest.raises(UpkeepError, match="is a link"):
        preceptor("backup", archive, "--work-dir", kept)
    assert not archive.parent.exists() or not list(archive.parent.iterdir())


def test_archive_that_is_damaged_or_reaches_outside_restores_nothing(kept: Path, tmp_path: Path) -> None:
    archive, bad, new = tmp_path / "b.tar.gz", tmp_path / "bad.tar.gz", tmp_path / "place" / "new"
    preceptor("backup", archive, "--work-dir", kept)
    for length in (100, archive.stat().st_size // 2):
        bad.write_bytes(archive.read_bytes()[:length])
        with pytest.raises(UpkeepError, match="Nothing was restored"):
            preceptor("restore", bad, "--work-dir", new)

    def changed(name: str, content: bytes) -> None:
        """Write the archive with one file more, or with another content."""
        with tarfile.open(archive) as old, tarfile.open(bad, "w:gz") as out:
            for member in old:
                if member.name != name:
                    out.addfile(member, old.extractfile(member))
            info = tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))

    morning = "nights/night-0001/morning.html"
    for name, reason in (("../evil", "outside"), ("more", "more"), (morning, morning), (MANIFEST, "could not restore")):
        changed(name, b"{}")
        with pytest.raises(UpkeepError, match=reason):
            preceptor("restore", bad, "--work-dir", new)
    assert not (tmp_path / "evil").exists()
    assert not list(new.parent.iterdir()), "nothing is left behind"
    put(new / "mine")
    with pytest.raises(ConfigError, match="not empty"):
        preceptor("restore", archive, "--work-dir", new)
    assert tree(new) == {"mine"}


def test_gc_removes_only_what_the_registry_gives_back_and_scratch(
    open_run: Open, work_dir: Path, tmp_path: Path
) -> None:
    done, running = open_run("done"), open_run("running")
    student = [register(done, "student", value, tmp_path) for value in (0.5, 0.25, 0.125, 1.0)]
    finished, unfinished = register(done, "teacher", 1.5, tmp_path), register(running, "teacher", 2.5, tmp_path)
    for version in (1, 2):
        done.registry.promote("student", version)
    done.finish("FINISHED")
    for version in (1, 2, 3):
        done.registry.fetch("student", version, work_dir / "students" / str(version))
    needed = [f"teachers/{unfinished}/x", "teachers/proxy/x", "adapters/kept/x", "inbox.db", "students/9/x"]
    put(*(work_dir / name for name in (*needed, "endpoints.sqlite", "serving-live/x")))
    extra = [f"adapters/{student[0]}/x", f"teachers/{finished}/x", "teachers/version-1-of-preceptor-teacher/x"]
    scratch = [
        "tmpabcd_123/.x-abcd_123",
        ".students-abcd_123/x",
        "nights/.page.html.0123456789abcdef",
        "serving-dead/x",
    ]
    put(*(work_dir / name for name in (*extra, *scratch)))
    before = tree(work_dir)
    with FileLock(work_dir / "serving-live" / "serving.lock"):
        said = preceptor("gc", "--dry-run", "--work-dir", work_dir)
        assert "Nothing was removed" in said
        assert tree(work_dir) - before <= {"run.lock", "serving-live/serving.lock", "serving-dead/serving.lock"}
        assert "Removed" in preceptor("gc", "--work-dir", work_dir)
    gone = {name for name in before - tree(work_dir) if not name.startswith("students/3/")}
    assert gone == {*extra, *scratch}
    assert not (work_dir / "students" / "3").exists()
    done.registry.fetch("student", 3, work_dir / "students" / "3")
    for path in (work_dir / "artifacts").rglob("adapter_model.safetensors"):
        path.write_bytes(b"damaged")
    with pytest.raises(LineageError, match="damaged"):
        preceptor("gc", "--work-dir", work_dir)
    assert (work_dir / "students" / "3").is_dir(), "the last whole copy stays"
    with exclusive(work_dir), pytest.raises(BusyError):
        preceptor("gc", "--work-dir", work_dir)


def test_make_clean_deletes_a_work_directory_only_by_its_name(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    for name in ("configs", "evaluation", "pipelines/__pycache__", "student", "teacher", "tests", "other"):
        (tmp_path / name).mkdir(parents=True)
    put(tmp_path / ".preceptor" / "mlflow.db")

    def clean(*arguments: str) -> tuple[int, str]:
        command = ["make", "-f", str(root / "Makefile"), "clean", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout

    code, said = clean()
    assert (code, (tmp_path / ".preceptor" / "mlflow.db").exists()) == (0, True)
    assert "make clean NAME=.preceptor" in said
    assert not (tmp_path / "pipelines" / "__pycache__").exists()
    assert clean("NAME=other")[0] != 0
    assert (tmp_path / "other").is_dir()
    assert clean("NAME=.preceptor")[0] == 0
    assert not (tmp_path / ".preceptor").exists()
