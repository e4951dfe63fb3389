"""Grid tasks through the real command: micro-grids, and real tasks of ARC with the micro models, scores as they are."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.flows.settings import train

pytestmark = pytest.mark.flow

FIXED = (
    "{name: fixed_spec, label: fixed, source: {type: fixed_specification, tasks: 1, space: "
    "{orientations: [none, mirror], colourings: [0], learning_rate: [0.01], epochs: [2]}}}"
)
SMALL = (
    "threads=1",
    "loop={rounds: 1, documents: 2}",
    "teacher.samples=3",
    "teacher.policy={rank: 2, alpha: 4}",
    "student.update.rank=2",
    "student.update.step_budget=null",
    "student.update.max_steps=4",
    "comparison.resamples=200",
    "comparison.keep_adapters=1",
)


def test_micro_grids_are_learned_on_and_compared(tmp_path: Path) -> None:
    sides = "data={type: microgrids, train_documents: 4, development_documents: 1, test_documents: 3, "
    variants = f"[base, raw_passage, {FIXED}, untrained_teacher, trained_teacher, other_document]"
    data = sides + "views: [as-it-is, mirror]}"
    result, output = train(tmp_path, "grids-demo", (*SMALL, data, f"comparison.variants={variants}"))
    kinds = {"base", "raw_passage", "fixed_spec", "untrained_teacher", "trained_teacher", "other_document"}
    assert set(result["variants"]) == kinds
    assert {"trained_minus_fixed_spec", "trained_minus_untrained", "other_document_minus_base"} <= set(result["gains"])
    specs = result["specs"]
    assert set(specs["scores"]) == {
        f'{{"orientations": "{name}", "colourings": 0, "learning_rate": 0.01, "epochs": 2}}'
        for name in ("none", "mirror")
    }
    assert "Best fixed specification" in output
    assert specs["fixed"] in " ".join(output.split())


def test_three_real_tasks_of_arc_run_end_to_end(tmp_path: Path, shared_data: Callable[..., Path]) -> None:
    """The smallest of ARC's tasks; students and teachers of micro-grids know nothing of their rules."""
    challenges, solutions = (
        json.loads(gzip.decompress(shared_data("arc", f"arc-agi_training_{kind}.json.gz").read_bytes()))
        for kind in ("challenges", "solutions")
    )
    chosen = sorted(challenges, key=lambda name: len(json.dumps(challenges[name])))[:3]
    paths = tmp_path / "challenges.json", tmp_path / "solutions.json"
    for path, content in zip(paths, (challenges, solutions), strict=True):
        path.write_text(json.dumps({name: content[name] for name in chosen}), encoding="utf-8")
    data = f"data={{type: arc, path: {paths[0]}, development_documents: 0, "
    more = "loop={rounds: 1, documents: 1}", "grading.max_new_tokens=128", "comparison.edits=3"
    result, _ = train(tmp_path, "grids-demo", (*SMALL, data + "test_documents: 2}", *more))
    # What a teacher of micro-grids writes about other grids is not always a specification: such a task has no score.
    assert result["documents"] >= 1
    assert set(result["document_accuracy"]["base"]) <= set(chosen)
    assert all(0.0 <= value["mean"] <= 1.0 for value in result["variants"].values())
