"""Promotions and rollbacks that end at any of their writes, completed by the same command or by the next one."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from pipelines.adapt_student.plan import read_inbox
from pipelines.cli import app
from pipelines.inbox.store import InboxStore
from pipelines.lineage import versions
from pipelines.lineage.registry import Registry
from pipelines.lineage.run import Lineage
from pipelines.settings import TrackingConfig
from tests.pipelines.adapt_student.factories import deliver, document, held, promoted, state

Open = Callable[..., Lineage]
DOCUMENTS = [document(name) for name in "abc"]


class Killed(BaseException):
    """Raised in place of a write, as a kill would end the process there."""


def kill_at(monkeypatch: pytest.MonkeyPatch, number: int) -> list[str]:
    """Have one of the writes of a move, by its number, raise `Killed`; return the names of those that were made."""
    made: list[str] = []

    def counted(place: Any, name: str) -> None:
        write = getattr(place, name)

        def once(*given: Any, **named: Any) -> Any:
            if len(made) == number:
                raise Killed
            made.append(name)
            return write(*given, **named)

        monkeypatch.setattr(place, name, once)

    for name in ("set_model_version_tag", "log_model_artifact", "update_model_version", "set_registered_model_alias"):
        counted(MlflowClient, name)
    counted(MlflowClient, "delete_registered_model_alias")
    counted(InboxStore, "quarantine")
    counted(versions, "write_move")
    counted(versions, "note_champion")
    return made


@pytest.fixture
def three_nights(open_run: Open, work_dir: Path, tmp_path: Path) -> Path:
    """A work directory with three versions of the student, each with one document more."""
    deliver(work_dir, DOCUMENTS)
    lineage, whole = open_run(), [held(each, f"night-{i}") for i, each in enumerate(DOCUMENTS)]
    for i in range(3):
        assert promoted(lineage, state(*whole[: i + 1]), tmp_path, i + 1.0) == i + 1
    return work_dir


def everything(work_dir: Path) -> dict[str, Any]:
    """Return all that a move changes, without its time."""
    found = Registry.open(TrackingConfig(), work_dir, complete=False)
    history = [record._replace(rolled_back=str(bool(record.rolled_back))) for record in found.history("student")]
    promoted_at = [bool(found.tags("student", each.version).get("preceptor.promoted_at")) for each in history]
    return {
        "aliases": found.aliases("student"),
        "history": history,
        "promoted": promoted_at,
        "inbox": read_inbox(work_dir),
        "known": versions.champions(work_dir),
        "open": versions.read_move(work_dir),
    }


def run(work_dir: Path, *arguments: str) -> str:
    done = CliRunner().invoke(app, [*arguments, "--work-dir", str(work_dir)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def killed(monkeypatch: pytest.MonkeyPatch, number: int, work_dir: Path, *arguments: str) -> None:
    with monkeypatch.context() as patch:
        kill_at(patch, number)
        with pytest.raises(Killed):
            run(work_dir, *arguments)


ROLLBACK, PROMOTE = ("rollback", "--because", "It forgot."), ("promote", "student", "1")


@pytest.mark.parametrize(("command", "writes"), [(ROLLBACK, 8), (PROMOTE, 6)], ids=["rollback", "promote"])
def test_move_that_ends_at_any_write_is_completed_by_the_same_command_or_by_any_other(
    three_nights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], writes: int
) -> None:
    copies = (Path(shutil.copytree(three_nights, tmp_path / f"copy {i}")) for i in itertools.count())
    before, first = everything(next(copies)), next(copies)
    with monkeypatch.context() as patch:
        made = kill_at(patch, -1)
        said = run(first, *command).replace(str(first), "")
    undisturbed = everything(first)
    assert undisturbed != before
    assert undisturbed["open"] is None
    assert len(made) == writes, made
    for number in range(writes):
        for following in (command, ("inbox", "list")):
            here = next(copies)
            killed(monkeypatch, number, here, *command)
            again = run(here, *following).replace(str(here), "")
            assert again == said or following != command
            assert everything(here) == (before if number == 0 and following != command else undisturbed)


def test_interrupted_move_is_dropped_when_the_champion_was_moved_since(
    three_nights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(monkeypatch, 1, three_nights, *ROLLBACK)
    found = Registry.open(TrackingConfig(), three_nights, complete=False)
    found._store.client.set_registered_model_alias("preceptor-student", "champion", "1")  # from elsewhere
    run(three_nights, "versions")
    assert found.aliases("student")["champion"] == 1
    assert versions.read_move(three_nights) is None
    assert not read_inbox(three_nights).quarantined
