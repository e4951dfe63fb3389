"""Run one configuration over seeds and arms, some runs at a time; a run that has its result is not started again.

Runs at a time share the cores. Each lane has a work directory in which its runs share stored results, and every run has
its lane, so that a killed one resumes there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field, ValidationError

from evaluation.common.data import Frozen
from evaluation.common.errors import ConfigError, PreceptorError
from pipelines.execution import code_digest
from pipelines.reports.format import points_interval
from pipelines.results import RunResult
from pipelines.settings import load
from pipelines.train_teacher.config import TrainTeacherConfig

SEEDS = ""
"""Group of the runs that are no arms."""
_STUDENT = Path("transfer", "small-student")
_SHOWN_LINES = 15
"""Last lines of a failed process that its error quotes."""

Seeds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1)]
Name = Annotated[str, Field(min_length=1, max_length=60, pattern=r"^[^|\n]+$")]
"""A heading or an arm's label in tables."""


class ArmsPlan(Frozen):
    """Runs that differ from a reference in a few settings."""

    seeds: Seeds = (0,)
    """Each arm and the reference run once for each."""
    common: tuple[str, ...] = ()
    """Settings as of `--set` of the reference and of all arms, such as fewer controls."""
    reference: Name = "as configured"
    """Label of the configuration with `common` alone."""
    groups: dict[Name, dict[Name, tuple[str, ...]]] = Field(default_factory=dict)
    """Heading of a table -> arm -> its settings, after `common`; p-values are corrected within a table."""


class GridPlan(Frozen):
    """Seeds of one configuration, and arms."""

    config: str = Field(min_length=1)
    """YAML file of the run, relative to the plan's directory."""
    lanes: int = Field(default=1, ge=1, le=64)
    """Runs at a time, in [1, 64]."""
    seeds: Seeds = (0, 1, 2)
    """Seeds of everything random, the choice of documents included, each in [0, 2^31)."""
    transfer_seed: int | None = Field(default=None, ge=0, lt=2**31)
    """Of a smaller student's pretraining, in [0, 2^31); the same self-edits are tried on it. None leaves this to the
    configuration."""
    arms: ArmsPlan | None = None
    """None compares no settings."""


class PlannedRun(NamedTuple):
    """One run of the flow."""

    group: str
    """Heading of its table, the reference's label, or `SEEDS`."""
    name: str
    """Of the arm; empty for the seeds."""
    seed: int
    overrides: tuple[str, ...]
    digest: str
    """Of the resolved configuration: runs that have it in common are one run."""
    result: Path
    """JSON file of its result."""

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.name or 'all variants'}, seed {self.seed}"


class GridError(PreceptorError, RuntimeError):
    """A run of a grid failed; what it finished is kept."""


def lane_dir(work_dir: Path, lane: int) -> Path:
    """Return the work directory of a lane's runs."""
    return work_dir / f"lane-{lane}"


def planned_runs(plan: GridPlan, config: Path, work_dir: Path) -> list[PlannedRun]:
    """Return all runs of a plan: the seeds, the reference, the arms.

    Raises:
        ConfigError: A configuration is refused.
    """
    runs = []
    for group, name, seed, settings in _wanted(plan, work_dir):
        # Each seed draws its own documents: a gain must not hang on one draw of them.
        overrides = (f"seed={seed}", f"data.split_seed={seed}", *settings)
        try:
            digest = load(config, TrainTeacherConfig, overrides).digest
        except ConfigError as error:
            raise ConfigError(f"{name or 'all variants'}, seed {seed}: {error}") from error
        runs.append(PlannedRun(group, name, seed, overrides, digest, work_dir / "results" / f"{digest[:16]}.json"))
    return runs


def _wanted(plan: GridPlan, work_dir: Path) -> Iterator[tuple[str, str, int, tuple[str, ...]]]:
    """Yield group, name, seed and settings of each run."""
    other = () if plan.transfer_seed is None else (f"comparison.transfer.model={work_dir / _STUDENT}",)
    yield from ((SEEDS, "", seed, other) for seed in plan.seeds)
    if plan.arms is not None:
        common, reference = (*other, *plan.arms.common), plan.arms.reference
        for seed in plan.arms.seeds:
            yield reference, reference, seed, common
            for group, arms in plan.arms.groups.items():
                yield from ((group, name, seed, (*common, *settings)) for name, settings in arms.items())


