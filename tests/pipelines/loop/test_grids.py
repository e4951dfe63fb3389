"""Grid tasks through the loop: specifications become training data, written grids are voted on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from evaluation.grids.domain import as_task
from evaluation.grids.grids import read_grid
from pipelines.loop.loop import Loop
from pipelines.loop.teacher import Writing, sample_from
from pipelines.loop.update import Trial
from pipelines.train_teacher.config import TrainTeacherConfig
from teacher.rewards import RewardFailure
from teacher.samplers.sampler import Completion, Seeds
from teacher.self_edit import AugmentationSpec, Implication, SelfEdit, TrainingSpec
from tests.evaluation.grids.factories import mirror_task
from tests.pipelines.factories import make_loop, save_tiny_model, small_config

TASKS = 6


def _task(number: int) -> dict[str, object]:
    """Mirror left to right, in colours of its own."""
    rows = [[[number, 0, k + 1]] for k in range(4)]
    pairs = [{"input": grid, "output": [row[::-1] for row in grid]} for grid in rows]
    return {"train": pairs[:3], "test": pairs[3:]}


def config(place: Path, *overrides: str) -> TrainTeacherConfig:
    tasks = place / "tasks.json"
    if not tasks.exists():
        tasks.write_text(json.dumps({f"t{n}": _task(n) for n in range(TASKS)}), encoding="utf-8")
        save_tiny_model(place / "student")
    return small_config(
        f"data={{type: arc, path: {tasks}, development_documents: 1, test_documents: 2}}",
        f"student.model={place / 'student'}",
        'student.answer_format={prompt: "{question}", joiner: ""}',
        "teacher.prompt=grid-spec",
        "comparison.variants=[base, raw_passage, untrained_teacher, trained_teacher]",
        *overrides,
    )


def loop_of(place: Path, *overrides: str) -> Loop:
    return make_loop(config(place, *overrides), place / "work")


def test_updates_are_scored_voted_on_and_refused_by_their_reasons(tmp_path: Path, prefect_server: None) -> None:
    loop = loop_of(
        tmp_path,
        "data.views=[as-it-is, mirror, turn-180]",
        "student.update.step_budget=20",
        "student.update.batch_size=1",
        "grading={grader: {type: domain}, max_new_tokens: 8}",
    )
    task = next(iter(loop.tasks.values()))
    fine = SelfEdit(training=TrainingSpec(epochs=5, learning_rate=0.01))
    greedy = SelfEdit(augmentations=AugmentationSpec(orientations="all"), training=TrainingSpec(epochs=100))
    trials = [Trial(task.id, i, edit, seed=1) for i, edit in enumerate((fine, greedy))]
    first, second = loop.update(trials, "comparison")
    assert first.failure is None
    assert first.steps == 15
    assert len(first.correct) == len(first.answers) == len(task.held_out_questions) == 3
    assert len(set(first.correct)) == 1, "views of one output share a verdict"
    assert all(0.0 <= p <= q <= 1.0 for p, q in zip(first.probability, first.token_probability, strict=True))
    assert second.failure is RewardFailure.OVER_BUDGET
    assert "allowed are 20" in second.detail
    (rewarded,) = loop.update(trials[:1], "rewards")
    assert len(rewarded.exact) == len(task.questions) == 1, "rewards ask single views"
    assert read_grid(task.questions[0].answer) is not None


@pytest.mark.parametrize("budget", [20, None])
def test_prompt_gives_the_budget_and_shows_no_test(tmp_path: Path, budget: int | None) -> None:
    loop = loop_of(tmp_path, f"student.update.step_budget={budget or 'null'}")
    task = next(iter(loop.tasks.values()))
    prompt = loop.prompt("grid-spec", task)
    assert ("at most 20 steps" in prompt) is (budget is not None)
    assert task.document.text in prompt
    assert task.questions[0].question not in prompt


class Writer:
    """Writes the same text for every prompt."""

    max_prompt_tokens = None

    def close(self) -> None:
        pass

    def count_tokens(self, prompt: str) -> int:
        return 0

    def sample(self, prompts: Sequence[str], *, n: int, seed: Seeds, stop: str | None = None) -> list[list[Completion]]:
        text = 'The rule turns rows.\n{"orientations": "flip"}'
        return [[Completion(text, (), "stop")] * n for _ in prompts]


def test_lines_beside_a_specification_are_dropped_where_it_stands_alone() -> None:
    task = as_task(mirror_task(((1, 2),)))
    knowledge = task.model_copy(update={"domain": "knowledge"})
    alone, both = (sample_from(Writer(), Writing([""], [one], 1, 0)).edits[0].edit for one in (task, knowledge))
    assert alone == SelfEdit(augmentations=AugmentationSpec(orientations="flip"))
    assert both is not None
    assert both.implications == (Implication(text="The rule turns rows."),)
