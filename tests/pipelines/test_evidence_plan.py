"""Plans: what they allow, the runs that follow from them, and which of these are started."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from evaluation.errors import ConfigError
from pipelines.config import load_config
from pipelines.evidence.lanes import Preparation, RunFailedError, run_all
from pipelines.evidence.plan import ArmsPlan, EvidencePlan, TransferPlan, load_plan
from pipelines.evidence.runs import SEEDS, PlannedRun, machine, planned_runs, read_result
from tests.pipelines.evidence_parts import run_result

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DEMO = CONFIGS / "demo.yaml"
LONGER = "loop.rounds=14"
RESUME = "make evidence"


def write(path: Path, **content: Any) -> Path:
    path.write_text(yaml.safe_dump({"config": "demo.yaml", **content}), encoding="utf-8")
    return path


def refusal(tmp_path: Path, **content: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_plan(write(tmp_path / "plan.yaml", **content))
    return str(caught.value)


def a_plan(*overrides: str, common: tuple[str, ...] = (), seeds: tuple[int, ...] = (0, 1)) -> EvidencePlan:
    arms = ArmsPlan(seeds=(0,), common=common, groups={"Ablations": {"longer": (LONGER, *overrides)}})
    return EvidencePlan(config="demo.yaml", seeds=seeds, arms=arms)


@pytest.fixture
def unreadable(tmp_path: Path) -> Path:
    """A configuration that is valid, and whose documents are not there."""
    content = yaml.safe_load(DEMO.read_text(encoding="utf-8"))
    content["data"] = {"type": "jsonl", "path": str(tmp_path / "none.jsonl"), "development_documents": 1}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def finish(run: PlannedRun, code: str) -> None:
    result = run_result(run.seed, documents=4, extras=False)
    made = result.model_copy(update={"config_digest": run.digest, "code_digest": code})
    run.result.parent.mkdir(parents=True, exist_ok=True)
    run.result.write_text(made.model_dump_json(), encoding="utf-8")


def test_shipped_plan_is_valid_and_has_the_arms_and_the_other_student() -> None:
    plan = load_plan(CONFIGS / "evidence-plan.yaml")
    assert plan.seeds == (0, 1, 2)
    assert plan.transfer == TransferPlan(role="small-student", seed=1)
    assert plan.arms is not None
    assert set(plan.arms.groups["Algorithms"]) == {"rest_em", "rwr", "dpo"}
    assert len(plan.arms.groups["Ablations"]) >= 6


@pytest.mark.skipif(not (CONFIGS / "evidence.yaml").is_file(), reason="the configuration of the plan is not there")
def test_every_run_of_the_shipped_plan_has_a_valid_configuration(tmp_path: Path) -> None:
    plan = load_plan(CONFIGS / "evidence-plan.yaml")
    runs = planned_runs(plan, CONFIGS / plan.config, tmp_path)
    assert plan.arms is not None
    arms = 1 + sum(len(found) for found in plan.arms.groups.values())
    assert len(runs) == len(plan.seeds) + len(plan.arms.seeds) * arms
    for run in (run for run in runs if "halving" in run.name):
        reference = load_config(CONFIGS / plan.config, (f"seed={run.seed}", *plan.arms.common))
        arm = load_config(CONFIGS / plan.config, run.overrides)
        updates = [c.loop.documents * c.loop.updates_per_document(c.teacher.samples) for c in (reference, arm)]
        assert updates[1] == pytest.approx(updates[0], rel=0.1)


def test_plan_with_defaults_needs_the_configuration_alone(tmp_path: Path) -> None:
    plan = load_plan(write(tmp_path / "plan.yaml"))
    assert (plan.seeds, plan.transfer, plan.arms) == ((0, 1, 2), None, None)


def test_refused_plan_lists_every_mistake(tmp_path: Path) -> None:
    told = refusal(tmp_path, seed=[1], seeds=[1, 1], transfer={"role": "teacher"})
    for part in ("seed: Extra inputs", "allowed are seeds that differ, got [1, 1]", "transfer.role", "Nothing was"):
        assert part in told


@pytest.mark.parametrize(
    ("arms", "part"),
    [
        ({"common": ["loop.rounds"]}, "allowed is a dotted key"),
        ({"common": ["seed=3"]}, "seed follows from the seeds of the plan"),
        ({"groups": {"A": {"split": ["data.split_seed=3"]}}}, "data.split_seed follows"),
        ({"groups": {"A": {"as configured": [LONGER]}}}, "is the name of the reference"),
        ({"groups": {"A": {"same": []}}}, "change nothing"),
        ({"groups": {"A": {}}}, "got no arm"),
        ({"groups": {"A": {"a|b": [LONGER]}}}, "should match pattern"),
        ({"seeds": []}, "at least 1 item"),
    ],
)
def test_arms_that_make_no_sense_are_refused(tmp_path: Path, arms: dict[str, Any], part: str) -> None:
    assert part in refusal(tmp_path, arms=arms)


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "\xff"])
def test_file_that_is_no_plan_is_refused_with_its_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"plan\.yaml"):
        load_plan(path)
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        load_plan(tmp_path / "none.yaml")


def test_runs_are_seeds_then_reference_then_arms_each_with_its_own_documents(tmp_path: Path) -> None:
    runs = planned_runs(a_plan(), DEMO, tmp_path)
    assert [(run.group, run.name, run.seed) for run in runs] == [
        (SEEDS, "", 0),
        (SEEDS, "", 1),
        ("as configured", "as configured", 0),
        ("Ablations", "longer", 0),
    ]
    settled = load_config(DEMO, runs[1].overrides)
    assert (settled.seed, settled.data.split_seed) == (1, 1)
    assert load_config(DEMO, runs[3].overrides).loop.rounds == 14


def test_runs_of_one_configuration_share_their_result_and_others_do_not(tmp_path: Path) -> None:
    runs = planned_runs(a_plan(), DEMO, tmp_path)
    assert runs[0].result == runs[2].result  # the reference without common settings is the seed itself
    assert len({run.result for run in runs}) == 3
    apart = planned_runs(a_plan(common=("comparison.edits=1",)), DEMO, tmp_path)
    assert len({run.result for run in apart}) == 4


def test_other_student_goes_in_before_the_settings_of_the_arms(tmp_path: Path) -> None:
    plan = a_plan(common=("comparison.transfer=null",)).model_copy(update={"transfer": TransferPlan()})
    runs = planned_runs(plan, DEMO, tmp_path)
    transfer = load_config(DEMO, runs[0].overrides).comparison.transfer
    assert transfer is not None
    assert transfer.model == str(tmp_path / "transfer" / "small-student")
    assert [run.transfers for run in runs] == [True, True, False, False]


def test_runs_that_cannot_be_are_all_refused_before_any_starts(tmp_path: Path) -> None:
    arms = {"A": {"wrong": ("loop.round=3",), "wrong too": ("loop.rounds=-1",), "same": ("loop.rounds=12",)}}
    plan = EvidencePlan(config="demo.yaml", arms=ArmsPlan(groups={"A": arms["A"]}))
    with pytest.raises(ConfigError) as caught:
        planned_runs(plan, DEMO, tmp_path)
    told = str(caught.value)
    assert "wrong, seed 0" in told
    assert "wrong too, seed 0" in told
    assert "arm 'same, seed 0' of 'A': ['loop.rounds=12'] changes nothing of 'as configured'" in told


def test_result_counts_only_for_its_configuration_and_code_and_when_whole(tmp_path: Path) -> None:
    run = planned_runs(a_plan(), DEMO, tmp_path)[0]
    assert read_result(run) is None
    finish(run, "a" * 64)
    assert read_result(run) is not None
    assert read_result(run, "a" * 64) is not None
    assert read_result(run, "b" * 64) is None
    assert read_result(run._replace(digest="e" * 64)) is None
    whole = run.result.read_text(encoding="utf-8")
    run.result.write_text(whole[: len(whole) // 2], encoding="utf-8")
    assert read_result(run) is None


def test_failed_run_stops_the_rest_with_its_own_message_and_is_the_one_to_go_on_with(
    tmp_path: Path, unreadable: Path
) -> None:
    from pipelines.workspace import code_digest

    runs = planned_runs(EvidencePlan(config=unreadable.name, seeds=(0, 1, 2)), unreadable, tmp_path)
    finish(runs[0], code_digest())
    said: list[str] = []
    with pytest.raises(RunFailedError) as caught:
        run_all(unreadable, runs, tmp_path, lanes=1, resume=RESUME, say=said.append)
    assert [line.split("] ")[1].split(";")[0] for line in said] == [
        "all variants, seed 0: has its result",
        "all variants, seed 1: runs",
    ]
    assert said[1].startswith("[1 of 3 done, 0.")
    told = str(caught.value)
    assert "run 'all variants, seed 1': its process ended with exit code 2" in told
    assert "none.jsonl" in told  # the process's own message
    assert told.endswith(f"To go on: {RESUME}")
    assert machine(tmp_path).startswith(f"{os.cpu_count()} CPU cores")


def test_two_lanes_run_at_a_time_and_a_failure_ends_both(tmp_path: Path, unreadable: Path) -> None:
    runs = planned_runs(EvidencePlan(config=unreadable.name, seeds=(0, 1, 2)), unreadable, tmp_path)
    said: list[str] = []
    with pytest.raises(RunFailedError):
        run_all(unreadable, runs, tmp_path, lanes=2, resume=RESUME, say=said.append)
    assert [line.split("] ")[1].split(";")[0] for line in said] == [
        "all variants, seed 0: runs",
        "all variants, seed 1: runs",
    ]
    notes = [run.result.with_suffix(".lane") for run in runs]
    assert [note.read_text() if note.exists() else None for note in notes] == ["0\n", "1\n", None]
    said.clear()
    notes[0].write_text("1\n", encoding="utf-8")  # Begun in the other lane: it waits for that one.
    notes[1].write_text("0\n", encoding="utf-8")
    with pytest.raises(RunFailedError):
        run_all(unreadable, runs, tmp_path, lanes=2, resume=RESUME, say=said.append)
    assert [line.split("] ")[1].split(";")[0] for line in said] == [
        "all variants, seed 1: runs",
        "all variants, seed 0: runs",
    ]


def test_runs_that_transfer_wait_for_the_preparation_and_others_do_not(tmp_path: Path, unreadable: Path) -> None:
    made = planned_runs(EvidencePlan(config=unreadable.name, seeds=(0, 1)), unreadable, tmp_path)
    runs = [made[0]._replace(transfers=True), made[1]]
    said: list[str] = []
    slow = Preparation("the other student", (sys.executable, "-c", "import time; time.sleep(600)"), tmp_path / "b.log")
    with pytest.raises(RunFailedError, match="seed 1"):
        run_all(unreadable, runs, tmp_path, lanes=2, resume=RESUME, say=said.append, preparation=slow)
    assert [line.split("] ")[1].split(";")[0] for line in said] == [
        "the other student: runs",
        "all variants, seed 1: runs",
    ]
    said.clear()
    quick = slow._replace(command=(sys.executable, "-c", "print('built')"))
    with pytest.raises(RunFailedError, match="seed 0"):
        run_all(unreadable, runs[:1], tmp_path, lanes=2, resume=RESUME, say=said.append, preparation=quick)
    assert "the other student: done in" in said[1]
    bad = slow._replace(command=(sys.executable, "-c", "raise SystemExit('checks FAILED')"))
    with pytest.raises(RunFailedError, match="other student: its process ended with exit code 1") as caught:
        run_all(unreadable, runs[:1], tmp_path, lanes=1, resume=RESUME, say=said.append, preparation=bad)
    assert "checks FAILED" in str(caught.value)


def test_run_that_was_made_by_other_code_is_started_again(tmp_path: Path, unreadable: Path) -> None:
    (run,) = planned_runs(EvidencePlan(config=unreadable.name, seeds=(0,)), unreadable, tmp_path)
    finish(run, "a" * 64)
    with pytest.raises(RunFailedError):
        run_all(unreadable, [run], tmp_path, lanes=1, resume=RESUME, say=lambda line: None)


def test_machine_that_was_not_noted_is_not_made_up(tmp_path: Path) -> None:
    assert machine(tmp_path) == "a machine that was not noted"
