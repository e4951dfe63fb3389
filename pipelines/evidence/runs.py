"""The runs of a plan, their results, and the other student that they need."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from evaluation.errors import ConfigError
from pipelines.config import load_config
from pipelines.evidence.plan import EvidencePlan
from pipelines.results import RunResult

SEEDS = ""
"""Group of the runs that are no arms."""


class PlannedRun(NamedTuple):
    """One run of the flow."""

    group: str
    """Heading of its table; `SEEDS` for the seeds themselves."""
    name: str
    """Of the arm; empty for the seeds."""
    seed: int
    overrides: tuple[str, ...]
    digest: str
    """Of the resolved configuration: runs that have it in common are one run."""
    transfers: bool
    """It tries the self-edits on another student."""
    result: Path
    """JSON file that gets its result."""

    @property
    def label(self) -> str:
        """What people call it."""
        return f"{self.name or 'all variants'}, seed {self.seed}"


def transfer_model(plan: EvidencePlan, work_dir: Path) -> Path | None:
    """Return the directory of the other student, whether or not it is built; None where the plan has none."""
    return None if plan.transfer is None else work_dir / "transfer" / plan.transfer.role


def planned_runs(plan: EvidencePlan, config: Path, work_dir: Path) -> list[PlannedRun]:
    """Return all runs of a plan, the seeds first, then the reference of the arms, then the arms.

    Args:
        plan: What to run.
        config: YAML file of the run.
        work_dir: Directory of all runs: units of work that runs have in common are computed once.

    Raises:
        ConfigError: The configuration of some run is refused, or an arm is its reference; all of them are listed.
    """
    other = transfer_model(plan, work_dir)
    shared = () if other is None else (f"comparison.transfer.model={other}",)
    wanted = [(SEEDS, "", seed, shared) for seed in plan.seeds]
    if plan.arms is not None:
        common = (*shared, *plan.arms.common)
        for seed in plan.arms.seeds:
            wanted.append((plan.arms.reference, plan.arms.reference, seed, common))
            for group, arms in plan.arms.groups.items():
                wanted += [(group, name, seed, (*common, *settings)) for name, settings in arms.items()]
    runs: list[PlannedRun] = []
    mistakes = []
    for group, name, seed, settings in wanted:
        # The documents of each seed are others, too: a gain must not hang on one draw of them.
        overrides = (f"seed={seed}", f"data.split_seed={seed}", *settings)
        try:
            settled = load_config(config, overrides)
        except ConfigError as error:
            mistakes.append(f"{name or 'all variants'}, seed {seed}: {error}")
            continue
        digest, transfers = settled.digest, settled.comparison.transfer is not None
        result = work_dir / "results" / f"{digest[:16]}.json"
        runs.append(PlannedRun(group, name, seed, overrides, digest, transfers, result))
    mistakes += _arms_that_change_nothing(plan, runs)
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return runs


def _arms_that_change_nothing(plan: EvidencePlan, runs: Sequence[PlannedRun]) -> list[str]:
    """Return a message for each arm whose configuration is that of its reference."""
    reference = "" if plan.arms is None else plan.arms.reference
    references = {run.digest for run in runs if run.group == reference}
    return [
        f"arm {run.label!r} of {run.group!r}: {list(run.overrides[2:])} changes nothing of {reference!r}, so there is "
        "nothing to compare. Take it out, or set something else."
        for run in runs
        if run.group not in (SEEDS, reference) and run.digest in references
    ]


def read_result(run: PlannedRun, code: str | None = None) -> RunResult | None:
    """Return the result of a run; None where there is none, or it is torn or of other settings.

    Args:
        run: Whose result it must be.
        code: Digest of the code that must have made it; None takes any.
    """
    try:
        found = RunResult.model_validate_json(run.result.read_bytes())
    except (OSError, ValidationError):
        return None
    return found if found.config_digest == run.digest and code in (None, found.code_digest) else None


def is_built(plan: EvidencePlan, work_dir: Path) -> bool:
    """Return whether the other student of a plan is there, or the plan has none."""
    directory = transfer_model(plan, work_dir)
    # The tokenizer's settings are written last.
    return directory is None or (directory / "tokenizer_config.json").is_file()


def machine(work_dir: Path) -> str:
    """Return the machine that the last run of a work directory was made on, in one line."""
    try:
        return (work_dir / "machine.txt").read_text(encoding="utf-8").strip()
    except OSError:
        return "a machine that was not noted"


def note_machine(work_dir: Path) -> None:
    """Note the machine that the runs of a work directory are made on."""
    torch = importlib.metadata.version("torch")
    found = f"{os.cpu_count()} CPU cores ({platform.machine()}), torch {torch}, Python {platform.python_version()}"
    (work_dir / "machine.txt").write_text(found + "\n", encoding="utf-8")
