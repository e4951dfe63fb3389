"""What a document, model or file name holds reaches neither terminal nor report as more than text."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from junitparser import JUnitXml

from evaluation.gate.checks import GateCheck
from pipelines.adapt_student.page import page_of
from pipelines.check_regression.reports import junit_xml, regression_markdown
from pipelines.check_regression.verdict import RegressionReport, VerdictConfig
from pipelines.cli import app
from pipelines.process import HUB_TOKENS, child, inherited
from pipelines.reports.console import Reporter
from pipelines.terminal import check_terminated, guard_output, open_console, printable, stoppable
from tests.pipelines.adapt_student.test_page import a_night

HOSTILE = "a\x1b[2J\x1b]0;owned\x07b\x9b31mc\u202egnp.exe\u2066d\x08\x00e\ud800f\ufffe"
ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe]")
KEPT = "naïve – Straße, “日本” فارسی\u200cها 👩\u200d🚀"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Screen(io.TextIOWrapper):
    """Standard output of an encoding, which can be a terminal."""

    def __init__(self, encoding: str = "utf-8", *, terminal: bool = False) -> None:
        super().__init__(io.BytesIO(), encoding, write_through=True)
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    @property
    def shown(self) -> str:
        raw = self.buffer
        assert isinstance(raw, io.BytesIO)
        return raw.getvalue().decode(self.encoding)


def screen(monkeypatch: pytest.MonkeyPatch, encoding: str = "utf-8", *, terminal: bool = False) -> Screen:
    made = Screen(encoding, terminal=terminal)
    monkeypatch.setattr(sys, "stdout", made)
    monkeypatch.setattr(sys, "stderr", made)
    return made


def test_printable_escapes_what_acts_and_keeps_what_people_write() -> None:
    assert not ACTING.search(printable(HOSTILE + "\r\n\t"))
    assert printable(KEPT) == KEPT
    assert printable("a\n\tb\x1b", "\n\t") == "a\n\tb\\x1b"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252", "latin-1"])
def test_inbox_shows_hostile_documents_on_any_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    folder, work_dir = os.fsencode(tmp_path / "in"), tmp_path / "work"
    os.mkdir(folder)
    hostile = HOSTILE.replace("\x00", "").replace("\ud800", "")
    text = f"# {hostile} {KEPT}\n\nThe harbour of Zyx opened in 1931. {hostile}\n"
    for name in (b"caf\xe9.md", "e\x1b[31mvil‮.md".encode()):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(text.encode() + name.hex().encode())
    row = {"text": f"Row. {hostile}", "title": hostile, "source": "r\x1b[0m"}
    (tmp_path / "in" / "rows.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({"text": HOSTILE}) + "\n{}\n")
    seen = screen(monkeypatch, encoding)

    def run(*arguments: str) -> None:
        app([*arguments, "--work-dir", str(work_dir)], standalone_mode=False)

    run("inbox", "add", os.fsdecode(folder), "--verbose")
    run("inbox", "list")
    ids = sorted(set(re.findall(r"doc-[0-9a-f]{12}", seen.shown)))
    assert len(ids) == 3
    for name in ids:
        run("inbox", "show", name)
    assert not ACTING.search(seen.shown)
    before = len(seen.shown)
    run("inbox", "list", "--json")
    assert {row["id"] for row in json.loads(seen.shown[before:])} == set(ids)


def test_bar_and_lines_on_a_terminal_take_no_markup_and_no_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = screen(monkeypatch, terminal=True)
    monkeypatch.setenv("TERM", "xterm")
    guard_output()
    with Reporter(open_console(), 2) as reporter:
        reporter.begin(f"[/nonsense] {HOSTILE}")
        reporter.say(f"[red]{HOSTILE}[/nonsense]")
        sys.stderr.write(f"warning {HOSTILE}\n")
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", seen.shown)  # those of the bar itself
    assert not ACTING.search(lines)
    assert lines.count("\\x1b[2J") == 3
    assert "[red]" in lines


def test_page_and_reports_hold_text_alone() -> None:
    hostile = HOSTILE.replace("\ud800", "")
    check = GateCheck(name=f"group {hostile}", verdict="fail", sentence=hostile)
    report = RegressionReport(
        suite=hostile, suite_digest="0" * 64, outcome="regressed", checks=(check,), limits=VerdictConfig()
    )
    broken = report.model_copy(update={"problem": hostile, "outcome": "undecided"})
    for text in (page_of(a_night(title=hostile)), regression_markdown(report), regression_markdown(broken)):
        assert not ACTING.search(text)
        assert "\\x1b" in text
    for each in (report, broken):
        xml = junit_xml(each)
        assert not ACTING.search(xml)
        assert JUnitXml.fromstring(xml.encode())


@pytest.mark.anyio
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc")
async def test_children_get_what_they_need_and_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = ("PATH", "LC_ALL", "CUDA_HOME", "HF_HOME", "OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM", "PREFECT_HOME")
    secret = ("AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "HF_TOKEN", "NVIDIA_API_KEY", "MLFLOW_TRACKING_PASSWORD")
    for name in (*needed, *secret, "PREFECT_API_KEY", "VLLM_API_KEY", "GITHUB_TOKEN", "DATABASE_URL"):
        monkeypatch.setenv(name, f"given {name}")
    monkeypatch.setenv("PATH", os.defpath)
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    async with child(command, inherited(os.environ, HUB_TOKENS[:1]), tmp_path / "log") as process:
        seen = Path(f"/proc/{process.pid}/environ").read_bytes()
    given = {entry.partition(b"=")[0].decode() for entry in seen.split(b"\0") if b"given" in entry}
    assert given == {*needed, "HF_TOKEN"} - {"PATH"}


def _caught(number: int) -> None:
    with suppress(BaseException):
        signal.raise_signal(number)


def _replaced(number: int) -> None:
    with suppress(BaseException):
        try:
            signal.raise_signal(number)
        except BaseException:
            raise ValueError from None


def stopped(work: Callable[[], object]) -> object:
    """Return the exit code of a command that does this work; tests in the background inherit Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as end, stoppable():
            work()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    return end.value.code


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("lose", [_caught, _replaced])
@pytest.mark.parametrize("then", [check_terminated, lambda: None])
def test_a_stop_that_a_library_swallows_ends_the_command_at_its_next_step_or_its_end(
    lose: Callable[[int], object], then: Callable[[], None], number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        lose(number)
        then()

    before = signal.getsignal(number)
    assert stopped(work) == 128 + number
    assert capsys.readouterr().err.count("Stopped by") == 1
    assert signal.getsignal(number) == before


def test_what_fails_as_a_stop_interrupts_it_is_no_error_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            raise OSError("the connection is closed")

    assert stopped(work) == 130
    assert "the connection" not in capsys.readouterr().err


def test_a_command_that_is_started_with_ctrl_c_ignored_goes_on() -> None:
    """As scripts start what runs in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stoppable():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
