"""What a night would find if it began now, for `--dry-run`: no model is opened and nothing is changed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

from evaluation.tasks import Question
from pipelines.config import TrackingConfig
from pipelines.inbox.documents import InboxDocument
from pipelines.inbox.store import INBOX_FILE, InboxStore
from pipelines.lineage_store import Store, lineage_errors, sqlite_file, tracking_uri
from pipelines.nights.config import NightConfig
from pipelines.nights.opening import is_finished_first, read_plan, replaced
from pipelines.nights.plan import PlannedDocument, choose_documents, unasked
from pipelines.nights.state import StudentState, read_state
from pipelines.nights.versions import student_place
from pipelines.process import prepare_process
from pipelines.registry import CHAMPION, Registry

_STAND_IN = Question(question="(not written yet)", answer="(not written yet)")
"""In the place of questions that the night writes before it chooses documents; where they go does not depend on it."""


class Ahead(NamedTuple):
    """What a night would find."""

    parent: int | None
    """Version of the student that it adapts; None is the base student."""
    state: StudentState
    """Of that version."""
    to_copy: int
    """Bytes of its files, which the night copies into the work directory; 0 where they are there."""
    cut_off: str
    """Name of the night that is finished first; empty where a new one begins."""
    documents: tuple[PlannedDocument, ...]
    """Of the night, with where they go; those without questions yet have a stand-in."""
    superseded: dict[str, str]
    """By id of a document that is held, or is of the night, that of the one that replaces it."""
    unasked: tuple[InboxDocument, ...]
    """For which questions are written first."""
    waiting: int
    """New documents that wait for questions."""
    aside: int
    """Documents that are set aside until a person releases them."""


class _Arrived(NamedTuple):
    documents: tuple[InboxDocument, ...]
    aside: frozenset[str]
    superseded: dict[str, str]


def look_ahead(config: NightConfig, work_dir: Path) -> Ahead:
    """Return what the next night in a work directory would find.

    Args:
        config: Of the night.
        work_dir: Of the nights; it need not exist.

    Raises:
        LineageError: The registry or the champion cannot be read.
        InboxError: The inbox cannot be read.
    """
    registry = _registry(config.tracking, work_dir)
    number = None if registry is None else registry.aliases("student").get(CHAMPION)
    state, to_copy = _held(registry, number, work_dir)
    arrived = _arrived(work_dir)
    over = {*arrived.aside, *arrived.superseded}
    silent = () if config.questions is None else unasked(arrived.documents, over)
    left = read_plan(work_dir)
    if left is not None and is_finished_first(left, config, number, state):
        if left.parent != number:
            state, to_copy = _held(registry, left.parent, work_dir)
        parent, chosen, superseded, waiting = left.parent, left.documents, left.superseded, left.without_questions
    else:
        parent, left, ids = number, None, {document.id for document in silent}
        chosen, waiting = choose_documents(
            [d.model_copy(update={"questions": (_STAND_IN,)}) if d.id in ids else d for d in arrived.documents],
            state,
            aside=arrived.aside,
            superseded=arrived.superseded,
            routing=config.routing,
        )
        superseded = replaced(arrived.superseded, state, chosen)
    return Ahead(
        parent=parent,
        state=state,
        to_copy=to_copy,
        cut_off="" if left is None else left.night,
        documents=chosen,
        superseded=superseded,
        unasked=silent,
        waiting=len(waiting),
        aside=len(arrived.aside),
    )


def _arrived(work_dir: Path) -> _Arrived:
    path = work_dir / INBOX_FILE
    if not path.is_file():  # opening the store would make it
        return _Arrived((), frozenset(), {})
    with InboxStore(path) as inbox:
        return _Arrived(inbox.documents(), frozenset(inbox.aside()), inbox.superseded())


def _registry(tracking: TrackingConfig, work_dir: Path) -> Registry | None:
    """Return the registry, to be read alone; None where there is no store yet.

    `Registry.open` would make the store and the night's experiment in it.
    """
    uri = tracking_uri(tracking, work_dir)
    database = sqlite_file(uri)
    if database is not None and not database.is_file():
        return None
    prepare_process()
    from filelock import FileLock
    from mlflow import MlflowClient

    with lineage_errors("open the tracking store", uri):
        # Neither the experiment nor the lock is used by what reads.
        store = Store(MlflowClient(uri), uri, "", FileLock(work_dir / "mlflow.lock"))
    return Registry(store, tracking.registry_prefix)


def _held(registry: Registry | None, version: int | None, work_dir: Path) -> tuple[StudentState, int]:
    """Return what a version holds, and the bytes of its files where the night has to copy them."""
    if registry is None or version is None:
        return StudentState(), 0
    place = student_place(work_dir, version)
    if place.is_dir():
        return read_state(place), 0
    with tempfile.TemporaryDirectory() as scratch:
        files = registry.download("student", version, Path(scratch))
        return read_state(files), sum(path.stat().st_size for path in files.rglob("*") if path.is_file())
