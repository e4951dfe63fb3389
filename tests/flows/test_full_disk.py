"""Commands on a disk that is full, and on one that refuses: one message, nothing lost, and the same command goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from evaluation.common.data import digest_files
from student.adapters import save_adapter
from tests.flows.settings import CONFIGS, environment, preceptor
from tests.pipelines.conftest import open_lineage
from tests.pipelines.factories import make_adapter

pytestmark = [pytest.mark.slow, pytest.mark.flow, pytest.mark.timeout(1800)]


class Disk(NamedTuple):
    place: Path
    home: Path

    def fill(self) -> None:
        with suppress(OSError), (self.place / "filler").open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                with suppress(OSError):
                    while True:
                        file.write(b"0" * size)

    def free(self) -> None:
        (self.place / "filler").unlink(missing_ok=True)

    def run(self, *arguments: str | Path, prefix: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        whole = [*prefix, *preceptor(*arguments)]
        return subprocess.run(whole, env=environment(self.home), capture_output=True, text=True, timeout=600)


@pytest.fixture
def disk() -> Iterator[Disk]:
    root = Path(tempfile.mkdtemp(prefix="full-disk-"))  # pytest's own directories are for their owner alone
    place = root / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk needs the right to mount one")
    try:
        yield Disk(place, root / "home")
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
        shutil.rmtree(root)


@pytest.fixture
def work_dir(disk: Disk, tmp_path: Path) -> Path:
    """A work directory with two versions, the second one champion, and a document in the inbox."""
    work, lineage = disk.place / "work", open_lineage(disk.place / "work")
    for value in (0.25, 0.5):
        adapter = make_adapter(value)
        place = save_adapter(adapter, tmp_path / str(value))
        version = lineage.registry.register("student", place, digest=adapter.digest, run_id=lineage.run_id, tags={})
        lineage.registry.promote("student", version)
    (tmp_path / "one.md").write_text("# Zyx\n\nThe harbour of Zyx opened in 1931.\n")
    assert disk.run("inbox", "add", tmp_path / "one.md", "--work-dir", work).returncode == 0
    return work


def commands(work: Path, other: Path) -> dict[str, list[str | Path]]:
    """Return commands that write, by name."""
    suite, place = CONFIGS / "suites" / "micro-world.yaml", ("--work-dir", work)
    (other / "two.md").write_text("# Two\n\n" + "\n\n".join(f"Paragraph {i} speaks of Zyx." for i in range(20_000)))
    return {
        "inbox add": ["inbox", "add", other / "two.md", *place],
        "rollback": ["rollback", "--because", "a test", *place],
        "promote": ["promote", "student", "1", *place],
        "backup": ["backup", work.parent / "backup.tar.gz", *place],
        "check-regression": ["check-regression", suite, "--candidate", "base", "--baseline", "base", *place],
        "adapt-student": ["adapt-student", CONFIGS / "nights-demo.yaml", *place],
        "train-teacher": ["train-teacher", CONFIGS / "demo.yaml", *place],
    }


def assert_one_message(done: subprocess.CompletedProcess[str], name: str) -> None:
    lines = done.stderr.strip().splitlines()
    assert done.returncode in (1, 2, 3), (name, done)
    assert 1 <= len(lines) <= 2, (name, done.stderr)
    assert "Traceback" not in done.stdout + done.stderr, name


def test_full_disk_costs_one_message_and_nothing_else(disk: Disk, work_dir: Path, tmp_path: Path) -> None:
    tried, long = commands(work_dir, tmp_path), ("adapt-student", "train-teacher", "check-regression")
    versions = disk.run("versions", "--json", "--work-dir", work_dir).stdout
    disk.fill()
    for name, arguments in tried.items():
        assert_one_message(disk.run(*arguments), name)
    assert "PROBLEM" in disk.run("doctor", "--work-dir", work_dir).stdout
    disk.free()
    assert disk.run("versions", "--json", "--work-dir", work_dir).stdout == versions
    for name in (name for name in tried if name not in long):
        done = disk.run(*tried[name])
        assert done.returncode == 0, (name, done.stderr)
    restored: list[str | Path] = ["restore", work_dir.parent / "backup.tar.gz", "--work-dir", disk.place / "restored"]
    disk.fill()
    assert_one_message(disk.run(*restored), "restore")
    assert not (disk.place / "restored").exists()
    disk.free()
    assert disk.run(*restored).returncode == 0


def test_directory_that_refuses_costs_one_message(disk: Disk, work_dir: Path) -> None:
    if os.geteuid() or shutil.which("setpriv") is None:
        pytest.skip("needs another user")
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    if subprocess.run([*nobody, *preceptor("--version")], capture_output=True).returncode:
        pytest.skip("another user cannot run this Python")
    disk.home.mkdir(exist_ok=True)
    disk.home.chmod(0o777)
    disk.place.parent.chmod(0o755)
    before = {path: digest_files(path) for path in (work_dir, *work_dir.rglob("*")) if path.is_dir()}
    for name, arguments in commands(work_dir, disk.place.parent).items():
        assert_one_message(disk.run(*arguments, prefix=nobody), name)
    assert {path: digest_files(path) for path in before} == before
