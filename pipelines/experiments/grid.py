"""Run a configuration over seeds and ablations in parallel; finished runs are not repeated.

Workers share the cores. Each has a work directory whose stored results its runs share, and a run always has the same
worker, so that a killed one resumes there.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field, ValidationError

from evaluation.common.data import Frozen
from evaluation.common.errors import ConfigError, PreceptorError
from pipelines.execution import code_digest
from pipelines.process import child
from pipelines.records import RunResult
from pipelines.reports.format import points_interval
from pipelines.settings import load
from pipelines.train_teacher.config import TrainTeacherConfig

REFERENCE = "as configured"
"""Label of the configuration with the arms' common settings alone."""
SEEDS = ""
"""Group of the runs that are not arms."""
LANES = min(os.cpu_count() or 1, 4)
"""Parallel workers; each takes some 3 GB of memory."""
_STUDENT = Path("transfer", "small-student")
_QUOTED_LINES = 15

Seeds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1)]
Name = Annotated[str, Field(min_length=1, max_length=60, pattern=r"^[^|\n]+$")]
"""Heading of a table, or label of an arm."""


class _Runs(Frozen):
    common: tuple[str, ...] = ()
    """Overrides (`--set`) of all runs of the section, such as fewer controls."""


class ArmsPlan(_Runs):
    """Runs that differ from a reference in a few settings."""

    seeds: Seeds = (0,)
    """Of the reference and of each arm, in [0, 2^31)."""
    groups: dict[Name, dict[Name, tuple[str, ...]]] = Field(default_factory=dict)
    """Heading of a table -> arm -> its overrides after `common`; p-values are corrected within a table."""


class GridPlan(_Runs):
    """Seeds of one configuration, and arms."""

    config: str = Field(min_length=1)
    """YAML file of the run, relative to the plan's directory."""
    seeds: Seeds = (0, 1, 2)
    """Of each run and its choice of documents, each in [0, 2^31)."""
    transfer_seed: int | None = Field(default=None, ge=0, lt=2**31)
    """Of pretraining the smaller student of the transfer experiment, in [0, 2^31); None: as configured."""
    arms: ArmsPlan | None = None
    """None compares no settings."""


class PlannedRun(NamedTuple):
    """A run of the flow."""

    group: str
    """Heading of its table, the reference's label, or `SEEDS`."""
    name: str
    """Of the arm; empty for the seeds."""
    seed: int
    overrides: tuple[str, ...]
    digest: str
    """Of the resolved configuration; runs with equal digests are one run."""
    result: Path
    """JSON file of its result."""

    @property
    def label(self) -> str:
        """Human-readable name."""
        return f"{self.name or 'all variants'}, seed {self.seed}"


class GridError(PreceptorError, RuntimeError):
    """A run of a grid failed; its finished units are kept."""


def planned_runs(plan: GridPlan, config: Path, work_dir: Path) -> list[PlannedRun]:
    """Return all runs of a plan: seeds, reference, arms; raises ConfigError for an invalid configuration."""
    common = () if plan.transfer_seed is None else (f"comparison.transfer.model={work_dir / _STUDENT}",)
    wanted = [(SEEDS, "", seed, common) for seed in plan.seeds]
    if plan.arms is not None:
        common = (*common, *plan.arms.common)
        arms = [(group, name, more) for group, arms in plan.arms.groups.items() for name, more in arms.items()]
        for seed in plan.arms.seeds:
            wanted += [(REFERENCE, REFERENCE, seed, common)]
            wanted += [(group, name, seed, (*common, *more)) for group, name, more in arms]
    runs = []
    for group, name, seed, settings in wanted:
        # Each seed draws its own documents, so that a gain does not depend on one draw.
        overrides = (*plan.common, f"seed={seed}", f"data.split_seed={seed}", *settings)
        try:
            digest = load(config, TrainTeacherConfig, overrides).digest
        except ConfigError as error:
            raise ConfigError(f"{name or 'all variants'}, seed {seed}: {error}") from error
        runs.append(PlannedRun(group, name, seed, overrides, digest, work_dir / "results" / f"{digest[:16]}.json"))
    return runs


def read_result(run: PlannedRun, code: str | None = None) -> RunResult | None:
    """Return a run's result, optionally by the code with a digest only; None if there is no valid one."""
    try:
        found = RunResult.model_validate_json(run.result.read_bytes())
    except (OSError, ValidationError):
        return None
    return found if found.config_digest == run.digest and code in (None, found.code_digest) else None


def run_all(
    plan: GridPlan, config: Path, runs: Sequence[PlannedRun], work_dir: Path, resume: str, say: Callable[[str], None]
) -> None:
    """Run what has no result by the present code on `LANES` workers, after pretraining the transfer student.

    `resume` is the command that resumes, for messages.

    Raises:
        GridError: A process failed; the others are terminated.
    """
    code, distinct = code_digest(), dict[str, PlannedRun]()
    for run in runs:
        distinct.setdefault(run.digest, run)
    pending = [(i % LANES, run) for i, run in enumerate(distinct.values()) if read_result(run, code) is None]
    environment = {**os.environ, "OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // LANES, 1))}

    async def preceptor(label: str, words: Sequence[str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        say(f"{label}: started; to follow: tail -f {log}")
        begun = time.monotonic()
        async with child([sys.executable, "-m", "pipelines.cli", *words], environment, log) as process:
            status = await process.wait()
        if status:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_QUOTED_LINES:]
            message = f"{label}: failed with exit code {status}. Last lines of {log}:"
            kept = f"Finished units are kept. To resume: {resume}"
            raise GridError("\n".join([message, *(f"  {line}" for line in lines), kept]))
        say(f"{label}: done in {(time.monotonic() - begun) / 60:.1f} minutes")

    async def run_lane(lane: int) -> None:
        for run in (run for its_lane, run in pending if its_lane == lane):
            settings = [word for override in run.overrides for word in ("--set", override)]
            places = ["--work-dir", str(work_dir / f"lane-{lane}"), "--json", str(run.result)]
            log = run.result.with_suffix(".log")
            await preceptor(run.label, ["train-teacher", str(config), *settings, *places], log)
            if (result := read_result(run)) is None:
                raise GridError(f"{run.label}: no result in {str(run.result)!r}; see {log}. To resume: {resume}")
            if gain := result.gains.get("trained_minus_untrained"):
                say(f"{run.label}: trained minus untrained {points_interval(gain)}")

    async def run_lanes() -> None:
        student, seed = work_dir / _STUDENT, plan.transfer_seed
        if pending and seed is not None and not (student / "tokenizer_config.json").is_file():
            words = ["build-micro", "--role", student.name, "--seed", str(seed), "--out", str(student.parent)]
            await preceptor(f"pretraining of the {student.name}", words, student.parent / "build.log")
        await asyncio.gather(*map(run_lane, range(LANES)))

    asyncio.run(run_lanes())  # cancels the other lanes when one fails, which terminates their processes
