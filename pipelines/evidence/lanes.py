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
from pipelines.evidence.runs import PlannedRun, note_machine, read_result
from pipelines.report import points
from pipelines.results import RunResult

_TOLD_LINES = 15
"""Last lines of a failed run's messages that are shown."""
_POLL_SECONDS = 0.2
_GRACE_SECONDS = 20.0
"""For a run that is ended to free its work directory."""


class RunFailedError(PreceptorError, RuntimeError):
    """A run of the plan failed; what it finished is kept."""


class _Active(NamedTuple):
    run: PlannedRun
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


def _next_for(lane: int, lanes: int, pending: Sequence[PlannedRun]) -> PlannedRun | None:
    """Return the first run that is free for a lane: not begun, begun in this lane, or in one that is no more."""
    for run in pending:
        noted = _noted_lane(run)
        if noted is None or noted == lane or noted >= lanes:
            return run
    return None


def run_all(
    config: Path,
    runs: Sequence[PlannedRun],
    work_dir: Path,
    *,
    lanes: int,
    resume: str,
    say: Callable[[str], None],
) -> None:
    """Run what has no result by the present code.

    Args:
        config: YAML file of the run.
        runs: In order; those of equal configuration are run once.
        work_dir: Holds the lanes' directories.
        lanes: Runs at a time, at least 1.
        resume: Command that goes on after a failure, for its message.
        say: Called with a line when a run starts and ends.

    Raises:
        RunFailedError: A run failed; those under way are ended, and the same command goes on with them.
    """
    from pipelines.workspace import code_digest

    code, begun = code_digest(), time.monotonic()
    pending = _distinct(runs)
    total, done = len(pending), 0
    active: dict[int, _Active] = {}
    work_dir.mkdir(parents=True, exist_ok=True)
    note_machine(work_dir)
    threads = max((os.cpu_count() or 1) // lanes, 1)

    def tell(run: PlannedRun, what: str) -> None:
        say(f"[{done} of {total} done, {(time.monotonic() - begun) / 60:.1f} minutes] {run.label}: {what}")

    try:
        while active or pending:
            for run in [run for run in pending if read_result(run, code) is not None]:
                pending.remove(run)
                done += 1
                tell(run, "has its result")
            for lane in [lane for lane in range(lanes) if lane not in active]:
                run_next = _next_for(lane, lanes, pending)
                if run_next is not None:
                    pending.remove(run_next)
                    tell(run_next, f"runs; to watch it: tail -f {_log(run_next)}")
                    process = _start(config, run_next, work_dir, lane, threads)
                    active[lane] = _Active(run_next, process, time.monotonic())
            for lane, under_way in list(active.items()):
                if under_way.process.poll() is not None:
                    result = _result_of(under_way, resume)
                    del active[lane]
                    done += 1
                    tell(
                        under_way.run, f"done in {(time.monotonic() - under_way.started) / 60:.1f} min, {_told(result)}"
                    )
            time.sleep(_POLL_SECONDS)
    finally:
        _end(active.values())


def _start(config: Path, run: PlannedRun, work_dir: Path, lane: int, threads: int) -> subprocess.Popen[bytes]:
    """Start the process of one run, so that a killed one resumes and memory is given back."""
    command = [sys.executable, "-m", "pipelines.cli", "train-teacher", str(config)]
    command += [word for override in run.overrides for word in ("--set", override)]
    command += ["--work-dir", str(lane_dir(work_dir, lane)), "--json", str(run.result)]
    log = _log(run)
    log.parent.mkdir(parents=True, exist_ok=True)
    run.result.with_suffix(".lane").write_text(f"{lane}\n", encoding="utf-8")
    # Into a file and not a pipe: servers that outlive a killed process would hold a pipe open.
    with log.open("wb") as messages:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        return subprocess.Popen(command, stdout=messages, stderr=subprocess.STDOUT, env=environment)


def _result_of(ended: _Active, resume: str) -> RunResult:
    """Return the result of a run that has ended.

    Raises:
        RunFailedError: Its process failed or left no result; the message ends with the process's own.
    """
    run, code, log = ended.run, ended.process.returncode, _log(ended.run)
    found = read_result(run)
    if code or found is None:
        told = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TOLD_LINES:]
        raise RunFailedError(
            f"run {run.label!r}: its process ended with exit code {code}, allowed is 0 and a result in "
            f"{str(run.result)!r}. Its last messages ({log}):\n" + "\n".join(f"  {line}" for line in told) + "\n"
            f"What is done is kept. To go on: {resume}"
        )
    return found


def _told(result: RunResult) -> str:
    """Return the main figure of a run."""
    gain = result.gains.get("trained_minus_untrained")
    if gain is None:
        return "without a trained and an untrained teacher to compare"
    return f"trained minus untrained {points(gain.mean)} [{points(gain.low)}, {points(gain.high)}]"


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
