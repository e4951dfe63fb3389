"""The work directory: room, rights, the file system it is on, and whether a run holds it or left servers behind."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipelines.doctor.checks import Check, in_short
from pipelines.embedded import LOCK, BusyError, exclusive, left_servers

AREA = "work directory"
LEAST_DISK = 1e9
"""Free bytes below which a warning is due: room for records, adapters and databases of small models."""
_REMOTE = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "afs")
"""File systems on which SQLite's locks are not to be trusted (sqlite.org/faq.html, question 5)."""


def place_checks(work_dir: Path) -> Iterator[Check]:
    """Yield whether the directory can be written to, has room, and is on a disk of this machine."""
    import psutil  # type: ignore[import-untyped]

    place = nearest(work_dir)
    made = "" if place == work_dir.resolve() else "; the first run makes the directory"
    if not place.is_dir():
        text = f"{str(place)!r} is a file; give another directory with --work-dir"
        yield Check(area=AREA, name="writable", status="broken", found=text)
        return
    try:
        with tempfile.TemporaryFile(dir=place) as probe:
            probe.write(b"\0" * 4096)
    except OSError as error:
        text = f"{str(place)!r} cannot be written to: {in_short(error)}; give another one with --work-dir"
        yield Check(area=AREA, name="writable", status="broken", found=text)
    else:
        yield Check(area=AREA, name="writable", status="ok", found=f"{place}{made}")
    usage = shutil.disk_usage(place)
    room, enough = f"{usage.free / 1e9:.1f} of {usage.total / 1e9:.1f} GB free", usage.free >= LEAST_DISK
    yield Check(area=AREA, name="disk", status="ok" if enough else "warning", found=room)
    mounts = [(part.mountpoint, part.fstype) for part in psutil.disk_partitions(all=True)]
    yield file_system_check(file_system_of(place, mounts))


def nearest(place: Path) -> Path:
    """Return a path, or the closest one above it that exists; absolute, links followed."""
    resolved = place.resolve()
    return next(path for path in (resolved, *resolved.parents) if path.exists())


def file_system_of(place: Path, mounts: Sequence[tuple[str, str]]) -> str:
    """Return the type of the file system that a path is on; empty when no mount holds it.

    Args:
        place: Absolute, links followed.
        mounts: Mount points and types, in the order in which they were mounted.
    """
    holding = [(len(Path(point).parts), kind) for point, kind in mounts if place.is_relative_to(point)]
    return max(reversed(holding), key=lambda pair: pair[0], default=(0, ""))[1]


def file_system_check(kind: str) -> Check:
    """Return whether SQLite can trust the locks of a type of file system."""
    if kind not in _REMOTE:
        return Check(area=AREA, name="file system", status="ok", found=kind or "not known")
    text = f"{kind}: SQLite's locks do not hold over a network; give a directory on a local disk with --work-dir"
    return Check(area=AREA, name="file system", status="warning", found=text)


def run_checks(work_dir: Path) -> Iterator[Check]:
    """Yield whether a run holds the directory, and embedded servers that killed runs left behind."""
    if not (work_dir / LOCK).exists():  # `exclusive` would make it
        yield Check(area=AREA, name="lock", status="ok", found="free; no run yet")
        return
    try:
        with exclusive(work_dir):
            pass
    except BusyError:
        text = "held by a run that is under way; another needs a --work-dir of its own"
        yield Check(area=AREA, name="lock", status="ok", found=text)
        return
    yield Check(area=AREA, name="lock", status="ok", found="free")
    left = left_servers(work_dir)
    if left:
        text = f"{len(left)} embedded Prefect server(s) of killed runs; the next run stops them as well"
        fix = f"kill {' '.join(str(process.pid) for process in left)}"
        yield Check(area=AREA, name="left servers", status="warning", found=text, fix=fix)
