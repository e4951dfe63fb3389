"""Running a plan: each run is a process of its own, some at a time, and none is started again whose result is there.

Runs at the same time share the cores out: two small models on one thread each are done sooner than one after the other
on two threads. Each lane has a work directory of its own, in which its runs share the units of work that they have in
common. A free lane takes the next run; which lane a run is in is noted, so that a killed one finds its units again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from evaluation.errors import PreceptorError
from pipelines.evidence.cells import difference
from pipelines.evidence.runs import PlannedRun, note_machine, read_result
from pipelines.results import RunResult

_TOLD_LINES = 15
"""Last lines of a failed run's messages that are shown."""
_POLL_SECONDS = 0.2
_GRACE_SECONDS = 20.0
"""For a run that is ended to free its work directory."""


class RunFailedError(PreceptorError, RuntimeError):
    """A run of the plan failed; what it finished is kept."""


class Preparation(NamedTuple):
    """Work that some runs wait for: those that try their self-edits on another student."""

    label: str
    command: tuple[str, ...]
    log: Path
    """Gets what the command says."""


class _Active(NamedTuple):
    work: PlannedRun | Preparation
    process: subprocess.Popen[bytes]
    started: float


def lane_dir(work_dir: Path, lane: int) -> Path:
    """Return the work directory of a lane's runs."""
    return work_dir / f"lane-{lane}"


def _distinct(runs: Iterable[PlannedRun]) -> list[PlannedRun]:
    """Return the runs in order; those of equal configuration are one run."""
    first: dict[str, PlannedRun] = {}
    for run in runs:
        first.setdefault(run.digest, run)
    return list(first.values())


