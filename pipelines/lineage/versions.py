"""Registered versions: tags and records, where a rollback leads, and moves of the champion's alias.

A move is written to the work directory before its first step and removed after its last. Each step may be repeated, so
whoever next opens the registry of a killed command completes what it finds.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from evaluation.common.errors import ConfigError, LineageError
from evaluation.common.storage import write_atomically
from pipelines.inbox.store import INBOX_FILE, InboxStore
from pipelines.process import preceptor
from pipelines.records import Record

CHAMPION, PREVIOUS, CANDIDATE = "champion", "previous", "candidate"
"""Aliases: in use, in use before, newest."""

ADAPTER_TAG, RUN_TAG = "preceptor.adapter_sha", "preceptor.run_id"
"""Tags of a version: digest of the adapter, and the run it comes from."""
FILES_TAG = "preceptor.files_sha"
"""Tag of a version: digest of all its files that decide what it is and how it answers."""
MEMORY_TAG = "preceptor.memory_digest"
"""Tag of a student's version: `ExternalMemory.digest` of the memory among its files."""
DECISION_TAG, NIGHT_TAG, TEACHER_TAG = "preceptor.gate_decision", "preceptor.night", "preceptor.teacher"
"""Tags of a night's version, promoted or not: the gate's decision, the night, and the number of the teacher's version
that wrote its self-edits (`untrained` for none)."""
STATE_TAG = "preceptor.teacher_state"
"""Tag of a teacher's version: `warm-started` or `RL-trained`."""
SCORE_TAG = "preceptor.score."
"""Prefix of the tags with a version's scores, in [0, 1]: `new`, `probes_before` and `probes_after` of a student,
`reward` of the round that a teacher learned from."""
REFUSED = {"hold": "held", "reject": "rejected"}
"""Decisions that keep a version out of use."""
DESPITE_TAG = "preceptor.promoted_despite_gate_because"
"""Tag: why a version was promoted that the gate refused."""
DATA_TAG, PARENT_TAG = "preceptor.data_digest", "preceptor.parent_version"
"""Tags of a promoted version: SHA-256 of the data it learned and was judged on, and the champion that it first
replaced."""
NO_PARENT = "none"
"""Value of `PARENT_TAG` when there was no champion before."""
PROMOTED_TAG = "preceptor.promoted_at"
"""Tag: when the version last became the champion; written last, so it marks a complete promotion."""
ROLLED_BACK_TAG, REASON_TAG = "preceptor.rolled_back_at", "preceptor.rolled_back_because"
"""Tags: when and why the version was taken out of use."""

ERASED_TAG, ERASED_BECAUSE_TAG = "preceptor.erased_at", "preceptor.erased_because"
"""Tags: when and why a version was erased, whose weights had learned what is to be forgotten: for good."""
AGAIN_TAG = "preceptor.learned_again_because"
"""Tag of a night's version: why documents were erased without which it was learned anew."""

REPORT_FILE = "gate-report.md"
"""The gate's report, whole, among the files of a version."""


class VersionRecord(NamedTuple):
    """A registered version with its history."""

    version: int
    aliases: tuple[str, ...]
    """In alphabetical order."""
    created: datetime
    decision: str | None
    """The gate's; None when none is recorded."""
    parent: int | None
    """The champion that it first replaced; None when there was none, or when it is not known (`parent_known`)."""
    parent_known: bool
    rolled_back: str | None
    """When it was taken out of use or erased, ISO 8601; None when it was not, or was promoted again since."""
    reason: str | None
    """Why it was taken out of use."""
    despite: str | None = None
    """Why it was promoted although the gate refused it."""
    scores: Mapping[str, float] = MappingProxyType({})
    """See `SCORE_TAG`."""
    teacher: str | None = None
    night: str | None = None
    """See `TEACHER_TAG`."""
    state: str | None = None
    """See `STATE_TAG`."""
    erased: str | None = None
    """See `ERASED_TAG`."""


class Registered(NamedTuple):
    """An adapter in the registry, and the run that it is of."""

    version: int
    name: str
    """By which a work directory calls the adapter or the teacher's state."""
    run_id: str
    finished: bool


class Rollback(NamedTuple):
    """Where the champion's alias went."""

    from_version: int
    to_version: int


