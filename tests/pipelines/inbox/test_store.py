from __future__ import annotations

import multiprocessing
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.common.errors import InputError
from evaluation.tasks import Question
from pipelines.inbox.documents import InboxDocument
from pipelines.inbox.intake import Intake
from pipelines.inbox.store import Arrival, Claim, InboxError, InboxStore, newest, unknown_targets
from tests.pipelines.inbox.files import document

_SCHEMA_1 = """
CREATE TABLE documents (
    id TEXT PRIMARY KEY, place INTEGER NOT NULL UNIQUE, arrived TEXT NOT NULL, content TEXT NOT NULL
);
CREATE TABLE claims (
    document TEXT NOT NULL REFERENCES documents (id), whole TEXT NOT NULL, target TEXT NOT NULL,
    place INTEGER NOT NULL UNIQUE, PRIMARY KEY (document, whole, target)
);
CREATE TABLE aside (
    document TEXT PRIMARY KEY REFERENCES documents (id), reason TEXT NOT NULL, night TEXT NOT NULL, since TEXT NOT NULL
);
PRAGMA user_version = 1;
"""
ASKED = Question(question="Who nests there?", answer="cranes")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[InboxStore]:
    with InboxStore(tmp_path / "inbox.db") as opened:
        yield opened


def test_documents_come_back_in_order_and_twice_is_once(store: InboxStore, tmp_path: Path) -> None:
    first, second, third = (document(f"Text {i}.", title="T", questions=[ASKED]) for i in range(3))
    assert store.add([second, first, second]) == {second.id: True, first.id: True}
    assert store.add([first, third]) == {first.id: False, third.id: True}
    with InboxStore(tmp_path / "inbox.db") as again:
        assert again.documents() == (second, first, third)
        assert again.find(first.id) == first


def _add(path: str, worker: int, count: int) -> None:
    """Add documents one by one: half are the worker's own, half all workers add."""
    with InboxStore(Path(path)) as store:
        for i in range(count):
            store.add([document(f"Own {worker} {i}."), document(f"Shared {i}.", supersedes=["nobody"])])
            if i % 10 == 0:
                name = document(f"Shared {i}.").id
                store.put_questions(name, [ASKED])
                store.quarantine([name], f"by {worker}", "night")


def test_concurrent_processes_lose_and_duplicate_nothing(tmp_path: Path) -> None:
    path, workers, count = tmp_path / "inbox.db", 4, 60
    spawn = multiprocessing.get_context("spawn")
    started = [spawn.Process(target=_add, args=(str(path), worker, count)) for worker in range(workers)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0] * workers
    with InboxStore(path) as store:
        found = [each.text for each in store.documents()]
        own = {f"Own {worker} {i}." for worker in range(workers) for i in range(count)}
        shared = {f"Shared {i}." for i in range(count)}
        assert len(found) == len(own) + len(shared)
        assert set(found) == own | shared
        for worker in range(workers):
            mine = [text for text in found if text.startswith(f"Own {worker} ")]
            assert mine == [f"Own {worker} {i}." for i in range(count)]
        assert [each.text for each in store.documents() if each.questions] == [
            text for text in found if text in {f"Shared {i}." for i in range(0, count, 10)}
        ]
        assert len(store.quarantined()) == count / 10
        assert store.unknown_targets() == {document(text).id: ("nobody",) for text in shared}


def test_failed_delivery_adds_nothing(store: InboxStore) -> None:
    unfit = document().model_copy(update={"supersedes": (None,)})
    with pytest.raises(InboxError, match="could not write"):
        store.add([document("One."), unfit])
    assert store.documents() == ()
    store.add([document("One.")])
    assert len(store.documents()) == 1


