"""What the inbox says about each document, and documents that are removed from it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.adapt_student.config import NightConfig
from pipelines.adapt_student.learn import replayed
from pipelines.adapt_student.plan import NIGHTS, RESULT, dry_run, open_plan
from pipelines.adapt_student.state import student_version
from pipelines.cli import app
from pipelines.inbox.interactions import InteractionStore
from pipelines.inbox.store import INBOX_FILE, InboxStore, removed_documents
from pipelines.lineage.run import Lineage
from pipelines.lineage.versions import DECISION_TAG
from pipelines.process import exclusive
from pipelines.settings import load
from tests.pipelines.adapt_student.factories import DEMO, deliver, document, held, promoted, state
from tests.pipelines.inbox.test_interactions import interaction

Open = Callable[..., Lineage]

MESSAGES = [{"role": "user", "content": "Where is held_back (0)?"}, {"role": "assistant", "content": "west"}]


def run(*arguments: object, code: int = 0) -> str:
    outcome = CliRunner().invoke(app, ["inbox", *map(str, arguments)], env={"COLUMNS": "200", "USER": "ada"})
    assert outcome.exit_code == code, outcome.output
    return outcome.stdout


@pytest.fixture
def inbox(open_run: Open, work_dir: Path, tmp_path: Path) -> tuple[Path, dict[str, str], Lineage]:
    """Return a work directory whose champion holds two documents, and ids by title."""
    learned, looked_up, old = document("learned"), document("looked_up"), document("old")
    new, held_back, silent = (
        document("new", supersedes=("old",)),
        document("held_back"),
        document("silent", questions=0),
    )
    noted, wrong, fresh = document("noted", questions=0), document("wrong"), document("fresh", route="memory")
    documents = [learned, looked_up, old, new, held_back, silent, noted, wrong, fresh]
    deliver(work_dir, documents)
    by_title = {each.title: each.id for each in documents}
    with InboxStore(work_dir / INBOX_FILE) as store:
        store.quarantine([wrong.id], "contradicts", "night-0002")
        store.note({noted.id: "no question was kept"})
    lineage = open_run()
    champion = (held(learned, "night-0001"), held(looked_up, "night-0001", "memory"), held(old, "night-0001", "memory"))
    promoted(lineage, state(*champion), tmp_path)
    for number, night, outcome, parent, name in (
        (1, "night-0001", "promoted", None, learned.id),
        (2, "night-0002", "held", 1, held_back.id),
    ):
        (work_dir / NIGHTS / night).mkdir(parents=True)
        tried = [{"id": name, "place": "weights"}]
        result = {"night": night, "outcome": outcome, "version": number, "parent": parent, "new": tried}
        (work_dir / NIGHTS / night / RESULT).write_text(json.dumps(result))
    return work_dir, by_title, lineage


def test_status_says_what_the_next_night_does_or_why_not(inbox: tuple[Path, dict[str, str], Lineage]) -> None:
    work_dir, ids, _ = inbox
    rows = {row["id"]: row for row in json.loads(run("list", "--json", "--work-dir", work_dir))}
    found = {title: (rows[name]["status"], rows[name]["reason"]) for title, name in ids.items()}
    assert found.pop("old") == ("superseded", f"by {ids['new']}; in memory until the next night")
    expected = {
        "learned": ("learned", "night-0001"),
        "looked_up": ("memory", "since night-0001"),
        "new": ("waiting", "next night"),
        "held_back": ("waiting", "held in night-0002"),
        "silent": ("waiting", "no questions"),
        "noted": ("waiting", "no question was kept"),
        "wrong": ("quarantined", "in night-0002: contradicts"),
        "fresh": ("waiting", "memory"),
    }
    assert {title: kind for title, (kind, _) in found.items()} == {title: kind for title, (kind, _) in expected.items()}
    assert all(word in found[title][1] for title, (_, word) in expected.items())
    waiting = run("list", "--status", "waiting", "--source", "[nh]*.txt", "--work-dir", work_dir).splitlines()
    assert re.search(r"3 documents \(3 waiting\)", waiting[0])
    assert len(waiting) == 1 + 2 * 3 + 1


def test_document_in_weights_that_are_not_in_use_is_said_to_be_there(
    inbox: tuple[Path, dict[str, str], Lineage],
) -> None:
    work_dir, ids, _ = inbox
    said = run("remove", ids["held_back"], "--because", "asked to", "--work-dir", work_dir)
    assert "The weights of version 2 learned it." in said
    assert f"preceptor forget {ids['held_back']} --because 'asked to' --config NIGHT.yaml" in said


def test_refused_file_is_listed_until_it_is_read_or_removed_from_the_list(
    inbox: tuple[Path, dict[str, str], Lineage], monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir, _, _ = inbox
    monkeypatch.chdir(work_dir.parent)
    Path("papers").mkdir()
    for name in ("a.key", "b.key", "c.md"):
        Path("papers", name).write_bytes(b"")
    Path("papers", "d.jsonl").write_text('{"text": "Whole."}\nbroken\n')

    def refused() -> list[str]:
        rows = json.loads(run("list", "--status", "refused", "--json", "--work-dir", work_dir))
        return [row["source"] for row in rows if row["reason"]]

    run("add", "papers", "gone.md", "--work-dir", work_dir)
    assert refused() == ["papers/a.key", "papers/b.key", "papers/c.md", "papers/d.jsonl: line 2"]
    assert "\n  2 .key: papers/a.key, papers/b.key: has no supported" in run("list", "--work-dir", work_dir)
    monkeypatch.chdir("papers")  # the same files by another path
    Path("c.md").write_text("Text.")
    Path("d.jsonl").write_text('{"text": "Whole."}\n')
    run("add", "c.md", "d.jsonl", "--work-dir", work_dir)
    run("add", "b.key", "--work-dir", work_dir, code=1)
    assert refused() == ["papers/a.key", "papers/b.key"]
    run("remove", "papers/a.key", "--because", "not ours", "--work-dir", work_dir)
    assert refused() == ["papers/b.key"]


def test_what_a_version_promoted_despite_the_gate_holds_is_no_longer_quarantined(
    inbox: tuple[Path, dict[str, str], Lineage], tmp_path: Path
) -> None:
    work_dir, ids, lineage = inbox
    with InboxStore(work_dir / INBOX_FILE) as store:
        wrong = store.find(ids["wrong"])
    refused = promoted(lineage, state(held(wrong, "night-0002")), tmp_path, 2.0)
    client, name = lineage.store.client, lineage.registry.name("student")
    client.set_model_version_tag(name, str(refused), DECISION_TAG, "hold")
    lineage.registry.promote("student", 1)
    command = ["promote", "student", str(refused), "--despite-the-gate", "--because", "we know", "--work-dir"]
    done = CliRunner().invoke(app, [*command, str(work_dir)])
    assert ids["wrong"] in done.output
    (row,) = json.loads(run("list", "--source", wrong.source, "--json", "--work-dir", work_dir))
    assert row["status"] == "learned"
    for word in ("contradicts", f"version {refused}", "despite the gate: we know"):
        assert word in row["reason"]


def test_removed_document_is_out_of_the_next_night_and_of_its_memory(
    inbox: tuple[Path, dict[str, str], Lineage],
) -> None:
    work_dir, ids, lineage = inbox
    config = load(DEMO, NightConfig, ["questions=null"])
    champion = student_version(lineage.registry, 1, work_dir)
    interrupted, _ = open_plan(config, work_dir, lineage.registry, champion, print)
    assert interrupted is not None
    chosen = [ids[title] for title in ("learned", "looked_up", "fresh")]
    removal = ("remove", *chosen, "--because", "asked to", "--work-dir", work_dir)
    with exclusive(work_dir):
        run(*removal, code=1)
    said = run(*removal)
    assert "version 1, 2 learned it" in said
    assert f"--because 'asked to' --config NIGHT.yaml --work-dir {shlex.quote(str(work_dir))}\n" in said
    assert said.count("leave it out of the memory") == 1
    assert removed_documents(work_dir) == set(chosen)
    assert not set(chosen) & {row["id"] for row in json.loads(run("list", "--json", "--work-dir", work_dir))}
    removed = json.loads(run("list", "--json", "--status", "removed", "--work-dir", work_dir))
    assert {row["id"] for row in removed} == set(chosen)
    assert all(re.fullmatch(r"by ada on [-0-9]{10}: asked to", row["reason"]) for row in removed)
    assert "removed by ada" in run("show", chosen[0], "--work-dir", work_dir)

    shown = dry_run(config, work_dir)
    plan, parent = open_plan(config, work_dir, lineage.registry, champion, print)
    assert shown.plan == plan != interrupted  # the interrupted night would have learned a removed document
    assert plan is not None
    assert plan.removed == tuple(sorted(chosen[:2]))
    assert not set(chosen) & {each.task.id for each in plan.documents}
    assert [entry.id for entry in parent.state.memory.entries] == [ids["old"]]
    assert replayed(parent.state, 9, 0) == ()
    again, resumed = open_plan(config, work_dir, lineage.registry, champion, print)
    assert (again, resumed.state) == (plan, parent.state)


def test_interactions_are_listed_shown_and_erased_and_what_they_teach_waits_for_a_person(
    inbox: tuple[Path, dict[str, str], Lineage],
) -> None:
    work_dir, ids, _ = inbox
    with InteractionStore(work_dir / INBOX_FILE) as store:
        before = {each.id for each in store.documents()}
        store.keep(interaction("chat-1", thumb="up"))
        store.keep(interaction("chat-2", "ben", correction="in the south", messages=MESSAGES))
    said = run("list", "--work-dir", work_dir)
    assert "Interactions: 2, see --status interaction." in said
    with InteractionStore(work_dir / INBOX_FILE) as store:
        (made,) = {each.id for each in store.documents()} - before
    assert f"quarantined: contradicts {ids['held_back']}" in said
    rows = json.loads(run("list", "--status", "interaction", "--json", "--work-dir", work_dir))
    assert [(row["id"], row["source"], row["document"]) for row in rows] == [
        ("chat-1", "chat of ann", ""),
        ("chat-2", "chat of ben", made),
    ]
    for word in ("with ben", "by version 3", "corrected: in the south", made, "1 email", "erased on"):
        assert word in rows[1]["reason"]
    assert "User: Where is held_back (0)?" in run("show", "chat-2", "--work-dir", work_dir)
    assert "back in the queue" in run("release", made, "--work-dir", work_dir)
    assert made in run("remove", "chat-2", "--because", "asked to", "--work-dir", work_dir)
    (row,) = json.loads(run("list", "--status", "interaction", "--json", "--work-dir", work_dir))
    assert row["id"] == "chat-1"


def test_forgotten_client_source_or_document_takes_all_that_came_of_it_along(
    inbox: tuple[Path, dict[str, str], Lineage],
) -> None:
    work_dir, ids, _ = inbox

    def forget(name: str, code: int = 0) -> str:
        command = ["forget", name, "--because", "asked to", "--work-dir", str(work_dir)]
        outcome = CliRunner().invoke(app, command, env={"COLUMNS": "200", "USER": "ada"})
        assert outcome.exit_code == code, outcome.output
        return outcome.stdout

    with InteractionStore(work_dir / INBOX_FILE) as store:
        store.keep(interaction("chat-1"))
        store.keep(interaction("chat-2", "ben", correction="in the south", messages=MESSAGES))
        store.keep(interaction("chat-3", "cy"))
        store.tend()
        ((made, _),) = [(name, why) for name, why in store.quarantined().items() if name != ids["wrong"]]
    assert f"Erased from the inbox: 1 document ({made}), 1 interaction." in forget("ben")
    forget("learned.txt", code=1)  # the champion's weights hold it, and no file says how the rest is learned again
    assert f"1 document ({ids['looked_up']}), 0 interactions." in forget(ids["looked_up"])
    assert "0 documents (none), 1 interaction." in forget("ann")
    forget("nobody", code=1)
    with InteractionStore(work_dir / INBOX_FILE) as store:
        assert [each.interaction.id for each in store.interactions()] == ["chat-3"]
        assert set(store.removed()) == {made, ids["learned"], ids["looked_up"]}
