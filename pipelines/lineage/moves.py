"""Moves of the champion's alias that a kill cannot leave half done, and which champions a work directory has had.

A move is written to the work directory before its first step and removed after its last. Each step may be repeated, so
whoever next opens the registry of a killed command completes what it finds.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation.common.errors import ConfigError
from evaluation.common.storage import write_atomically
from pipelines.inbox.store import INBOX_FILE, InboxStore
from pipelines.lineage.versions import CHAMPION, PREVIOUS, PROMOTED_TAG, REPORT_FILE
from pipelines.records import Record

MOVE_FILE, CHAMPIONS_FILE = "champion-move.json", "champions.json"
"""In a work directory: the move in progress, and the last champion of each registered model by name."""
LONGEST_DESCRIPTION = 5000
"""Characters that MLflow's databases take for a version's description."""
_CUT = f"\n\n… (cut; the whole report is in `{REPORT_FILE}` among the version's files)"


class Move(Record):
    """A promotion or a rollback, with all that belongs to it."""

    name: str
    """Of the registered model."""
    left: int | None
    """The champion so far; None when there is none."""
    to: int
    previous: int | None
    """Where the alias `previous` stands afterwards; None is nowhere."""
    tags: dict[str, str]
    """Of the version that is promoted, or of the one that a rollback leaves."""
    promoted: str | None = None
    """When, ISO 8601; None is a rollback."""
    report: tuple[str, str] | None = None
    """A promotion's: MLflow's id of the version's model, and the gate's report."""
    quarantined: dict[str, tuple[str, ...]] = {}  # noqa: RUF012 (pydantic copies it)
    """A rollback's: ids of the documents that it takes back, by the night that learned them."""
    reason: str = ""
    """A rollback's."""


def read_move(work_dir: Path) -> Move | None:
    """Return the move that is in progress or was interrupted."""
    path = work_dir / MOVE_FILE
    return Move.model_validate_json(path.read_bytes()) if path.is_file() else None


def write_move(move: Move | None, work_dir: Path) -> None:
    """Record a move before its first step; None after its last."""
    if move is None:
        (work_dir / MOVE_FILE).unlink(missing_ok=True)
    else:
        write_atomically(work_dir / MOVE_FILE, move.model_dump_json())


def apply_move(client: Any, move: Move, work_dir: Path) -> None:
    """Take all steps of a move by MLflow's client, the alias `champion` after all else; repeating them is harmless."""
    name, tagged = move.name, move.to if move.promoted else move.left
    for tag, value in move.tags.items():
        client.set_model_version_tag(name, str(tagged), tag, value)
    if move.report is not None:
        _write_report(client, name, move.to, *move.report)
    if move.quarantined:
        with InboxStore(work_dir / INBOX_FILE) as inbox:
            known = {document.id for document in inbox.documents()}
            for night, ids in move.quarantined.items():
                inbox.quarantine([each for each in ids if each in known], move.reason, night)
    if move.previous is not None:
        client.set_registered_model_alias(name, PREVIOUS, str(move.previous))
    elif not move.promoted:
        client.delete_registered_model_alias(name, PREVIOUS)
    client.set_registered_model_alias(name, CHAMPION, str(move.to))
    if move.promoted:
        client.set_model_version_tag(name, str(move.to), PROMOTED_TAG, move.promoted)
    note_champion(name, move.to, work_dir)


def _write_report(client: Any, name: str, version: int, model_id: str, report: str) -> None:
    """Attach the gate's report to a version; the same again changes nothing."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, REPORT_FILE)
        file.write_text(report, encoding="utf-8")
        client.log_model_artifact(model_id, str(file))
    if len(report) > LONGEST_DESCRIPTION:
        report = report[: LONGEST_DESCRIPTION - len(_CUT)] + _CUT
    client.update_model_version(name, str(version), description=report)


def champions(work_dir: Path) -> Mapping[str, int]:
    """Return the last known champion of each registered model that a work directory has used."""
    path = work_dir / CHAMPIONS_FILE
    found: dict[str, int] = json.loads(path.read_bytes()) if path.is_file() else {}
    return found


def note_champion(name: str, version: int, work_dir: Path) -> None:
    """Record a champion, by which its loss is noticed."""
    known = champions(work_dir)
    if known.get(name) != version:
        write_atomically(work_dir / CHAMPIONS_FILE, json.dumps({**known, name: version}))


def lost_champion(work_dir: Path, name: str, version: int) -> ConfigError:
    """Return the error for a champion whose store is gone: nothing must begin anew without a word."""
    return ConfigError(
        f"work directory {str(work_dir)!r} had version {version} of {name!r} in use, but its registry has no champion: "
        "the store (mlflow.db) was lost, emptied or is another one. Nothing was started. Put it back, or restore a "
        "backup with `preceptor restore FILE --work-dir NEW`; to begin anew, give another --work-dir."
    )
