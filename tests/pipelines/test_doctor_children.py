"""Child processes of the doctor: answers, crashes, time limits; and checks that fail themselves."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import psutil  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.doctor.checks import Check, DoctorReport, Status, guarded
from pipelines.doctor.children import Outcome, Probe, run_probes
from tests.pipelines.doctor_parts import package, probed

STATUSES: tuple[Status, ...] = get_args(Status)


def test_a_check_that_fails_becomes_a_broken_one_with_type_and_text() -> None:
    def examine() -> Iterator[Check]:
        yield Check(area="a", name="first", status="ok", found="x")
        raise ZeroDivisionError("no\nway")

    [check] = guarded("a", "whole", examine)
    assert (check.name, check.status, check.fix) == ("whole", "broken", "")
    assert "ZeroDivisionError: no way" in check.found


@given(st.lists(st.sampled_from(STATUSES)))
def test_usable_unless_something_is_missing_or_broken(statuses: list[Status]) -> None:
    report = DoctorReport.of([Check(area="a", name="n", status=status, found="") for status in statuses])
    assert report.usable == all(status in ("ok", "optional", "warning") for status in statuses)


def test_modules_that_can_and_cannot_be_imported(tmp_path: Path) -> None:
    package(tmp_path, "sound", "")
    package(tmp_path, "unsound", "raise OSError('built for\\nanother torch')")
    outcome = probed(tmp_path, Probe("imports", ("sound", "unsound")))
    assert outcome.data == {"sound": "", "unsound": "OSError: built for another torch"}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended with signal SIGSEGV"),
        (
            "import os, sys; sys.stderr.write('out of luck'); sys.stderr.flush(); os._exit(3)",
            "exit code 3: out of luck",
        ),
        ("raise ImportError('no such symbol')", "ImportError: no such symbol"),
    ],
    ids=["signal", "exit", "exception"],
)
def test_a_library_that_takes_its_process_along_is_an_error(tmp_path: Path, code: str, expected: str) -> None:
    package(tmp_path, "torch", code)
    outcome = probed(tmp_path, Probe("torch"))
    assert outcome.data is None
    assert expected in outcome.error


def test_what_libraries_print_does_not_hide_the_answer(tmp_path: Path) -> None:
    package(tmp_path, "loud", "import atexit\nprint('hello', end='')\natexit.register(lambda: print('bye'))")
    assert probed(tmp_path, Probe("imports", ("loud",))).data == {"loud": ""}


def test_a_late_probe_is_stopped_with_what_it_started(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    package(tmp_path, "slow", code)
    assert probed(tmp_path, Probe("imports", ("slow",), seconds=3.0)) == Outcome(late=3.0)
    pid = int((tmp_path / "pid").read_text())
    _wait_until_gone(pid)


def test_an_interrupt_leaves_no_process_behind(tmp_path: Path) -> None:
    package(tmp_path, "slow", "import time; time.sleep(60)")
    before = {child.pid for child in psutil.Process().children()}
    started: list[int] = []

    def interrupt(_: object) -> None:
        started.extend(child.pid for child in psutil.Process().children() if child.pid not in before)
        raise KeyboardInterrupt

    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with pytest.raises(KeyboardInterrupt):
        run_probes([Probe("imports", ("slow",))], environment, at_once=1, begun=interrupt, ended=lambda _: None)
    assert started
    for pid in started:
        _wait_until_gone(pid)


def test_no_more_probes_at_once_than_asked_for_and_all_are_told(tmp_path: Path) -> None:
    package(tmp_path, "sound", "")
    seen: list[int] = []
    ended: list[str] = []
    probes = [Probe("imports", ("sound",)), Probe("gpus"), Probe("nothing")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PATH": ""}
    outcomes = run_probes(probes, environment, at_once=2, begun=lambda n: seen.append(len(n)), ended=ended.append)
    assert max(seen) == 2
    assert sorted(ended) == ["gpus", "imports", "nothing"]
    assert outcomes["imports"].data == {"sound": ""}
    assert "FileNotFoundError" in outcomes["gpus"].error
    assert "KeyError" in outcomes["nothing"].error


def _wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, f"process {pid} still runs"
        time.sleep(0.05)
