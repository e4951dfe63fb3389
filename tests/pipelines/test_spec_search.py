"""Specifications tried one by one: real updates of a tiny student on micro-grids."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.errors import ConfigError
from evaluation.microgrids.world import ADAPTED, UNSEEN
from pipelines.comparison import base_variant
from pipelines.config import RunConfig, load_config
from pipelines.costs import estimate
from pipelines.families import by_family
from pipelines.spec_search import Table, best_fixed, find_fixed, find_oracle, fixed_spec_variant, try_all
from pipelines.workspace import Workspace
from tests.pipelines.factories import make_variant
from tests.pipelines.small import save_tiny_model, small_config, units_of

GRIDS = Path(__file__).resolve().parents[2] / "configs" / "grids-demo.yaml"
SPACE = "{orientations: [none, all], colourings: [0], learning_rate: [0.01], epochs: [1, 9]}"


def config(place: Path, *overrides: str) -> RunConfig:
    student = place / "student"
    if not student.exists():
        save_tiny_model(student)
    return load_config(
        GRIDS,
        [
            "threads=1",
            "data={type: microgrids, train_documents: 4, development_documents: 1, test_documents: 4, "
            "rewarded_tests: 3, compared_tests: 2}",
            f"student.model={student}",
            f"teacher.model={student}",
            "student.update.step_budget=10",
            f"comparison.specs={{space: {SPACE}, fixed_tasks: 2, oracle_tasks: 2}}",
            "comparison.resamples=100",
            "loop={rounds: 1, documents: 2}",
            *overrides,
        ],
    )


def test_best_fixed_specification_has_a_score_on_every_task() -> None:
    table: Table = {"a": [0.1, 0.9, 0.5], "b": [0.2, None, 0.6]}
    best, means = best_fixed(table)
    assert best == 2
    assert means == [pytest.approx(0.15), None, pytest.approx(0.55)]
    with pytest.raises(ValueError, match="no specification has a score on every task"):
        best_fixed({"a": [None], "b": [0.1]})


def test_all_specifications_are_tried_and_the_best_are_scored_like_any_variant(
    tmp_path: Path, prefect_server: None
) -> None:
    ws = Workspace(config(tmp_path), tmp_path / "work")
    units = units_of(ws)
    space = ws.config.comparison.specs
    assert space is not None
    table = try_all(ws, units, ws.split.train[:2], space.space, "here")
    assert [len(scores) for scores in table.values()] == [4, 4]
    # 32 examples, four a step, nine times over are more than ten steps; the other three are within the budget.
    assert all([score is None for score in scores] == [False, False, False, True] for scores in table.values())

    fixed = find_fixed(ws, units)
    assert fixed is not None
    assert fixed.record.tasks == 2
    assert list(fixed.record.scores.values()).count(None) == 1
    assert fixed.record.scores[fixed.record.fixed] == max(s for s in fixed.record.scores.values() if s is not None)
    variant = fixed_spec_variant(ws, units, fixed, ws.split.test)
    assert set(variant.accuracy) == {task.id for task in ws.split.test}
    assert {candidate.edit.text for candidate in variant.candidates} == {fixed.record.fixed}

    trained = variant.model_copy(update={"name": "trained_teacher"})
    oracle = find_oracle(ws, units, [base_variant(ws, units, ws.split.test), trained])
    assert oracle is not None
    names = [task.id for task in ws.split.test]
    assert list(oracle.chosen) == sorted(oracle.chosen, key=names.index), "drawn at random, in the order of the tasks"
    assert len(oracle.chosen) == len(set(oracle.chosen)) == 2
    assert set(oracle.variants) == {"base", "trained_teacher"}
    assert oracle.regret is not None
    assert oracle.regret.mean == pytest.approx(oracle.oracle.mean - oracle.variants["trained_teacher"].mean)

    silent = trained.model_copy(update={"accuracy": {}})  # every specification that it wrote was refused
    beside = find_oracle(ws, units, [base_variant(ws, units, ws.split.test), silent])
    assert beside is not None
    assert (beside.share, beside.regret, set(beside.variants)) == (None, None, {"base"})


def test_without_a_wish_nothing_is_tried(tmp_path: Path) -> None:
    ws = Workspace(config(tmp_path, "comparison.specs=null"), tmp_path / "work")
    assert find_fixed(ws, units_of(ws)) is None
    assert find_oracle(ws, units_of(ws), []) is None


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("comparison.controls=[swapped_values]", "swapped_values"),
        ("comparison.joint_update={rank: 4}", "joint_update"),
        ("data.views=[as-it-is, as-it-is]", "views that differ"),
        ("comparison.specs.space.epochs=[0]", "epochs"),
    ],
)
def test_what_makes_no_sense_on_grids_is_refused(tmp_path: Path, override: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        config(tmp_path, override)


def test_specifications_are_for_grids_alone() -> None:
    with pytest.raises(ConfigError, match=r"comparison\.specs: for grid tasks"):
        small_config("comparison.specs={}")


def test_sides_are_of_the_sizes_asked_for_and_hold_tests_apart(tmp_path: Path) -> None:
    ws = Workspace(config(tmp_path), tmp_path / "work")
    assert list(map(len, ws.split)) == [4, 1, 4]
    for task in ws.tasks.values():
        rewarded, compared = ({q.question for q in side} for side in (task.questions, task.held_out_questions))
        assert (len(rewarded), len(compared)) == (3, 2)
        assert not rewarded & compared


def test_families_are_told_apart_by_whether_training_has_them(tmp_path: Path) -> None:
    ws = Workspace(config(tmp_path, "data.test_documents=17"), tmp_path / "work")
    first = ws.split.test[0]
    scores = {task.id: 0.25 for task in ws.split.test} | {first.id: 0.75}
    found = by_family([make_variant(accuracy=scores), make_variant("base", accuracy={})], ws.split)
    held_out = [family for family, record in found.items() if record.held_out]
    # Four training tasks are of the first four families that take turns.
    assert [family for family in found if family not in held_out] == list(dict.fromkeys(ADAPTED[:4]))
    assert set(UNSEEN) <= set(held_out)
    assert list(found)[-len(held_out) :] == held_out
    assert sum(record.tasks for record in found.values()) == 17
    assert first.puzzle is not None
    mine = found[first.puzzle.family]
    assert mine.accuracy == {"trained_teacher": pytest.approx((0.75 + 0.25 * (mine.tasks - 1)) / mine.tasks)}


def test_cost_counts_every_specification_at_its_own_steps(tmp_path: Path) -> None:
    without = estimate(config(tmp_path, "comparison.specs=null"))
    cost = estimate(config(tmp_path))
    # Four specifications on four tasks, the fixed one on four test tasks, the best ones of two again.
    assert cost.student_updates - without.student_updates == 4 * 4 + 4 + 2
    # One, nine and eight steps; the fourth is over the budget. The six others count ten, the budget.
    assert cost.optimizer_steps - without.optimizer_steps == 4 * (1 + 9 + 8) + 6 * 10