def version_record(version: int, aliases: Iterable[str], created_ms: int, tags: Mapping[str, str]) -> VersionRecord:
    """Return the record of a version from all of its tags; `created_ms` is in milliseconds since 1970."""
    parent, rolled_back = tags.get(PARENT_TAG), tags.get(ROLLED_BACK_TAG)
    if rolled_back is not None and tags.get(PROMOTED_TAG, "") > rolled_back:  # ISO 8601 sorts as text
        rolled_back = None
    erased = tags.get(ERASED_TAG)
    return VersionRecord(
        version=version,
        aliases=tuple(sorted(aliases)),
        created=datetime.fromtimestamp(created_ms / 1000, UTC),
        decision=tags.get(DECISION_TAG),
        parent=int(parent) if parent is not None and parent.isdecimal() else None,
        parent_known=parent is not None,
        rolled_back=erased or rolled_back,
        reason=tags.get(ERASED_BECAUSE_TAG if erased else REASON_TAG) if erased or rolled_back else None,
        despite=tags.get(DESPITE_TAG),
        scores={name.removeprefix("score/"): score for name, score in scores_of(tags).items()},
        teacher=tags.get(TEACHER_TAG),
        night=tags.get(NIGHT_TAG),
        state=tags.get(STATE_TAG),
        erased=erased,
    )


def refuse_erased(name: str, version: int, tags: Mapping[str, str]) -> None:
    """Raise LineageError for a version with `tags` that was erased."""
    if ERASED_TAG in tags:
        raise LineageError(
            f"registry: version {version} of {name!r} was erased on {tags[ERASED_TAG][:10]} because: "
            f"{tags.get(ERASED_BECAUSE_TAG)}. Its weights had learned what is to be forgotten. "
            "It is out of use for good; list the others with `preceptor versions`."
        )


def promotion_tags(
    name: str,
    version: int,
    champion: int | None,
    tags: Mapping[str, str],
    record: Mapping[str, str],
    despite: str | None,
) -> dict[str, str]:
    """Return what a promotion writes on a version of the model `name` with `tags`; errors as of `Registry.promote`."""
    refuse_erased(name, version, tags)
    written = dict(record)
    if (decision := tags.get(DECISION_TAG)) in REFUSED:
        if despite is None:
            raise LineageError(
                f"registry: version {version} of {name!r} was {REFUSED[decision]} by the gate. Nothing was changed. "
                "Read why on its night's page; to promote it all the same, repeat the command with "
                "--despite-the-gate --because 'REASON'."
            )
        written[DESPITE_TAG] = despite
    in_use = NO_PARENT if champion is None else str(champion)
    compared = written.pop(PARENT_TAG, in_use)
    if compared != in_use:
        raise LineageError(
            f"registry: version {version} of {name!r} was compared with the champion {compared}, and {in_use} is in "
            "use now. Nothing was changed. Compare it with the champion in use, or promote it without a gate: "
            f"{preceptor('promote', name.rpartition('-')[2], version)}"
        )
    return written if PROMOTED_TAG in tags else {**written, PARENT_TAG: in_use}


def score_tags(scores: Mapping[str, float | None]) -> dict[str, str]:
    """Return a version's scores as tags; what is not known is left out."""
    return {f"{SCORE_TAG}{name}": repr(float(value)) for name, value in scores.items() if value is not None}


def scores_of(tags: Mapping[str, str]) -> dict[str, float]:
    """Return the scores among a version's tags as metrics, such as `score/reward`, in [0, 1]."""
    names = sorted(name for name in tags if name.startswith(SCORE_TAG))
    return {f"score/{name.removeprefix(SCORE_TAG)}": float(tags[name]) for name in names}


def parent_of(history: Mapping[int, VersionRecord], version: int, previous: int | None) -> int | None:
    """Return the version that a rollback of `version` leads to; None when there is none.

    Parents are followed and those that were rolled back are skipped, so repeated rollbacks only ever go further back.

    Args:
        history: All versions by number.
        version: The one to leave.
        previous: The version with the alias `previous`, used where no parent was recorded.
    """
    seen: set[int] = set()
    here: int | None = version
    while here is not None and here in history and here not in seen:
        record = history[here]
        if here != version and record.rolled_back is None:
            return here
        seen.add(here)
        here = record.parent if record.parent_known else previous
    return None


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
    if report not in (client.get_model_version(name, str(version)).description or ""):
        client.update_model_version(name, str(version), description=described(report))


def described(text: str) -> str:
    """Return a description of a version, cut where it is longer than MLflow's databases take."""
    return text if len(text) <= LONGEST_DESCRIPTION else text[: LONGEST_DESCRIPTION - len(_CUT)] + _CUT


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
