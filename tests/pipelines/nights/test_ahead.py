"""What a night would find and cost: told without a model, and without a change to anything."""

from __future__ import annotations

import io
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from evaluation.errors import LineageError
from pipelines.config import read_config
from pipelines.inbox.documents import InboxDocument, Route
from pipelines.inbox.store import INBOX_FILE, InboxStore
from pipelines.lineage import Lineage
from pipelines.nights.ahead import Ahead, look_ahead
from pipelines.nights.config import NightConfig
from pipelines.nights.cost_table import next_command, night_cost_table
from pipelines.nights.costs import NightCost, estimate_night
from pipelines.nights.opening import open_plan, student_version, version_directory
from pipelines.nights.plan import PlannedDocument
from pipelines.nights.state import StudentState
from pipelines.nights.versions import version_files
from student.adapters import save_adapter
from tests.pipelines.factories import make_adapter
from tests.pipelines.nights.parts import document, held, state

ROOT = Path(__file__).resolve().parents[3]
DEMO = ROOT / "configs" / "nights-demo.yaml"
Open = Callable[..., Lineage]


def night(*overrides: str) -> NightConfig:
    small = ("writing={edits: 3, learned: 2}", "teacher.sampling.max_new_tokens=40", "probes=10", "replay.general=7")
    return read_config(DEMO, NightConfig, [*small, *overrides])


def deliver(work_dir: Path, *documents: InboxDocument) -> None:
    with InboxStore(work_dir / INBOX_FILE) as inbox:
        inbox.add(documents)


def snapshot(place: Path) -> dict[str, bytes]:
    """Return the files under a directory, those left out by which SQLite and its locks note who is reading."""
    own = ("-wal", "-shm", ".lock")
    found = [path for path in place.rglob("*") if path.is_file() and not path.name.endswith(own)]
    return {str(path.relative_to(place)): path.read_bytes() for path in found}


def ahead_of(work_dir: Path, config: NightConfig) -> Ahead:
    """Look ahead, and see that nothing was changed by it."""
    before = snapshot(work_dir)
    found = look_ahead(config, work_dir)
    assert snapshot(work_dir) == before
    return found


def promoted(lineage: Lineage, whole: StudentState, scratch: Path) -> int:
    """Register a student with a state as a night does, promote it, and return its version."""
    files = version_directory(save_adapter(make_adapter(0.5), scratch / "adapter"), whole, scratch)
    version = lineage.register("student", files, digest=whole.digest, tags={}, metrics={}).version
    return lineage.registry.promote("student", version).champion


def planned(each: InboxDocument, place: Route) -> PlannedDocument:
    return PlannedDocument(task=each.as_task(), place=place, because="a test")


def test_directory_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    found = look_ahead(night(), tmp_path / "nowhere")
    assert (found.parent, found.documents, found.cut_off) == (None, (), "")
    assert not (tmp_path / "nowhere").exists()
    cost = estimate_night(night(), found)
    assert {cost.self_edits, cost.lines, cost.try_steps, cost.night_steps, cost.night_answers} == {0}
    assert cost.bytes_on_disk == 0
    assert next_command(cost, DEMO, (), tmp_path).startswith("Nothing new is in the inbox. To add documents: ")


def test_inbox_is_told_by_route_with_what_waits_and_is_set_aside(tmp_path: Path) -> None:
    plain, volatile = document("a", questions=3), document("b", text="It is currently so.", questions=2)
    silent, wrong = document("c", questions=0), document("d")
    deliver(tmp_path, plain, volatile, silent, wrong)
    with InboxStore(tmp_path / INBOX_FILE) as inbox:
        inbox.set_aside([wrong.id], "it was wrong", "night-0001")
    found = ahead_of(tmp_path, night("questions=null"))
    assert [(each.task.id, each.place) for each in found.documents] == [(plain.id, "weights"), (volatile.id, "memory")]
    assert (found.waiting, found.aside, found.unasked) == (1, 1, ())
    written = ahead_of(tmp_path, night())
    assert [each.task.id for each in written.documents] == [plain.id, volatile.id, silent.id]
    assert (written.waiting, [each.id for each in written.unasked]) == (0, [silent.id])


