"""A writer that fails at random and a process that is killed: the corpus is the one that nobody disturbed."""

from __future__ import annotations

import json
import random
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.faults import Fault, FaultyServer
from tests.flows.settings import Child
from tests.pipelines.write_corpus.factories import endpoint_config, write_documents, written

pytestmark = [pytest.mark.flow, pytest.mark.timeout(1800)]
FAULTS: tuple[Fault, ...] = ("429", "500", "truncated", "cut", "not json", "empty", "no text", "reset")


class Made(NamedTuple):
    files: dict[str, bytes]
    replies: int
    """In the ledger."""
    answered: int
    """Requests that the server answered without a fault."""
    kills: int


def make(place: Path, documents: int, tokens: int, kills: int, share: float) -> Made:
    """Write a corpus with a share of faults and so many kills, spread over the requests that it takes."""
    place.mkdir()
    source, out, work_dir = write_documents(place / "documents.jsonl", documents), place / "corpus", place / "work"
    with FaultyServer() as server:
        server.replies = written
        rng = random.Random(7)
        drawn: list[Any] = [rng.choice(FAULTS) if rng.random() < share else None for _ in range(100 * documents)]
        server.fail_next(drawn)
        arguments = [endpoint_config(place / "config.yaml", server), source, out, work_dir, str(tokens)]
        command = [sys.executable, "-m", "tests.pipelines.write_corpus.child", *map(str, arguments)]
        done = 0
        for step in range(kills):
            child = Child(command, place / "home")
            goal = len(server.seen) + rng.randrange(1, 1 + documents) if step else 2
            child.wait_until(lambda goal=goal: len(server.seen) >= goal or out.exists())  # type: ignore[misc]
            assert not out.exists(), "killed too late to show anything"
            child.kill()
            done += 1
            assert not out.exists()
        last = Child(command, place / "home")
        try:
            assert last.wait() == 0, last.output[-3000:]
        finally:
            last.kill()
        answered = sum(seen.fault is None for seen in server.seen)
    with closing(sqlite3.connect(work_dir / "endpoints.sqlite")) as db:
        (replies,) = db.execute("SELECT COUNT(*) FROM replies").fetchone()
    found = sorted(path for folder in ("data", "jsonl", "questions") for path in (out / folder).iterdir())
    files = {path.relative_to(out).as_posix(): path.read_bytes() for path in found}
    return Made(files, replies, answered, done)


def check(disturbed: Made, whole: Made) -> None:
    assert disturbed.files == whole.files
    rows = [
        json.loads(line) for name, content in whole.files.items() if "jsonl/" in name for line in content.splitlines()
    ]
    assert len({row["id"] for row in rows}) == len(rows)
    assert len({row["text"] for row in rows}) == len(rows)
    assert disturbed.replies == whole.replies == whole.answered
    # What was in flight at a kill is asked again: at most as much as runs at once.
    assert disturbed.answered - disturbed.replies <= 8 * disturbed.kills


def test_corpus_under_faults_and_kills_is_the_undisturbed_one(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole", 24, 3_000, 0, 0.0)
    check(make(tmp_path / "disturbed", 24, 3_000, 2, 0.3), whole)


@pytest.mark.slow
def test_two_hundred_documents_ten_kills(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole", 200, 60_000, 0, 0.0)
    check(make(tmp_path / "disturbed", 200, 60_000, 10, 0.3), whole)