def test_damaged_files_and_documents_are_refused(store: InboxStore, tmp_path: Path) -> None:
    (tmp_path / "other.db").write_text("not a database, but long enough to be looked at" * 50)
    with pytest.raises(InboxError, match="could not open"):
        InboxStore(tmp_path / "other.db")
    store.add([document()])
    with sqlite3.connect(tmp_path / "inbox.db") as db:
        db.execute("UPDATE documents SET content = '{}'")
    with pytest.raises(InboxError, match="invalid document"):
        store.documents()


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("documents", "content = replace(content, 'ne.', 'no.')"),
        ("documents", "content = CAST(X'ff' || content AS TEXT)"),
        ("documents", "place = place + 7"),
        ("claims", "target = 'c.md'"),
        ("files", "state = 1 - state"),
        ("aside", "reason = 'none'"),
        ("notes", "reason = 'none'"),
        ("removed", "source = 'x'"),
    ],
)
def test_changed_record_is_refused(store: InboxStore, tmp_path: Path, table: str, change: str) -> None:
    one, two, three = document("One.", source="a.md"), document("Two.", supersedes=["a.md"]), document("Three.")
    store.add([one, two, three], {"a.md": [one.id]})
    store.quarantine([one.id], "a reason", "night-0001")
    store.note({two.id: "a note"})
    store.remove([three.id], "a reason", "me")
    readers = (store.documents, store.superseded, store.quarantined, store.notes, store.removed)
    assert all(read() is not None for read in readers)
    with closing(sqlite3.connect(tmp_path / "inbox.db")) as db, db:
        db.execute(f"UPDATE {table} SET {change} WHERE rowid = (SELECT MIN(rowid) FROM {table})")
    refused = 0
    for read in readers:
        try:
            read()
        except InboxError as error:
            refused += "invalid" in str(error)
    assert refused
    if table == "documents":
        with pytest.raises(InboxError):
            store.put_questions(one.id, [])


# Supersession


def ids(*documents: InboxDocument) -> list[str]:
    return [each.id for each in documents]


def test_replacements_by_id_name_and_source_are_followed_to_the_newest(store: InboxStore) -> None:
    one = document("One.", source="a.md")
    two = document("Two.", source="b.md", name="kb-2", supersedes=["a.md"])
    three = document("Three.", source="c.md", supersedes=["kb-2"])
    four = document("Four.", source="d.md", supersedes=[three.id, "never-there"])
    store.add([one])
    store.add([two, three])
    assert store.superseded() == {one.id: three.id, two.id: three.id}
    store.add([four])
    assert store.superseded() == {one.id: four.id, two.id: four.id, three.id: four.id}
    assert store.unknown_targets() == {four.id: ("never-there",)}


def test_later_arrival_under_a_superseded_source_is_valid(store: InboxStore) -> None:
    old, new = document("Old.", source="a.md"), document("New.", source="b.md", supersedes=["a.md"])
    later = document("Later.", source="a.md")
    store.add([old, new])
    store.add([later])
    assert store.superseded() == {old.id: new.id}


def test_mutual_replacement_leaves_one_valid(store: InboxStore) -> None:
    one, two = document("One.", source="a", supersedes=["b"]), document("Two.", source="b", supersedes=["a"])
    store.add([one, two])
    assert store.superseded() == {one.id: two.id}


def parts(whole: str, *texts: str, supersedes: str | None = None) -> list[InboxDocument]:
    targets = [supersedes] if supersedes else []
    return [document(text, source="book", whole=whole, title=text[:5], supersedes=targets) for text in texts]


def test_unchanged_section_of_a_new_version_stays_valid(store: InboxStore) -> None:
    first = parts("w1", "Fees are 2.", "Days are 9.")
    second = parts("w2", "Fees are 3.", "Days are 9.", supersedes="book")
    third = parts("w3", "Fees are 2.", "Days are 8.", supersedes="book")
    store.add(first)
    assert store.add(second) == {second[0].id: True, second[1].id: False}
    assert store.superseded() == {first[0].id: second[0].id}
    store.add(second)
    store.add(first)
    assert store.superseded() == {first[0].id: second[0].id}
    store.add(third)  # brings a section of the first version back
    assert store.superseded() == {second[0].id: third[0].id, second[1].id: third[1].id}


_SECTIONS = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4, unique=True)


@given(st.lists(st.tuples(st.sampled_from(["one.md", "two.md"]), _SECTIONS), min_size=1, max_size=10))
@settings(deadline=None, max_examples=40)
def test_after_any_edits_exactly_what_the_files_hold_is_in_force(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[str, list[str]]]
) -> None:
    root = tmp_path_factory.mktemp("edits")
    with InboxStore(root / "inbox.db") as store:
        held: dict[str, set[str]] = {}
        for file, sections in edits:
            (root / file).write_text("# Book\n\n" + "".join(f"## {each}\n\n{each * 150}\n\n" for each in sections))
            intake = Intake(root=root, most_characters=200)
            intake.add_content((root / file).read_bytes(), file, "markdown", file, file)
            store.add(intake.documents, intake.contents)
            held[file] = set(ids(*intake.documents))
            assert len(held[file]) == len(sections)
            superseded = store.superseded()
            in_force = {each.id for each in store.documents() if each.id not in superseded}
            assert in_force == set().union(*held.values())
            assert set(superseded.values()) <= in_force


