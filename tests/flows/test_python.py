"""Flows started from Python: typed results, errors as exceptions, and interrupts."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import preceptor
from tests.flows.settings import PATIENCE_SECONDS, ROOT


def test_mistake_is_an_exception_with_the_message_of_the_command(tmp_path: Path) -> None:
    with pytest.raises(preceptor.ConfigError, match="did you mean loop"):
        preceptor.train_teacher("demo", overrides=["loops.rounds=3"], work_dir=tmp_path)
    with pytest.raises(preceptor.ConfigError, match="allowed are"):
        preceptor.check_regression("suites/micro-world", "nothing", "base", work_dir=tmp_path)
    with pytest.raises(preceptor.ConfigError, match="reference 'other' is none of"):
        preceptor.compare(["suites/micro-world"], ["base", "x=base"], "other", work_dir=tmp_path)


@pytest.mark.flow
def test_night_is_a_typed_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    night = preceptor.adapt("nights-demo", work_dir=tmp_path / "a work dir")
    assert (night.outcome, night.version) == ("nothing new", None)
    assert "inbox" in capsys.readouterr().out


def test_interrupt_ends_the_command_in_order_and_what_it_prints_is_shown() -> None:
    child = (
        "import signal, sys, time\n"
        "def stop(*_): print('ended in order', file=sys.stderr); sys.exit(130)\n"
        "signal.signal(signal.SIGINT, stop)\n"
        "print('begun', flush=True)\n"
        "time.sleep(600)\n"
    )
    code = f"import sys, preceptor\npreceptor._relayed([sys.executable, '-c', {child!r}])\n"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=PATIENCE_SECONDS)
    assert "ended in order" in told
    assert "KeyboardInterrupt" in told