def _noted_lane(run: PlannedRun) -> int | None:
    """Return the lane that a run was started in; None before its first start."""
    try:
        return int(run.result.with_suffix(".lane").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _is_free_for(run: PlannedRun, lane: int, lanes: int) -> bool:
    """Return whether a run has not begun, or has in this lane, or in one that is no more."""
    noted = _noted_lane(run)
    return noted is None or noted == lane or noted >= lanes


def run_all(
    config: Path,
    runs: Sequence[PlannedRun],
    work_dir: Path,
    *,
    lanes: int,
    resume: str,
    say: Callable[[str], None],
    preparation: Preparation | None = None,
) -> None:
    """Run what has no result by the present code.

    Args:
        config: YAML file of the run.
        runs: In order; those of equal configuration are run once.
        work_dir: Holds the lanes' directories.
        lanes: Runs at a time, at least 1.
        resume: Command that goes on after a failure, for its message.
        say: Called with a line when a run starts and ends.
        preparation: Takes a lane first; runs that transfer wait for it, and the others need not.

    Raises:
        RunFailedError: A run or the preparation failed; what is under way is ended, and the same command goes on.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    note_machine(work_dir)
    scheduler = _Scheduler(config, runs, work_dir, lanes, resume, say)
    try:
        if preparation is not None:
            scheduler.prepare(preparation)
        while scheduler.is_busy:
            scheduler.fill()
            scheduler.collect()
            time.sleep(_POLL_SECONDS)
    finally:
        _end(scheduler.active.values())


class _Scheduler:
    """Which run is in which lane."""

    def __init__(
        self,
        config: Path,
        runs: Sequence[PlannedRun],
        work_dir: Path,
        lanes: int,
        resume: str,
        say: Callable[[str], None],
    ) -> None:
        from pipelines.workspace import code_digest

        self.active: dict[int, _Active] = {}
        self._config, self._work_dir, self._lanes = config, work_dir, lanes
        self._resume, self._say = resume, say
        self._code, self._begun = code_digest(), time.monotonic()
        self._pending: list[PlannedRun] = []
        wanted = _distinct(runs)
        self._total, self._done = len(wanted), 0
        for run in wanted:
            if read_result(run, self._code) is None:
                self._pending.append(run)
            else:
                self._done += 1
                self._tell(run.label, "has its result")

    @property
    def is_busy(self) -> bool:
        """Whether anything runs or is to run."""
        return bool(self.active or self._pending)

    def prepare(self, preparation: Preparation) -> None:
        """Start the preparation in the first lane."""
        self._tell(preparation.label, f"runs; to watch it: tail -f {preparation.log}")
        self.active[0] = _Active(preparation, self._start(list(preparation.command), preparation.log), time.monotonic())

    def fill(self) -> None:
        """Start runs in lanes that have none."""
        preparing = any(isinstance(under_way.work, Preparation) for under_way in self.active.values())
        for lane in [lane for lane in range(self._lanes) if lane not in self.active]:
            ready = (run for run in self._pending if not (preparing and run.transfers))
            chosen = next((run for run in ready if _is_free_for(run, lane, self._lanes)), None)
            if chosen is not None:
                self._pending.remove(chosen)
                self._tell(chosen.label, f"runs; to watch it: tail -f {_log(chosen)}")
                chosen.result.parent.mkdir(parents=True, exist_ok=True)
                chosen.result.with_suffix(".lane").write_text(f"{lane}\n", encoding="utf-8")
                process = self._start(self._command(chosen, lane), _log(chosen))
                self.active[lane] = _Active(chosen, process, time.monotonic())

    def collect(self) -> None:
        """Take the results of runs that have ended.

        Raises:
            RunFailedError: One has failed.
        """
        for lane, under_way in list(self.active.items()):
            if under_way.process.poll() is None:
                continue
            del self.active[lane]
            work, code = under_way.work, under_way.process.returncode
            told = f"done in {(time.monotonic() - under_way.started) / 60:.1f} minutes"
            if isinstance(work, PlannedRun):
                told += f", {_told(_result_of(work, code, self._resume))}"
                self._done += 1
            elif code:
                raise _failure(work.label, code, "its work done", work.log, self._resume)
            self._tell(work.label, told)

    def _tell(self, label: str, what: str) -> None:
        minutes = (time.monotonic() - self._begun) / 60
        self._say(f"[{self._done} of {self._total} done, {minutes:.1f} minutes] {label}: {what}")

    def _command(self, run: PlannedRun, lane: int) -> list[str]:
        words = [sys.executable, "-m", "pipelines.cli", "train-teacher", str(self._config)]
        words += [word for override in run.overrides for word in ("--set", override)]
        return [*words, "--work-dir", str(lane_dir(self._work_dir, lane)), "--json", str(run.result)]

    def _start(self, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """Start a process of its own, so that a killed run resumes and memory is given back."""
        log.parent.mkdir(parents=True, exist_ok=True)
        threads = max((os.cpu_count() or 1) // self._lanes, 1)
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        # Into a file and not a pipe: servers that outlive a killed process would hold a pipe open.
        with log.open("wb") as messages:
            return subprocess.Popen(command, stdout=messages, stderr=subprocess.STDOUT, env=environment)


def _result_of(run: PlannedRun, code: int, resume: str) -> RunResult:
    """Return the result of a run that has ended.

    Raises:
        RunFailedError: Its process failed or left no result.
    """
    found = read_result(run)
    if code or found is None:
        raise _failure(f"run {run.label!r}", code, f"a result in {str(run.result)!r}", _log(run), resume)
    return found


def _failure(what: str, code: int, wanted: str, log: Path, resume: str) -> RunFailedError:
    """Return the error of a process, with its own last messages."""
    told = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TOLD_LINES:]
    return RunFailedError(
        f"{what}: its process ended with exit code {code}, allowed is 0 and {wanted}. Its last messages ({log}):\n"
        + "\n".join(f"  {line}" for line in told)
        + f"\nWhat is done is kept. To go on: {resume}"
    )


def _told(result: RunResult) -> str:
    """Return the main figure of a run."""
    gain = result.gains.get("trained_minus_untrained")
    if gain is None:
        return "without a trained and an untrained teacher to compare"
    return f"trained minus untrained {difference(gain)}"


def _end(active: Collection[_Active]) -> None:
    """End the runs that are under way; each keeps what it finished and frees its work directory."""
    processes = [under_way.process for under_way in active]
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _GRACE_SECONDS
    for process in processes:
        try:
            process.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _log(run: PlannedRun) -> Path:
    return run.result.with_suffix(".log")