def test_file_and_claims_supersede_together(store: InboxStore) -> None:
    old, new, other = document("Old.", source="a.md"), document("New.", source="a.md"), document("Two.", source="b.md")
    notice = document("Notice.", source="c.md", supersedes=["a.md"])
    store.add([old, notice], {"a.md": [old.id], "c.md": [notice.id]})
    assert store.superseded() == {old.id: notice.id}
    store.add([notice, old], {"a.md": [old.id], "c.md": [notice.id]})  # nothing has changed
    assert store.superseded() == {old.id: notice.id}
    store.add([new], {"a.md": [new.id]})  # an edit is a later arrival
    assert store.superseded() == {old.id: notice.id}
    store.add([old], {"a.md": [old.id]})  # and so is its reversal
    assert store.superseded() == {new.id: old.id}
    store.add([other], {"a.md": [other.id]}, keep_both=True)
    assert store.superseded() == {new.id: other.id}
    store.add([other], {"a.md": [other.id]}, keep_both=True)  # undoes the change before
    assert store.superseded() == {}


def test_file_of_schema_1_keeps_its_data_and_its_files_supersede(tmp_path: Path) -> None:
    old, new = document("27 days.", source="vac.md"), document("30 days.", source="vac.md")
    row = document("Row.", source="rows.jsonl")
    with sqlite3.connect(tmp_path / "inbox.db") as db:
        db.executescript(_SCHEMA_1)
        for place, each in enumerate((old, row), start=1):
            db.execute("INSERT INTO documents VALUES (?, ?, '', ?)", (each.id, place, each.model_dump_json()))
        db.execute("INSERT INTO claims VALUES (?, ?, 'x', 3)", (row.id, row.id))
        db.execute("INSERT INTO aside VALUES (?, 'wrong', 'night-0001', '')", (row.id,))
    with InboxStore(tmp_path / "inbox.db") as store:
        assert store.documents() == (old, row)
        assert store.quarantined() == {row.id: ("wrong", "night-0001")}
        assert store.unknown_targets() == {row.id: ("x",)}
        store.add([new], {"vac.md": [new.id], "rows.jsonl": [new.id]})
        assert store.superseded() == {old.id: new.id}
        store.note({new.id: "no question was kept"})
        store.note({new.id: "known without the passage", row.id: "first"})
        assert store.notes() == {new.id: "known without the passage", row.id: "first"}
    with InboxStore(tmp_path / "inbox.db") as again:
        assert again.notes() == {new.id: "known without the passage", row.id: "first"}


def test_removed_document_leaves_a_record_and_no_text(store: InboxStore, tmp_path: Path) -> None:
    old = document("Old words.", source="a.md", title="Zanzibar", questions=[ASKED])
    new = document("Xylophone words.", source="a.md", title="Quagga", questions=[ASKED])
    store.add([old], {"a.md": [old.id]})
    store.add([new], {"a.md": [new.id]})
    store.quarantine([new.id], "wrong", "night-1")
    store.note({new.id: "waits"})
    with pytest.raises(InputError, match="'doc-x'"):
        store.remove([new.id, "doc-x"], "by mistake", "Ada")
    with InboxStore(store.path) as reader, reader._reading() as db:
        db.execute("BEGIN")
        db.execute("SELECT * FROM documents").fetchone()
        store._db.execute("PRAGMA busy_timeout = 10")
        with pytest.raises(InboxError, match="could not erase"):
            store.remove([new.id], "asked to", "Ada")
        db.execute("COMMIT")
    store.remove([new.id], "again", "Bob")  # completes it
    (record,) = store.removed().values()
    assert (record.source, record.reason, record.who) == ("a.md", "asked to", "Ada")
    files = b"".join(path.read_bytes() for path in tmp_path.glob("inbox.db*"))
    assert b"Zanzibar" in files
    assert b"Xylophone" not in files
    assert b"Quagga" not in files
    assert (store.documents(), store.quarantined(), store.notes()) == ((old,), {}, {})
    assert store.superseded() == {old.id: new.id}  # removing a version brings no earlier one back
    assert store.add([new], {"a.md": [new.id]}) == {new.id: False}
    assert store.documents() == (old,)
    store.add([old], {"a.md": [old.id]})
    assert store.superseded() == {new.id: old.id}


# Quarantine


def test_quarantined_until_released(store: InboxStore) -> None:
    one, two = document("One."), document("Two.")
    store.add([one, two])
    store.quarantine(ids(one, two), "forgot too much", "night-1")
    store.quarantine(ids(two), "worse", "night-2")
    assert store.quarantined() == {one.id: ("forgot too much", "night-1"), two.id: ("worse", "night-2")}
    assert store.release(ids(one, one)) == (one.id,)
    assert store.release(ids(one, two)) == (two.id,)
    assert store.quarantined() == {}


