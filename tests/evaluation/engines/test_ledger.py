from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.common.errors import EndpointError
from evaluation.engines.ledger import EndpointFailure, EndpointReply, Ledger, Usage
from tests.evaluation.factories import counts

MOST = 100
FAILURE = EndpointFailure("timeout", "too slow")


def reply(text: str = "hello", prompt: int | None = 6, completion: int | None = 4) -> EndpointReply:
    return EndpointReply(text, "stop", prompt, completion, "m-1")


def began(ledger: Ledger, digest: str = "d", budget: int | None = None) -> int:
    call = ledger.begin(digest, "m", MOST, budget)
    assert call is not None
    return call


def test_reply_is_found_again_by_any_scope_and_paid_by_one(tmp_path: Path) -> None:
    with Ledger(tmp_path / "deep" / "ledger.db", "a") as ledger:
        assert ledger.keep(began(ledger), "d", reply("naïve\x00\n字")) == reply("naïve\x00\n字")
    with Ledger(tmp_path / "deep" / "ledger.db", "b") as other:
        found = other.find(["d", "unknown"])
        assert list(found) == ["d"]
        assert found["d"].text == "naïve\x00\n字"
        assert counts(other) == (0, 0, 0, 0)
        assert other.stored() == 1
    with Ledger(tmp_path / "deep" / "ledger.db", "a") as again:
        assert counts(again) == (1, 0, 0, 10)


def test_first_reply_stays_when_two_arrive(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.db") as ledger:
        first, second = began(ledger), began(ledger)
        ledger.keep(second, "d", reply("second"))
        assert ledger.keep(first, "d", reply("first")).text == "second"
        assert ledger.spent().tokens == 20


@pytest.mark.parametrize(
    ("usage", "free", "tokens", "unsettled"),
    [
        (Usage(), False, 100, 1),  # the server may have worked, and bill it
        (Usage(), True, 0, 0),
        (Usage(5, 2), False, 7, 0),
        (Usage(5, None), False, 100, 1),
    ],
)
def test_failed_call_counts_with_what_is_known(
    tmp_path: Path, usage: Usage, free: bool, tokens: int, unsettled: int
) -> None:
    with Ledger(tmp_path / "l.db") as ledger:
        assert ledger.spent().tokens == 0
        call = began(ledger)
        assert (ledger.spent().tokens, ledger.spent().unsettled) == (100, 1)
        ledger.fail(call, FAILURE, usage=usage, free=free)
        spent = ledger.spent()
        assert (spent.calls, spent.failures) == (1, 1)
        assert (spent.tokens, spent.unsettled) == (tokens, unsettled)
        assert ledger.find(["d"]) == {}


def test_limits_count_calls_in_flight(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.db", "a") as ledger, Ledger(tmp_path / "l.db", "b") as other:
        first, _ = began(ledger, "1", 210), began(ledger, "2", 210)
        assert ledger.begin("3", "m", MOST, 210) is None
        began(other, "3", 210)  # another scope has a budget of its own
        ledger.keep(first, "1", reply())
        began(ledger, "3", 210)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 300), st.sampled_from(["keep", "fail", "free", "leave"])), max_size=20))
def test_sum_of_charges_never_exceeds_the_limit(
    tmp_path_factory: pytest.TempPathFactory, calls: list[tuple[int, str]]
) -> None:
    with Ledger(tmp_path_factory.mktemp("ledger") / "l.db") as ledger:
        expected = 0
        for i, (most, end) in enumerate(calls):
            call = ledger.begin(str(i), "m", most, 1000)
            assert (call is None) == (expected + most > 1000)
            if call is None:
                continue
            if end == "keep":
                ledger.keep(call, str(i), reply(prompt=0, completion=most // 2))
            elif end != "leave":
                ledger.fail(call, FAILURE, free=end == "free")
            expected += {"keep": most // 2, "free": 0}.get(end, most)
            assert ledger.spent().tokens == expected <= 1000


def test_threads_share_a_ledger(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.db") as ledger, ThreadPoolExecutor(8) as pool:

        def one(i: int) -> bool:
            call = ledger.begin(str(i), "m", 10, 300)
            if call is not None:
                ledger.keep(call, str(i), reply(str(i)))
            return call is not None

        made = list(pool.map(one, range(60)))
        assert sum(made) == 30
        assert {d: r.text for d, r in ledger.find([str(i) for i in range(60)]).items()} == {
            str(i): str(i) for i in range(60) if made[i]
        }


def _writer(path: Path, name: str, count: int, ready: str) -> None:
    with Ledger(path) as ledger:
        for i in range(count):
            call = ledger.begin(f"{name}{i}", "m", 10, 300)
            if call is not None:
                ledger.keep(call, f"{name}{i}", reply(f"{name}{i}"))
            if ready:
                Path(ready).touch()


def test_two_processes_share_a_ledger_and_its_limit(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    path = tmp_path / "l.db"
    processes = [context.Process(target=_writer, args=(path, name, 20, "")) for name in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    with Ledger(path) as ledger:
        assert counts(ledger) == (30, 0, 0, 300)
        assert ledger.stored() == 30


def test_kill_at_any_moment_leaves_a_whole_ledger(tmp_path: Path) -> None:
    path, ready = tmp_path / "l.db", tmp_path / "ready"
    process = multiprocessing.get_context("spawn").Process(target=_writer, args=(path, "a", 10**6, str(ready)))
    process.start()
    while not ready.exists():
        assert process.is_alive()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    with Ledger(path) as ledger:
        spent = ledger.spent()
        assert spent.unsettled <= 1
        assert ledger.stored() == spent.calls - spent.unsettled >= 1
        assert spent.tokens == 10 * spent.calls
        assert ledger.find(["a0"])["a0"].text == "a0"


def test_unusable_files_are_errors_that_say_so(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database " * 100)
    with pytest.raises(EndpointError, match=r"ledger .*text.*could not open it: file is not a database"):
        Ledger(tmp_path / "text")
    with Ledger(tmp_path / "l.db"):
        pass
    with sqlite3.connect(tmp_path / "l.db") as db:
        db.execute("PRAGMA user_version = 9")
    with pytest.raises(EndpointError, match="schema version 9, this version of Preceptor reads up to 3"):
        Ledger(tmp_path / "l.db")
    closed = Ledger(tmp_path / "other.db")
    closed.close()
    closed.close()
    with pytest.raises(EndpointError, match="could not write it"):
        closed.begin("d", "m", MOST)
