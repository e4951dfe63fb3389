"""The real command on settings small enough for a test, as a child process that can be watched and killed."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"

TINY = (
    "threads=1",
    "loop={rounds: 2, documents: 2}",
    "data.train_documents=4",
    "data.development_documents=1",
    "data.test_documents=4",
    "teacher.samples=3",
    "teacher.sampling.max_new_tokens=64",
    "teacher.policy={rank: 2, alpha: 4}",
    "student.update.rank=2",
    "student.update.epochs=2",
    "comparison.edits=1",
    "comparison.variants=[base, raw_passage, {name: fixed_kind, label: best fixed kind, source: {type: best_prompt, "
    "prompts: [micro-self-qa]}}, untrained_teacher, trained_teacher, null_edit, other_document, "
    "fixed_kind_equal_tokens, oracle]",
    "comparison.resamples=200",
    "comparison.keep_adapters=1",
)
"""Overrides that make `configs/demo.yaml` a matter of seconds, with every stage and every variant left in."""

PATIENCE_SECONDS = 600.0
"""Longest wait for anything in a child process; far above what is needed, because machines can be busy."""


def preceptor(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "pipelines.cli", *map(str, arguments)]


def command(config: Path, work_dir: Path, overrides: Sequence[str] = (), result: Path | None = None) -> list[str]:
    """Return the command line of one run."""
    told = [part for override in overrides for part in ("--set", override)]
    wanted = ["--json", str(result)] if result is not None else []
    return preceptor("train-teacher", config, "--work-dir", work_dir, *told, *wanted)


def environment(home: Path) -> dict[str, str]:
    """Return the environment of a child whose home directory is empty: what it leaves there can be seen."""
    home.mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    caches = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))  # of fonts, which take long to find
    ours = {"HOME": str(home), "XDG_CACHE_HOME": caches, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return {**kept, **ours, "PYTHONFAULTHANDLER": "1"}


class Child:
    """The command in a process group of its own."""

    def __init__(self, arguments: Sequence[str], home: Path) -> None:
        self.log = home / "output.txt"
        home.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                arguments, cwd=ROOT, env=environment(home), stdout=log, stderr=log, start_new_session=True
            )

    @property
    def output(self) -> str:
        """What it and those before it with the same home have printed."""
        return self.log.read_text(encoding="utf-8")

    def wait(self) -> int:
        """Return the exit code; a command that hangs fails with the place where it hangs."""
        try:
            return self.process.wait(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # Python's fault handler prints the stacks
            self.process.wait(timeout=30)
            raise AssertionError(f"did not end within {PATIENCE_SECONDS} s:\n{self.output[-6000:]}") from None

    def wait_until(self, reached: Callable[[], bool]) -> None:
        """Return as soon as something is so; fail when the child ends before."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not reached():
            assert self.process.poll() is None, f"the command ended early:\n{self.output[-3000:]}"
            assert time.monotonic() < deadline, f"not reached in time:\n{self.output[-3000:]}"
            time.sleep(0.002)

    def kill(self) -> None:
        """Kill the command as a power cut would, with Prefect's server; afterwards no process is left behind."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=30)

    def kill_alone(self) -> None:
        """Kill the command as the kernel does when memory runs out, and nothing else."""
        self.process.kill()
        self.process.wait(timeout=30)


def run_command(arguments: Sequence[str], home: Path) -> tuple[int, str]:
    """Return exit code and output of the command."""
    child = Child(arguments, home)
    try:
        return child.wait(), child.output
    finally:
        child.kill()


def cpu_seconds(
    arguments: Sequence[str], home: Path, env: Mapping[str, str] | None = None, cwd: Path = ROOT
) -> tuple[float, int, str]:
    """Return user and system time of a command, its exit code and what it prints."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "printed.txt").open("wb") as printed:
        process = subprocess.Popen(arguments, cwd=cwd, env=env or environment(home), stdout=printed, stderr=printed)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime, process.returncode, (home / "printed.txt").read_text(encoding="utf-8")


def imports_of_mlflow(
    arguments: Sequence[str], home: Path, limit: float, env: Mapping[str, str] | None = None, cwd: Path = ROOT
) -> tuple[float, int, str]:
    """Return a command's CPU time in units of `import mlflow`, its exit code and what it prints.

    The unit is what the heaviest import of a command without a model costs: seconds would test the machine and what
    else it does. A command above its limit is measured again beside its unit, at most twice.
    """
    command, unit = cpu_seconds(arguments, home, env, cwd), _import_seconds()
    for _ in range(2):
        if command[0] < limit * unit:
            break
        _import_seconds.cache_clear()
        command, unit = cpu_seconds(arguments, home, env, cwd), _import_seconds()
    return command[0] / unit, *command[1:]


@cache
def _import_seconds() -> float:
    with TemporaryDirectory() as home:
        return cpu_seconds([sys.executable, "-c", "import mlflow"], Path(home))[0]


def train(place: Path, config: str, overrides: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Run a shipped configuration to its end in a directory, and return its result and output."""
    path = place / "result.json"
    arguments = command(CONFIGS / f"{config}.yaml", place / "work", overrides, path)
    code, output = run_command(arguments, place / "home")
    assert code == 0, output[-4000:]
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result, output


def records(work_dir: Path) -> dict[str, str]:
    """Return what is stored by content key: results of tasks with the time of their last change, and updates."""
    storage = work_dir / "prefect" / "storage"
    found = {}
    for path in storage.glob("*/v*/*/*"):
        state = path.stat()
        if _is_whole(path, state.st_size, state.st_mtime_ns):
            found[str(path.relative_to(storage))] = str(state.st_mtime_ns)
    return found | _updates(work_dir / "updates.sqlite")


def _updates(path: Path) -> dict[str, str]:
    """Return the stored updates by content key; none while the store is not there yet."""
    if not path.is_file():
        return {}
    with closing(sqlite3.connect(path, timeout=60.0)) as store:
        try:
            return dict(store.execute("SELECT key, record FROM updates"))
        except sqlite3.OperationalError:  # the table is not made yet
            return {}


@cache
def _is_whole(path: Path, size: int, changed: int) -> bool:
    """Return whether a record is written to its end: a kill can tear one, which the next run makes again."""
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return size > 0


def counts(work_dir: Path) -> Counter[str]:
    """Return how many results of each kind are stored."""
    return Counter(key.partition("/")[0] for key in records(work_dir))


def figures(result: Path) -> dict[str, Any]:
    """Return a result for scripts without what may differ between two runs of the same configuration."""
    whole: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return {name: value for name, value in whole.items() if name not in ("seconds", "mlflow_run_id")}


def run_id_in(output: str) -> list[str]:
    """Return the MLflow runs that the output of one or several commands names, in order."""
    return re.findall(r"(?:new|resuming) MLflow run ([0-9a-f]{32})", output)


def left_behind(work_dir: Path) -> list[str]:
    """Return the command lines of processes that work on a directory's embedded stores."""
    home, found = str((work_dir / "prefect").resolve()), []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("PREFECT_HOME") == home and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
    return found


def flow_states(work_dir: Path) -> list[str]:
    """Return the states of Prefect's flow runs, oldest first."""
    with closing(sqlite3.connect(work_dir / "prefect" / "prefect.db", timeout=60.0)) as db:
        return [state for (state,) in db.execute("SELECT state_type FROM flow_run ORDER BY created")]