def test_unknown_ids_are_refused_and_change_nothing(store: InboxStore) -> None:
    one = document("One.")
    store.add([one])
    for act in (
        lambda: store.quarantine([one.id, "doc-x"], "bad", "n"),
        lambda: store.release([one.id, "doc-x"]),
        lambda: store.put_questions("doc-x", [ASKED]),
        lambda: store.find("doc-x"),
    ):
        with pytest.raises(InputError, match=r"'doc-x'.*preceptor inbox list"):
            act()
    assert store.quarantined() == {}


def test_questions_are_put_in_place_and_change_no_id(store: InboxStore) -> None:
    store.add([document()])
    first, second, third = (Question(question=f"Who nests there ({i})?", answer="cranes") for i in range(3))
    store.put_questions(document().id, [first, second, third])
    (changed,) = store.documents()
    assert (changed.id, changed.questions, changed.held_out_questions) == (document().id, (first, third), (second,))


_NAMES = st.sampled_from("abcdef")


@st.composite
def _histories(draw: st.DrawFn) -> tuple[list[Arrival], list[Claim]]:
    names = draw(st.lists(_NAMES, min_size=1, max_size=6, unique=True))
    claimants = st.tuples(
        st.sampled_from(names), st.sampled_from(["w1", "w2", ""]), st.sampled_from([*"abcdef", "s", "t"])
    )
    raw = draw(st.lists(claimants, max_size=8, unique=True))
    places = draw(st.permutations(range(1, len(names) + len(raw) + 1)))
    arrivals = [Arrival(name, "", "", draw(st.sampled_from("st")), places[i]) for i, name in enumerate(names)]
    claims = [Claim(d, w or d, t, places[len(names) + i]) for i, (d, w, t) in enumerate(raw)]
    return arrivals, sorted(claims, key=lambda claim: claim.position)


@given(_histories())
def test_chains_end_at_valid_documents(history: tuple[list[Arrival], list[Claim]]) -> None:
    arrivals, claims = history
    found = newest(arrivals, claims)
    assert not set(found.values()) & set(found)
    assert set(found.values()) <= {claim.document for claim in claims}
    if arrivals:
        assert len(found) < len(arrivals)


def test_latest_whole_and_in_it_the_same_title_replaces_a_document() -> None:
    arrivals = [
        Arrival("old", "Fees", "", "book", 1),
        Arrival("two-a", "Intro", "", "book", 2),
        Arrival("two-b", "Fees", "", "book", 3),
        Arrival("two-c", "End", "", "book", 4),
    ]
    claims = [Claim(name, "w2", "book", i) for i, name in enumerate(("two-a", "two-b", "two-c"), start=5)]
    assert newest(arrivals, claims) == {"old": "two-b"}
    later = [*arrivals, Arrival("three", "All", "", "book", 8)]
    assert set(newest(later, [*claims, Claim("three", "w3", "book", 9)]).values()) == {"three"}


def test_target_within_the_own_whole_is_unknown() -> None:
    arrivals = [Arrival("a", "", "", "book", 1), Arrival("b", "", "", "book", 2)]
    claims = [Claim("a", "w", "book", 3), Claim("b", "w", "nowhere", 4)]
    assert newest(arrivals, claims) == {}
    assert unknown_targets(arrivals, claims) == {"a": ("book",), "b": ("nowhere",)}


def test_same_content_of_several_files_is_one_document(store: InboxStore) -> None:
    one, two, three = (document("Nine berths.", source=f"{name}/pier.md") for name in "abc")
    other = document("Nine berths.", source="wiki")
    given, named = [one, two, three, other], {one.id, two.id, three.id}
    same = store.copies(given, named)
    assert same == {two.id: one.id, three.id: one.id}
    files = {each.source: [each.id] for each in given[:3]}
    assert store.add(given, files, same=same) == {one.id: True, other.id: True}
    assert store.paths(one.id) == ["a/pier.md", "b/pier.md", "c/pier.md"]
    assert store.copies([two], named) == {two.id: one.id}

    changed = document("Ten berths.", source="a/pier.md")
    store.add([changed], {"a/pier.md": [changed.id]})
    assert store.superseded() == {}  # the others hold it still
    by_path = document("No berths.", supersedes=["c/pier.md"])
    store.add([by_path])
    assert store.superseded() == {one.id: by_path.id}
    assert store.copies([two], named) == {two.id: other.id}  # what is superseded stands for nothing
