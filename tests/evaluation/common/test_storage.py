"""Files that are written whole or not at all, whatever happens in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from evaluation.common.storage import replacing, write_atomically


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_files_are_made_replaced_and_nothing_is_left_beside_them(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "a.txt"
    assert write_atomically(path, "ä\r\n") == path
    assert path.read_bytes() == "ä\r\n".encode()
    assert write_atomically(path, b"\xff").read_bytes() == b"\xff"
    assert names(path.parent) == {"a.txt"}


def test_file_may_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = write_atomically(tmp_path / "a.txt", "a")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = write_atomically(tmp_path / "a.txt", "old")

    def write(error: type[BaseException]) -> None:
        with replacing(path) as staging:
            if error is KeyboardInterrupt:  # the other one comes from a block that wrote nothing
                staging.write_text("new")
                raise error

    for error in (KeyboardInterrupt, FileNotFoundError):
        with pytest.raises(error):
            write(error)
        assert path.read_text() == "old"
    assert names(tmp_path) == {"a.txt"}


def test_place_that_cannot_be_written_says_so_and_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        write_atomically(tmp_path / "file" / "a.txt", "a")
    (tmp_path / "taken" / "by").mkdir(parents=True)
    with pytest.raises(OSError, match="taken"):
        write_atomically(tmp_path / "taken", "a")
    assert names(tmp_path) == {"file", "taken"}


def test_kill_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_atomically(tmp_path / "a.txt", "old")
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from evaluation.common.storage import replacing\n"
        "with replacing(Path(sys.argv[1])) as staging:\n"
        "    staging.write_text('new, and half of it only')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], timeout=60).returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_threads_that_write_the_same_file_leave_one_of_theirs_whole(tmp_path: Path) -> None:
    path, texts = tmp_path / "a.txt", [str(i) * 100_000 for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: write_atomically(path, text), texts * 10))
    assert path.read_text() in texts
    assert names(tmp_path) == {"a.txt"}
