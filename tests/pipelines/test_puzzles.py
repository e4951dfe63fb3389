"""Grid tasks through the units of work: real adapters of a tiny student, no teacher."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evaluation.errors import ConfigError, InputError
from evaluation.grids.text import read_grid
from pipelines.config import RunConfig
from pipelines.grading import graded
from pipelines.work import UpdateRequest, run_bank, update_job
from pipelines.workspace import Workspace
from student.augmentations import build_examples
from teacher.rewards import RewardFailure
from teacher.self_edit import AugmentationSpec, Implication, SelfEdit, TrainingSpec
from tests.pipelines.small import save_tiny_model, small_config

TASKS = 6


def _task(number: int) -> dict[str, object]:
    """Mirror left to right, in colours of its own."""
    rows = [[[number, 0, k + 1]] for k in range(4)]
    pairs = [{"input": grid, "output": [row[::-1] for row in grid]} for grid in rows]
    return {"train": pairs[:3], "test": pairs[3:]}


def config(place: Path, *overrides: str) -> RunConfig:
    tasks = place / "tasks.json"
    tasks.write_text(json.dumps({f"t{n}": _task(n) for n in range(TASKS)}), encoding="utf-8")
    student = save_tiny_model(place / "student")
    return small_config(
        f"data={{type: arc, path: {tasks}, development_documents: 1, test_documents: 2}}",
        f"student.model={student}",
        'student.answer_format={prompt: "{question}", joiner: ""}',
        "teacher.prompt=grid-spec",
        "comparison.fixed_prompts=[]",
        "comparison.controls=[]",
        "comparison.joint_update=null",
        "loop.pilot=null",
        *overrides,
    )


def test_specification_becomes_the_training_data_of_its_task(tmp_path: Path) -> None:
    ws = Workspace(config(tmp_path), tmp_path / "work")
    task = ws.split.train[0]
    assert task.puzzle is not None
    spec = AugmentationSpec(orientations="flip", colourings=1)
    edit = SelfEdit(augmentations=spec, training=TrainingSpec(epochs=2, learning_rate=0.01, loss_on="answer"))
    job = update_job(ws, UpdateRequest(task.id, 0, edit, seed=5))
    assert job is not None
    assert len(job.sequences) == len(build_examples(task.puzzle, spec, 5).lines)
    assert (job.recipe.epochs, job.recipe.learning_rate) == (2, 0.01)
    answered = [sum(sequence.loss_mask) for sequence in job.sequences]
    assert max(answered) < min(len(sequence.tokens) for sequence in job.sequences), "loss on answers alone"
    plain = SelfEdit(implications=(Implication(text=task.document.text),))
    raw = update_job(ws, UpdateRequest(task.id, 0, plain, seed=5))
    assert raw is not None
    assert len(raw.sequences) == 1


def test_updates_are_scored_voted_on_and_refused_by_their_reasons(tmp_path: Path) -> None:
    ws = Workspace(
        config(
            tmp_path,
            "data.views=[as-it-is, mirror, turn-180]",
            "student.update.step_budget=20",
            "student.update.batch_size=1",
            "grading={grader: {type: grid-votes}, max_new_tokens: 8}",
        ),
        tmp_path / "work",
    )
    task = ws.split.test[0]
    fine = SelfEdit(training=TrainingSpec(epochs=5, learning_rate=0.01))
    greedy = SelfEdit(augmentations=AugmentationSpec(orientations="all"), training=TrainingSpec(epochs=100))
    requests = [UpdateRequest(task.id, i, edit, seed=1) for i, edit in enumerate((fine, greedy))]
    first, second = graded(ws, run_bank(ws, requests, "comparison"), "comparison").replicates
    assert first.failure is None
    assert first.steps == 15
    assert len(first.correct) == len(first.cells) == len(first.answers) == len(task.held_out_questions) == 3
    assert len(set(first.correct)) == 1, "views of one output share a verdict"
    assert all(0.0 <= p <= q <= 1.0 for p, q in zip(first.probability, first.token_probability, strict=True))
    assert second.failure is RewardFailure.OVER_BUDGET
    assert "allowed are 20" in second.detail
    # Single views are asked for in rewards.
    rewarded = run_bank(ws, requests[:1], "rewards").replicates[0]
    assert len(rewarded.exact) == len(task.questions) == 1
    assert read_grid(task.questions[0].answer) is not None


def test_prompt_tells_the_budget_and_shows_no_test(tmp_path: Path) -> None:
    for budget, told in ((20, "at most 20 steps"), (None, "")):
        ws = Workspace(config(tmp_path, f"student.update.step_budget={budget or 'null'}"), tmp_path / "work")
        task = ws.split.train[0]
        prompt = ws.prompt("grid-spec", task.document)
        assert told in prompt
        assert ("steps in all" in prompt) is (budget is not None)
        assert task.document.text in prompt
        assert task.questions[0].question not in prompt


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("data.views=[as-it-is, mirror]", "only the grader grid-votes puts together"),
        ("data.views=[mirror, mirror]", "views that differ"),
        ("data.views=[sideways]", "views"),
    ],
)
def test_views_that_make_no_sense_are_refused(tmp_path: Path, override: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        config(tmp_path, override)


def test_votes_are_for_grids_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="grid-votes are for grid tasks"):
        small_config("grading={grader: {type: grid-votes}}")


def test_tasks_without_solutions_are_refused_before_anything_else(tmp_path: Path) -> None:
    settings = config(tmp_path)
    challenges = {f"t{n}": {**_task(n), "test": [{"input": [[1]]}]} for n in range(TASKS)}
    (tmp_path / "tasks.json").write_text(json.dumps(challenges), encoding="utf-8")
    with pytest.raises(InputError, match="6 of 6 tasks are not known"):
        Workspace(settings, tmp_path / "work")


def test_examples_that_are_left_out_are_told(tmp_path: Path) -> None:
    ws = Workspace(config(tmp_path), tmp_path / "work")
    task = ws.split.train[0]
    many = SelfEdit(
        augmentations=AugmentationSpec(orientations="all", colourings=16, leave_out=2),
        training=TrainingSpec(epochs=1, learning_rate=0.01),
    )
    (replicate,) = run_bank(ws, [UpdateRequest(task.id, 0, many, seed=1)], "rewards").replicates
    assert replicate.failure is None
    assert replicate.detail.startswith("examples left out: ")
    assert replicate.detail.endswith("beyond 250")