def read_result(run: PlannedRun, code: str | None = None) -> RunResult | None:
    """Return a run's result, made by the code with this digest or by any; None where there is none, or it is torn."""
    try:
        found = RunResult.model_validate_json(run.result.read_bytes())
    except (OSError, ValidationError):
        return None
    return found if found.config_digest == run.digest and code in (None, found.code_digest) else None


def run_all(
    plan: GridPlan, config: Path, runs: Sequence[PlannedRun], work_dir: Path, resume: str, say: Callable[[str], None]
) -> None:
    """Run what has no result by the present code, `plan.lanes` at a time, after pretraining the other student.

    Runs of equal configuration run once; `resume` is the command that resumes after a failure, for its message.

    Raises:
        GridError: A process failed; the others are terminated.
    """
    code, processes = code_digest(), _Processes(max((os.cpu_count() or 1) // plan.lanes, 1), resume, say)
    distinct: dict[str, PlannedRun] = {}
    for run in runs:
        distinct.setdefault(run.digest, run)
    pending = [(i % plan.lanes, run) for i, run in enumerate(distinct.values()) if read_result(run, code) is None]

    def run_lane(lane: int) -> None:
        for run in (run for its_lane, run in pending if its_lane == lane):
            settings = [word for override in run.overrides for word in ("--set", override)]
            places = ["--work-dir", str(lane_dir(work_dir, lane)), "--json", str(run.result)]
            log = run.result.with_suffix(".log")
            processes.run(run.label, ["train-teacher", str(config), *settings, *places], log)
            if (result := read_result(run)) is None:
                raise GridError(f"{run.label}: no result in {str(run.result)!r}; see {log}. To resume: {resume}")
            if gain := result.gains.get("trained_minus_untrained"):
                say(f"{run.label}: trained minus untrained {points_interval(gain)}")

    with processes:
        student, seed = work_dir / _STUDENT, plan.transfer_seed
        if pending and seed is not None and not (student / "tokenizer_config.json").is_file():
            words = ["build-micro", "--role", student.name, "--seed", str(seed), "--out", str(student.parent)]
            processes.run(f"pretraining of the {student.name}", words, student.parent / "build.log")
        with ThreadPoolExecutor(plan.lanes) as pool, processes:
            for lane in as_completed([pool.submit(run_lane, lane) for lane in range(plan.lanes)]):
                lane.result()


class _Processes:
    """Commands of `preceptor` in processes of their own, so that killed runs resume and memory is freed."""

    def __init__(self, threads: int, resume: str, say: Callable[[str], None]) -> None:
        self._threads, self._resume, self._say = threads, resume, say
        self._running: list[subprocess.Popen[bytes]] = []
        self._stopped = False

    def run(self, label: str, words: Sequence[str], log: Path) -> None:
        """Run a command to its end.

        Raises:
            GridError: It failed, or all were terminated.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        self._say(f"{label}: runs; to watch it: tail -f {log}")
        begun, environment = time.monotonic(), {**os.environ, "OMP_NUM_THREADS": str(self._threads)}
        # Into a file, not a pipe: servers that outlive a killed process would hold a pipe open.
        with log.open("wb") as messages:
            command = [sys.executable, "-m", "pipelines.cli", *words]
            process = subprocess.Popen(command, stdout=messages, stderr=subprocess.STDOUT, env=environment)
        self._running.append(process)
        if self._stopped:
            process.terminate()
        if code := process.wait():
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_SHOWN_LINES:]
            quoted = "\n".join(f"  {line}" for line in lines)
            message = f"{label}: exit code {code}, allowed is 0. Last messages ({log}):\n{quoted}"
            raise GridError(f"{message}\nWhat is done is kept. To resume: {self._resume}")
        self._say(f"{label}: done in {(time.monotonic() - begun) / 60:.1f} minutes")

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        """Terminate what runs; each run frees its work directory."""
        self._stopped = True
        for process in self._running:
            process.terminate()