def test_cost_counts_tries_the_nights_update_and_answers() -> None:
    config = night("student.update={epochs: 3, batch_size: 8}", "update={epochs: 2, batch_size: 16, max_steps: 1000}")
    known = state(held(document("x", questions=4), "night-0001"), held(document("y", questions=5), "night-0001"))
    new = document("a", questions=3), document("b", questions=2, route="memory")
    found = Ahead(
        parent=4,
        state=known,
        to_copy=1000,
        cut_off="",
        documents=(planned(new[0], "weights"), planned(new[1], "memory")),
        superseded={},
        unasked=(),
        waiting=0,
        aside=0,
    )
    cost = estimate_night(config, found)
    assert (cost.to_weights, cost.to_memory, cost.self_edits) == (1, 1, 3)
    # A self-edit of 40 tokens has 20 lines at most: 3 epochs of 3 steps, for each of 3 tries.
    assert cost.try_steps == 3 * 9
    # 2 of them are learned; beside them one line of each of two earlier documents, and 7 general questions.
    assert cost.lines == 2 * 20 + 2 + 7
    assert cost.night_steps == 2 * 4
    assert cost.try_answers == 3 * 3
    # Of the night's student and the champion: 4 and 5 on earlier documents, 3 and 2 on new ones, and the probes.
    assert cost.night_answers == 2 * (4 + 5 + 3 + 2 + 10) + 10
    assert cost.question_answers == 0
    assert cost.flops is not None
    assert cost.minutes is not None
    assert cost.bytes_on_disk is not None
    assert estimate_night(config, found._replace(to_copy=0)).bytes_on_disk == cost.bytes_on_disk - 1000
    assert NightCost.model_validate_json(cost.model_dump_json()) == cost
    forgetful = night("teacher.reward.retention_weight=1.0")
    assert estimate_night(forgetful, found).try_answers == 9 + 10 * (3 + 1)


def test_nothing_is_trained_where_all_stays_in_memory() -> None:
    found = _empty()._replace(documents=(planned(document("a", questions=2), "memory"),))
    cost = estimate_night(night(), found)
    assert (cost.self_edits, cost.lines, cost.night_updates, cost.training_tokens, cost.try_answers) == (0, 0, 0, 0, 0)
    assert cost.night_answers == 2 * (2 + 10) + 10
    assert cost.bytes_on_disk
    assert next_command(cost, Path("a b.yaml"), ["seed=3"], Path("work dir")) == (
        "To start it: preceptor adapt-student 'a b.yaml' --set seed=3 --work-dir 'work dir'"
    )


def test_composition_decides_what_is_trained_on_again() -> None:
    known = state(*(held(document(name), "night-0001") for name in "xyz"))
    found = _empty()._replace(state=known, documents=(planned(document("a"), "weights"),))

    def lines_with(composition: str, most: int) -> int:
        return estimate_night(night(f"composition={composition}", f"replay.documents={most}"), found).lines

    ways = [(composition, most) for composition in ("sequential", "joint", "merged") for most in (0, 2, 9)]
    whole = 2 * 20 + 7  # the new document's self-edits, and questions on general knowledge
    assert {way: lines_with(*way) - whole for way in ways} == {
        ("sequential", 0): 0, ("sequential", 2): 2, ("sequential", 9): 3,
        ("joint", 0): 3, ("joint", 2): 3, ("joint", 9): 3,
        ("merged", 0): 0, ("merged", 2): 0, ("merged", 9): 0,
    }  # fmt: skip
    replaced = found._replace(superseded={known.documents[0].task.id: found.documents[0].task.id})
    assert estimate_night(night("replay.documents=9"), replaced).lines == whole + 2


def test_documents_without_questions_are_asked_for_and_endpoints_are_told() -> None:
    bare = document("a", questions=0)
    found = _empty()._replace(documents=(planned(document("a"), "weights"),), unasked=(bare,))
    asking = "questions={prompt: micro-self-qa, samples: 5, most_questions: 6}"
    cost = estimate_night(night(asking), found)
    assert (cost.unasked, cost.questions) == (1, 6)
    assert cost.question_answers == 2 * 5 * 20  # every line of 5 completions, with the passage and without
    assert cost.try_answers == 3 * 6
    assert cost.endpoints == ()
    endpoint = "{base_url: 'http://127.0.0.1:1/v1', model: micro-teacher, price_input: 2.0, price_output: 10.0}"
    remote = f"teacher.sampling={{type: openai, max_new_tokens: 40, endpoint: {endpoint}}}"
    (asked,) = estimate_night(night(asking, remote), found).endpoints
    assert (asked.role, asked.calls) == ("teacher", 3 + 5)
    assert asked.cost == pytest.approx((2.0 * (asked.tokens - 8 * 40) + 10.0 * 8 * 40) / 1e6)


