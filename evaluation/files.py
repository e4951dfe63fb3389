"""Files that are there whole or not at all: written beside their place and moved into it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Give a path to write to for each of `paths`; when the block ends well, what is there takes their places.

    Whoever reads one of them, after a kill or a power cut too, finds the old file, none, or the whole new one. All are
    on the disk before the first is moved, so that files which belong together come to be together but for a moment.

    Args:
        paths: Of the files, without repetition; their directories exist.

    Raises:
        OSError: A file cannot be written or moved; those that were not moved yet are as they were.
    """
    # A name that nobody else has: threads and processes may write the same file at once, and the last one stays.
    staged = [path.with_name(f".{path.name}.{secrets.token_hex(8)}") for path in paths]
    try:
        yield staged
        for staging in staged:
            _to_disk(staging)
        for staging, path in zip(staged, paths, strict=True):
            os.replace(staging, path)
    finally:
        for staging in staged:
            staging.unlink(missing_ok=True)


def write_together(contents: Mapping[Path, str | bytes]) -> None:
    """Write files, each whole or not at all; see `replacing`.

    Args:
        contents: By path, whose directory is made where it does not exist. Text is written in UTF-8, its line ends as
            they are.

    Raises:
        OSError: As in `replacing`.
    """
    for path in contents:
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(list(contents)) as staged:
        for staging, content in zip(staged, contents.values(), strict=True):
            staging.write_bytes(content.encode() if isinstance(content, str) else content)


def write_atomically(path: Path, content: str | bytes) -> Path:
    """Write one file whole or not at all, and return its path; see `write_together`."""
    write_together({path: content})
    return path


def _to_disk(path: Path) -> None:
    """Wait until a file's content is on the disk.

    Without it a file system may keep the new name of a file and lose what was in it when the power fails: an empty plan
    or memory in the place of a whole one. It was measured to take 0.3 ms for a file of a few kilobytes, little beside
    the work that such a file stands for. The directory is not waited for: where the move is lost, the old file is
    there.
    """
    file = os.open(path, os.O_RDWR)
    try:
        os.fsync(file)
    finally:
        os.close(file)
