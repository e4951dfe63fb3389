"""What a night would do: shown without a model, and without a change to anything."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from evaluation.common.errors import ConfigError, LineageError
from pipelines.adapt_student.config import NightConfig
from pipelines.adapt_student.flow import run_night
from pipelines.adapt_student.plan import (
    QUARANTINED,
    WITHOUT_QUESTIONS,
    DryRun,
    dry_run,
    open_plan,
)
from pipelines.adapt_student.state import BASE_STUDENT, student_version
from pipelines.checks import check, findings_of
from pipelines.inbox.store import INBOX_FILE, InboxStore
from pipelines.lineage.run import Lineage
from pipelines.process import preceptor
from pipelines.settings import load
from tests.pipelines.adapt_student.factories import DEMO, deliver, document, held, promoted, state

Open = Callable[..., Lineage]
ROOT = DEMO.parents[1]


def night(*overrides: str) -> NightConfig:
    small = ("writing={edits: 3, learned: 2}", "teacher.sampling.max_new_tokens=40", "probes=10", "replay.general=7")
    return load(DEMO, NightConfig, [*small, *overrides])


def snapshot(place: Path) -> dict[str, bytes]:
    """Return the files under a directory, without those by which SQLite and its locks record who is reading."""
    own = ("-wal", "-shm", ".lock")
    found = [path for path in place.rglob("*") if path.is_file() and not path.name.endswith(own)]
    return {str(path.relative_to(place)): path.read_bytes() for path in found}


def shown(work_dir: Path, config: NightConfig) -> DryRun:
    """Return a dry run that changed nothing."""
    before = snapshot(work_dir)
    found = dry_run(config, work_dir)
    assert snapshot(work_dir) == before
    return found


def test_missing_directory_is_not_created(tmp_path: Path) -> None:
    found = dry_run(night(), tmp_path / "nowhere")
    assert (found.plan.parent, found.plan.documents, found.interrupted, found.stages) == (None, (), False, ())
    assert not (tmp_path / "nowhere").exists()


def test_inbox_is_shown_by_route_with_what_waits_and_is_quarantined(tmp_path: Path) -> None:
    plain, volatile = document("a", questions=3), document("b", text="It is currently so.", questions=2)
    silent, wrong = document("c", questions=0), document("d")
    deliver(tmp_path, [plain, volatile, silent, wrong])
    with InboxStore(tmp_path / INBOX_FILE) as inbox:
        inbox.quarantine([wrong.id], "it was wrong", "night-0001")
    found = shown(tmp_path, night("questions=null"))
    routes = [(each.task.id, each.place) for each in found.plan.documents]
    assert routes == [(plain.id, "weights"), (volatile.id, "memory")]
    assert (found.plan.without_questions, found.unasked) == ((silent.id,), 0)
    assert found.waiting == {silent.id: WITHOUT_QUESTIONS, wrong.id: QUARANTINED}
    written = shown(tmp_path, night())
    assert [each.task.id for each in written.plan.documents] == [plain.id, volatile.id, silent.id]
    assert (written.plan.without_questions, written.unasked) == ((), 1)


def test_what_the_champion_holds_is_not_new_and_its_files_are_copied_once(
    open_run: Open, work_dir: Path, tmp_path: Path
) -> None:
    old, new = document("old"), document("new", supersedes=("old",))
    deliver(work_dir, [old, new])
    lineage = open_run()
    whole = state(held(old, "night-0001"))
    number = promoted(lineage, whole, tmp_path)
    found = shown(work_dir, night()).plan
    assert (found.parent, found.superseded) == (number, {old.id: new.id})
    assert [each.task.id for each in found.documents] == [new.id]
    experiments = {each.name for each in lineage.store.client.search_experiments()}
    assert "preceptor/adapt-student" not in experiments
    champion = student_version(lineage.registry, number, work_dir)
    plan, parent = open_plan(night(), work_dir, lineage.registry, champion, print)
    assert (plan, parent) == (found, champion)
    assert champion.directory is not None
    (champion.directory / "mark").write_text("kept")
    assert student_version(lineage.registry, number, work_dir).state == whole
    assert (champion.directory / "mark").is_file()


def test_command_opens_no_model_and_changes_nothing(open_run: Open, work_dir: Path, tmp_path: Path) -> None:
    deliver(work_dir, [document("old"), document("new")])
    number = promoted(open_run(), state(held(document("old"), "night-0001")), tmp_path)
    before = snapshot(work_dir)
    arguments = [str(DEMO), "--set", "seed=3", "--work-dir", str(work_dir)]
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from pipelines.cli import app\n"
        f"outcome = CliRunner().invoke(app, ['adapt-student', *{arguments!r}, '--dry-run'], catch_exceptions=False)\n"
        "print(outcome.output)\n"
        "print([name for name in ('transformers', 'prefect') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    *_, line, _, modules = done.stdout.splitlines()
    assert modules == "[]"
    assert line == f"To start it: {preceptor('adapt-student', *arguments)}"
    rows = {row[:24].strip(): row[24:].strip() for row in done.stdout.splitlines()}
    assert (rows["Self-edits sampled"], rows["Student updates"]) == ("6", "7")
    assert f"version {number} of the student" in done.stdout
    assert snapshot(work_dir) == before


def test_rollback_of_a_damaged_version_works(
    open_run: Open, work_dir: Path, tmp_path: Path, preceptor: Callable[..., str]
) -> None:
    deliver(work_dir, [document("a"), document("b")])
    lineage, whole = open_run(), [held(document(name), f"night-{name}") for name in "ab"]
    for i in range(2):
        assert promoted(lineage, state(*whole[: i + 1]), tmp_path, i + 1.0) == i + 1
    for stored in (work_dir / "artifacts").rglob("adapter_model.safetensors"):
        stored.write_bytes(b"damaged")
    said = preceptor("rollback", "--because", "its files are damaged")
    assert "not quarantined" in said
    assert "Version 1 of the student is the champion again" in said


@pytest.mark.parametrize("left", ["gone", "empty", "without versions"])
def test_champion_that_was_lost_with_its_store_stops_the_night(
    open_run: Open, work_dir: Path, tmp_path: Path, empty_store: Path, left: str
) -> None:
    deliver(work_dir, [document("a")])
    promoted(open_run(), state(held(document("b"), "night-0001")), tmp_path)
    place = Path(shutil.copytree(work_dir, tmp_path / "lost", ignore=shutil.ignore_patterns("mlflow.db*")))
    store = place / "mlflow.db"
    if left == "empty":
        store.touch()
    elif left == "without versions":
        shutil.copy(empty_store, store)
    for _ in range(2):
        with pytest.raises(ConfigError, match="preceptor restore"):
            run_night(night(), place, "a-flow-run", Console(file=io.StringIO()))
    with pytest.raises(ConfigError, match="has no champion"):
        dry_run(night(), place)
    if left in ("gone", "empty"):  # refused before a server starts, and no other store is made
        with pytest.raises(ConfigError, match="has no champion"):
            check(night(), place, findings_of)
        assert store.exists() == (left == "empty")


def test_interrupted_night_is_shown_as_it_will_be_finished(open_run: Open, work_dir: Path) -> None:
    registry = open_run().registry
    deliver(work_dir, [document("a")])
    plan, _ = open_plan(night(), work_dir, registry, BASE_STUDENT, print)
    assert plan is not None
    deliver(work_dir, [document("b")])
    found = shown(work_dir, night())
    assert (found.interrupted, found.plan) == (True, plan)
    other = shown(work_dir, night("seed=9"))
    assert (other.interrupted, len(other.plan.documents)) == (False, 2)
    assert open_plan(night(), work_dir, registry, BASE_STUDENT, print)[0] == plan


def test_unreadable_store_is_an_error_and_no_empty_night(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("no database, but long enough to be looked at" * 50)
    with pytest.raises(LineageError):
        dry_run(night(), tmp_path)


def test_the_update_of_a_night_has_no_single_passage_to_distil() -> None:
    with pytest.raises(ConfigError, match="several passages"):
        night("update.objective=context_distillation")
