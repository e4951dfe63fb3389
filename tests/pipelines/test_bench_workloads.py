from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.errors import ConfigError, GenerationError
from pipelines.bench.common import demo_config
from pipelines.bench.records import BankBench
from pipelines.bench.workloads import (
    demo_workload,
    heaviest_job,
    run_config,
    spread_sample,
    synthetic_jobs,
    typical_job,
)
from pipelines.config import load_config
from pipelines.workspace import Workspace
from student.config import UpdateRecipe
from student.sequences import TrainingSequence
from student.updates import UpdateJob
from tests.pipelines.small import save_tiny_model, small_config

RECIPE = UpdateRecipe(epochs=2)


def jobs(seed: int = 0, adapters: int = 6, lines: int = 5, tokens: int = 20) -> tuple[UpdateJob, ...]:
    return synthetic_jobs(RECIPE, 300, 64, adapters=adapters, lines=lines, tokens=tokens, seed=seed)


def content(of: tuple[UpdateJob, ...]) -> list[tuple[object, ...]]:
    return [(job.key, job.sequences, job.recipe, job.seed) for job in of]


def job(name: str, *lengths: int) -> UpdateJob:
    return UpdateJob(name, tuple(TrainingSequence((1,) * n, (True,) * n) for n in lengths), RECIPE, seed=0)


def test_synthetic_jobs_are_decided_by_the_seed() -> None:
    assert content(jobs(seed=3)) == content(jobs(seed=3))
    assert content(jobs(seed=3)) != content(jobs(seed=4))


def test_synthetic_jobs_have_the_amount_that_was_asked_for() -> None:
    made = jobs(adapters=40)
    lengths = [len(sequence.tokens) for job in made for sequence in job.sequences]
    assert (len(made), len(lengths)) == (40, 200)
    assert (min(lengths), max(lengths)) == (15, 25)
    assert sum(lengths) / len(lengths) == pytest.approx(20, abs=1)
    drawn = {token for job in made for sequence in job.sequences for token in sequence.tokens}
    assert min(drawn) >= 0
    assert 290 < max(drawn) < 300
    assert len({job.seed for job in made}) == 40


def test_synthetic_lines_beyond_the_students_positions_are_refused() -> None:
    with pytest.raises(ConfigError, match="up to 65 in a line, but the student has 64 positions"):
        jobs(tokens=52)
    assert jobs(tokens=51)


def test_spread_sample_stands_for_all() -> None:
    made = tuple(job(f"job-{n}", n) for n in (9, 3, 7, 5, 2, 8, 4, 6))
    assert [len(one.sequences[0].tokens) for one in spread_sample(made, 2)] == [4, 8]
    assert [len(one.sequences[0].tokens) for one in spread_sample(made, 4)] == [3, 5, 7, 9]
    assert {one.key for one in spread_sample(made, 99)} == {one.key for one in made}


def test_typical_job_has_the_mean_number_of_lines_and_the_heaviest_the_fullest_step() -> None:
    made = [job("short", 4), job("middle", 4, 4, 4), job("many", *[3] * 7), job("long", 12, 2)]
    assert typical_job(made).key == "middle"
    assert heaviest_job(made).key == "long"


def test_run_config_gives_the_synthetic_workload_its_own_recipe_alone() -> None:
    asked = BankBench(config=demo_config(), student="some/model", epochs=3, rank=2, seed=7)
    demo, synthetic = run_config(asked), run_config(asked.model_copy(update={"workload": "synthetic"}))
    everywhere = {"target_modules": "all-linear", "depth": (0.0, 1.0)}
    recipe = load_config(demo_config()).student.update.model_copy(update=everywhere)
    assert (demo.seed, demo.student.model) == (7, "some/model")
    assert demo.student.update == recipe
    assert synthetic.student.update == recipe.model_copy(update={"epochs": 3, "rank": 2})


def test_demo_workload_is_the_first_updates_of_a_run(tmp_path: Path) -> None:
    config = small_config()
    first, again = (demo_workload(config, 5, tmp_path) for _ in range(2))
    assert content(first.jobs) == content(again.jobs)
    assert len(first.jobs) == 5
    ws = Workspace(config, tmp_path)
    order = [task.id for number in range(5) for task in ws.round_documents(number)]
    documents = [one.key.partition("#")[0] for one in first.jobs]
    assert documents == sorted(documents, key=order.index)
    assert documents[0] in order[:2]
    assert len(set(documents)) > 2  # Two documents make a round, so a second one was begun.
    for one in first.jobs:
        assert one.recipe == config.student.update
        assert one.seed in {ws.seed("update", f"round {n}", one.key.partition("#")[0], 0) for n in range(5)}
    assert first.digest == ws.student_digest


def test_demo_workload_of_a_teacher_that_writes_nothing_is_refused(tmp_path: Path) -> None:
    silent = save_tiny_model(tmp_path / "silent", silent=True)
    with pytest.raises(GenerationError, match="none of 4 self-edits"):
        demo_workload(small_config(f"teacher.model={silent}"), 2, tmp_path)
