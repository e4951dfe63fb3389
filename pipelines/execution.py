"""Execution of the loop's work: the only module that knows Prefect's tasks and caches.

Two content-addressed stores make a killed run resumable. Results of whole tasks (sampling, learning steps) are stored
by Prefect. Updates of students have a store of their own, one SQLite row each, so that an update is found again
whichever round, run or variant needs it. What does not match its checksum is made again. Keys hash everything that
decides a result: models, recipes, texts, seeds and the code of the folders that make results, but no paths, dates,
reports or command lines.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from prefect import task
from prefect.context import TaskRunContext
from prefect.results import ResultRecord  # type: ignore[attr-defined]
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH
from prefect.utilities.annotations import quote
from pydantic import BaseModel

from evaluation.common.data import digest_json
from evaluation.common.errors import PreceptorError
from evaluation.common.storage import SqliteFile, checksum
from pipelines.records import RECORDS_VERSION, ScoredUpdate
from pipelines.settings import Settings

if TYPE_CHECKING:
    from pipelines.reports.console import Reporter

PACKAGE_ROOT = Path(__file__).resolve().parents[1]
RESULT_FOLDERS = ("evaluation", "teacher", "student", "pipelines/loop")
"""Folders whose code makes results; a change anywhere else leaves half-finished runs resumable."""

_Result = TypeVar("_Result", bound=BaseModel)
_Updates = tuple[ScoredUpdate, ...]


@cache
def code_digest() -> str:
    """Return the SHA-256 of the source files in `RESULT_FOLDERS`."""
    files = sorted(path for folder in RESULT_FOLDERS for path in (PACKAGE_ROOT / folder).rglob("*.py"))
    return digest_json(
        [[path.relative_to(PACKAGE_ROOT).as_posix(), path.read_text(encoding="utf-8")] for path in files]
    )


def content_key(settings: Settings, kind: str, content: Any, code: str = "") -> str:
    """Return the content key of a piece of work.

    Args:
        settings: Give device and number format, which change roundings.
        kind: First part of the key.
        content: JSON-serialisable; everything else that decides the result.
        code: Further code that makes it, outside of `RESULT_FOLDERS`.
    """
    digest = digest_json([code_digest(), code, settings.dtype, settings.device, content])
    return f"{kind}/v{RECORDS_VERSION}/{digest[:2]}/{digest}"


def _key_of(_: TaskRunContext, parameters: dict[str, Any]) -> str:
    return str(parameters["key"])


@task(cache_key_fn=_key_of, persist_result=True, result_serializer="json", retries=0, log_prints=False)
def _stored(key: str, function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    """Run a function on plain data; its result is stored with a checksum. An exception stores nothing."""
    result = function(*arguments)
    return {"result": result, "checksum": _checksum_of(key, result)}


def _checksum_of(key: str, result: BaseModel) -> str:
    return checksum(key, result.model_dump(mode="json"))


def _is_damaged(key: str) -> bool:
    """Return whether a result is stored that is not the one that was written under this key."""
    try:
        stored = Path(PREFECT_LOCAL_STORAGE_PATH.value(), key).read_bytes()
    except OSError:  # none, or in a storage of the user's
        return False
    try:
        found: dict[str, Any] = ResultRecord.deserialize(stored).result
        return bool(found["checksum"] != _checksum_of(key, found["result"]))
    except Exception:  # whatever a parser makes of damaged bytes
        return True


@task(name="update-and-score", persist_result=False, retries=0, log_prints=False)
def _unstored(function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    """Run a function on plain data; its caller stores the parts of the result."""
    return function(*arguments)


class StoreError(PreceptorError, RuntimeError):
    """The store of updates cannot be used."""


class UpdateStore(SqliteFile):
    """Scored updates by content key, in one file of the work directory."""

    NAME = "store of updates"
    VERSION = 2
    TABLES = """
    CREATE TABLE updates (key TEXT PRIMARY KEY, record TEXT NOT NULL, bank TEXT NOT NULL, checksum TEXT NOT NULL);
    """
    MIGRATIONS = (
        """
        ALTER TABLE updates ADD COLUMN bank TEXT NOT NULL DEFAULT '';
        ALTER TABLE updates ADD COLUMN checksum TEXT NOT NULL DEFAULT '';
            """,
    )
    ERROR = StoreError
    NEXT_STEP = "Check the disk, then run again."

    damaged = 0
    """Updates that were found to differ from what was stored."""

    def find(self, keys: Collection[str]) -> dict[str, ScoredUpdate]:
        """Return the updates that are stored under some keys and match their checksum."""
        whole, stored = self._whole(keys)
        self.damaged += stored - len(whole)
        return {key: ScoredUpdate.model_validate_json(record) for key, (record, _) in whole.items()}

    def banks(self, keys: Collection[str], missing: Collection[str]) -> list[list[str]]:
        """Return the keys of each stored bank all of whose updates are among `keys`, one of them missing.

        What is made again alone, not in its bank, could be rounded otherwise.
        """
        named, gone = {_short(key): key for key in keys}, {_short(key) for key in missing}
        found = dict.fromkeys(bank for _, bank in self._whole(keys)[0].values())
        wanted = (bank.split() for bank in found if gone & {*bank.split()} and {*bank.split()} <= named.keys())
        return [[named[name] for name in names] for names in wanted]

    def _whole(self, keys: Collection[str]) -> tuple[dict[str, tuple[str, str]], int]:
        """Return record and bank of each stored update that matches its checksum, and the number of all stored ones."""
        query = "SELECT record, bank, checksum FROM updates WHERE key = ?"
        with self._reading() as db:
            rows = {key: row for key in keys if (row := db.execute(query, (key,)).fetchone()) is not None}
        return {key: row[:2] for key, row in rows.items() if row[2] == checksum(key, *row[:2])}, len(rows)

    def keep(self, updates: Mapping[str, ScoredUpdate], bank: Collection[str] = ()) -> None:
        """Store updates that were made in one bank, all or none; `bank` has the keys of all in it, if not these."""
        names = " ".join(map(_short, bank or updates))
        texts = {key: each.model_dump_json() for key, each in updates.items()}
        rows = [(key, record, names, checksum(key, record, names)) for key, record in texts.items()]
        with self._transaction() as db:
            db.executemany("INSERT OR REPLACE INTO updates VALUES (?, ?, ?, ?)", rows)


def _short(key: str) -> str:
    return key[-16:]


class Execution:
    """Runs pieces of work in this process as Prefect tasks, each at most once whatever happens."""

    def __init__(self, settings: Settings, work_dir: Path, reporter: Reporter) -> None:
        """Store results in `work_dir`, and report each piece of work to `reporter`."""
        self._settings, self._reporter = settings, reporter
        self.updates = UpdateStore(work_dir / "updates.sqlite")

    def run(
        self,
        kind: str,
        content: Any,
        function: Callable[..., _Result],
        *arguments: Any,
        describe: str,
        complete: Callable[[_Result], bool] = lambda _: True,
    ) -> _Result:
        """Return the result of a function, computed now or stored before.

        Args:
            kind: Of the work; names the task and starts its key.
            content: See `content_key`; the code of the function's own module is added.
            function: Takes plain data and paths, so that any worker process could run it.
            arguments: Its arguments.
            describe: For the progress bar.
            complete: Whether a stored result still has the files that belong to it; if not it is computed again.
        """
        code = Path(inspect.getsourcefile(function) or "").read_text(encoding="utf-8")
        key = content_key(self._settings, kind, content, code)
        self._reporter.begin(describe)
        damaged = _is_damaged(key)
        if damaged:
            self.tell_damaged(1, f"{kind} result")
        stored: Any = _stored.with_options(name=kind)
        result: _Result = stored.with_options(refresh_cache=damaged)(key, function, quote(arguments))["result"]
        if not complete(result):
            result = stored.with_options(refresh_cache=True)(key, function, quote(arguments))["result"]
        return result

    def tell_damaged(self, number: int, what: str) -> None:
        """Report stored records that are made again, unless there are none."""
        if number:
            self._reporter.say(f"stored, but changed or damaged since, and made again: {number} {what}")

    def run_bank(self, function: Callable[..., _Updates], *arguments: Any) -> _Updates:
        """Return the updates of one bank; its caller keeps them in `updates`."""
        run: Any = _unstored
        result: _Updates = run(function, quote(arguments))
        return result