def test_table_shows_what_waits_at_80_columns_and_what_is_unknown() -> None:
    found = _empty()._replace(
        parent=3, cut_off="night-0009", documents=(planned(document("a"), "weights"),), waiting=2, aside=5
    )
    config = night("student.model=org/student", "device=cuda")
    out = io.StringIO()
    cost = estimate_night(config, found)
    Console(width=80, file=out).print(night_cost_table(cost, config, found))
    rows = {line[:24].strip(): line[24:].strip() for line in out.getvalue().splitlines()}
    assert max(map(len, out.getvalue().splitlines())) <= 80
    for name, value in {
        "New documents": "1", "to weights": "1", "to memory": "0", "Left without questions": "2", "Set aside": "5",
        "Self-edits written": "3", "Student updates": "4", "tries": "3", "the night's": f"1, on {cost.lines} lines",
        "Student optimizer steps": f"{cost.try_steps + cost.night_steps:,}",
        "Answers scored": f"{cost.try_answers + cost.night_answers:,}",
        "Time at 15 GFLOP/s": "unknown", "Bytes on disk": "unknown",
    }.items():  # fmt: skip
        assert rows[name].endswith(value), name
    assert rows["Begins with"] == "version 3 of the student"
    assert rows["Finishes"] == "night-0009, which was cut off"
    assert "size unknown" in rows["Student"]


def _empty() -> Ahead:
    return Ahead(
        parent=None, state=StudentState(), to_copy=0, cut_off="", documents=(), superseded={}, unasked=(), waiting=0,
        aside=0,
    )  # fmt: skip


# What the champion holds


def test_what_the_champion_holds_is_not_new_and_its_files_are_copied_once(
    open_run: Open, work_dir: Path, tmp_path: Path
) -> None:
    old, new = document("old"), document("new", supersedes=("old",))
    deliver(work_dir, old, new)
    lineage = open_run()
    whole = state(held(old, "night-0001"))
    number = promoted(lineage, whole, tmp_path)
    found = ahead_of(work_dir, night())
    assert (found.parent, found.state) == (number, whole)
    assert [each.task.id for each in found.documents] == [new.id]
    assert found.superseded == {old.id: new.id}
    experiments = {each.name for each in lineage.store.client.search_experiments()}
    assert "preceptor/adapt-student" not in experiments
    plan, champion = open_plan(night(), work_dir, lineage.registry, print)
    assert plan is not None
    assert (plan.documents, plan.superseded) == (found.documents, found.superseded)
    assert champion.directory is not None
    copied = sum(path.stat().st_size for path in champion.directory.rglob("*") if path.is_file())
    assert found.to_copy == copied > 0
    assert ahead_of(work_dir, night()).to_copy == 0


def test_dry_run_opens_no_model_and_changes_nothing_where_a_student_is_in_use(
    open_run: Open, work_dir: Path, tmp_path: Path
) -> None:
    deliver(work_dir, document("old"), document("new"))
    number = promoted(open_run(), state(held(document("old"), "night-0001")), tmp_path)
    before = snapshot(work_dir)
    told = [str(DEMO), "--set", "seed=3", "--work-dir", str(work_dir)]
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from pipelines.cli import app\n"
        f"outcome = CliRunner().invoke(app, ['adapt-student', *{told!r}, '--dry-run'], catch_exceptions=False)\n"
        "print(outcome.output)\n"
        "print([name for name in ('torch', 'transformers', 'prefect') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    *_, line, _, modules = done.stdout.splitlines()
    assert modules == "[]"
    assert line == f"To start it: preceptor adapt-student {shlex.join(told)}"
    rows = {row[:24].strip(): row[24:].strip() for row in done.stdout.splitlines()}
    assert (rows["Begins with"], rows["New documents"]) == (f"version {number} of the student", "1")
    assert snapshot(work_dir) == before


def test_night_that_was_cut_off_is_told_as_it_will_be_finished(open_run: Open, work_dir: Path) -> None:
    registry = open_run().registry
    deliver(work_dir, document("a"))
    plan, _ = open_plan(night(), work_dir, registry, print)
    assert plan is not None
    deliver(work_dir, document("b"))
    found = ahead_of(work_dir, night())
    assert (found.cut_off, found.documents, found.parent) == (plan.night, plan.documents, None)
    other = ahead_of(work_dir, night("seed=9"))
    assert (other.cut_off, len(other.documents)) == ("", 2)
    assert open_plan(night(), work_dir, registry, print)[0] == plan


def test_store_that_cannot_be_read_is_an_error_and_no_empty_night(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("no database, but long enough to be looked at" * 50)
    with pytest.raises(LineageError):
        look_ahead(night(), tmp_path)


def test_files_of_a_version_are_copied_once_and_whole(open_run: Open, work_dir: Path, tmp_path: Path) -> None:
    registry = open_run().registry
    place = work_dir / "students" / "1"
    with pytest.raises(LineageError):
        version_files(registry, "student", 1, place)
    assert list(place.parent.iterdir()) == []
    whole = state(held(document("a"), "night-0001"))
    number = promoted(open_run(), whole, tmp_path)
    assert version_files(registry, "student", number, place) == place
    (place / "mark").write_text("kept")
    version_files(registry, "student", number, place)
    assert (place / "mark").is_file()
    assert [path.name for path in place.parent.iterdir()] == ["1"]
    assert student_version(registry, number, work_dir).state == whole
