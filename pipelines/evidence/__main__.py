"""Run a plan and write what it shows: `python -m pipelines.evidence configs/evidence-plan.yaml`."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from evaluation.errors import ConfigError, InputError, PreceptorError
from pipelines.config import load_config
from pipelines.evidence import runs
from pipelines.evidence.document import Evidence, write_document
from pipelines.evidence.lanes import Preparation, lane_dir, run_all
from pipelines.evidence.plan import EvidencePlan, load_plan
from pipelines.evidence.runs import SEEDS, PlannedRun
from pipelines.results import RunResult

_PARTS = ("seeds", "arms", "document")


def gather(
    plan: EvidencePlan, planned: Sequence[PlannedRun], config: Path, work_dir: Path, command: str
) -> Evidence | None:
    """Return what the results so far say, whichever code made them; None while no seed has one.

    Args:
        plan: What was to be run.
        planned: Its runs.
        config: YAML file of the run.
        work_dir: Directory of the runs.
        command: That makes the document, for it to name.
    """
    found = [(run, result) for run in planned if (result := runs.read_result(run)) is not None]
    seeds = {run.seed: result for run, result in found if run.group == SEEDS}
    if not seeds:
        return None
    reference = "" if plan.arms is None else plan.arms.reference
    groups: dict[str, dict[str, dict[int, RunResult]]] = {}
    for run, result in found:
        if run.group != SEEDS:
            groups.setdefault(run.group, {}).setdefault(run.name, {})[run.seed] = result
    ended = sorted(run.result.stat().st_mtime for run, _ in found)
    first, last = (f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d}" for moment in (ended[0], ended[-1]))
    known = {run for run, _ in found}
    first_seed = next(run for run, _ in found if run.group == SEEDS)
    return Evidence(
        config=load_config(config, first_seed.overrides),
        seeds=seeds,
        reference=reference,
        reference_results=groups.pop(reference, {}).get(reference, {}),
        arms=groups,
        missing=[run.label for run in planned if run not in known],
        dates=(first, last),
        machine=runs.machine(work_dir),
        command=command,
    )


def build_of_other_student(plan: EvidencePlan, work_dir: Path) -> Preparation:
    """Return the pretraining of a plan's other student; one that was killed goes on after its last finished stage."""
    built = runs.transfer_model(plan, work_dir)
    assert plan.transfer is not None
    assert built is not None
    place = built.parent
    words = ["build-micro", "--role", plan.transfer.role, "--seed", str(plan.transfer.seed), "--out", str(place)]
    label = f"pretraining of the other student ({plan.transfer.role}, seed {plan.transfer.seed})"
    return Preparation(label, (sys.executable, "-m", "pipelines.cli", *words), place / "build.log")


def run_plan(path: Path, work_dir: Path, out: Path, only: str | None) -> str:
    """Run what is wanted of a plan, write the document, and return the last words.

    Args:
        path: YAML file of the plan.
        work_dir: Directory of all runs.
        out: Directory of the document.
        only: `seeds` or `arms` run these alone, `document` runs nothing; None runs all.

    Raises:
        ConfigError: The plan or the configuration of a run is refused, or there is nothing to write about.
        RunFailedError: A run failed.
    """
    plan = load_plan(path)
    config = path.parent / plan.config
    words = ["python", "-m", "pipelines.evidence", str(path), "--work-dir", str(work_dir), "--out", str(out)]
    command = shlex.join(words)
    planned = runs.planned_runs(plan, config, work_dir)
    wanted = [run for run in planned if only is None or (only == "seeds") == (run.group == SEEDS)]
    if only != "document":
        needed = any(run.transfers for run in wanted) and not runs.is_built(plan, work_dir)
        preparation = build_of_other_student(plan, work_dir) if needed else None
        resume = command if only is None else f"{command} --only {only}"
        run_all(config, wanted, work_dir, lanes=plan.lanes, resume=resume, say=_say, preparation=preparation)
    evidence = gather(plan, planned, config, work_dir, command)
    if evidence is None:
        message = (
            f"{str(work_dir)!r} has no result of a seed, so there is nothing to write. Run: {command} --only seeds"
        )
        if only == "document":
            raise ConfigError(message)
        return message
    document, found = write_document(evidence, out)
    lacking = f"{len(evidence.missing)} of {len(planned)} runs have no result yet. To run them:\n  {command}"
    stores = [shlex.quote(str(lane_dir(work_dir, lane))) for lane in range(plan.lanes)]
    further = "To see every figure with what it was made from:\n" + "\n".join(
        f"  preceptor ui --work-dir {store}" for store in stores
    )
    return f"{found}\n\nsaved {document}\n{lacking if evidence.missing else further}"


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a plan; the project's own errors become one message and an exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.evidence", description=__doc__)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--work-dir", type=Path, default=Path(".preceptor/evidence"), help="of all runs")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="gets evidence.md and its pictures")
    parser.add_argument("--only", choices=_PARTS, help="a part: runs of the seeds, runs of the arms, or no run")
    given = parser.parse_args(arguments)
    # An exit and not a death: the run that is under way is ended with its parent, and frees the work directory.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        _say(run_plan(given.plan, given.work_dir, given.out, given.only))
    except (ConfigError, InputError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    except PreceptorError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on where it was\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
