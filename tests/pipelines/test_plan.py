"""A run does what its plan says: the counts of a dry run are those of the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evaluation.tasks import PARAPHRASES
from pipelines.loop.loop import Loop
from pipelines.plan import StepKind, steps_of, totals
from pipelines.train_teacher.flow import train_teacher
from pipelines.train_teacher.plan import plan_run
from tests.pipelines.factories import CONFIGS, SMALL, small_config

VARIANTS = (
    "comparison={edits: 1, resamples: 100, variants: [base, raw_passage, "
    "{name: fixed_kind, label: best, source: {type: best_prompt, prompts: [micro-self-qa]}}, untrained_teacher, "
    "warm_started_teacher, trained_teacher, null_edit, other_document, fixed_kind_equal_tokens, oracle, "
    "trained_teacher_distilled, passage_in_context, retrieval, {name: own, label: own questions, objective: "
    "context_distillation, source: {type: own_questions, prompt: micro-self-qa}}]}"
)
LOOP = "loop={rounds: 1, documents: 2, development: {every: 1, edits: 1}}"
SETTINGS = (VARIANTS, LOOP, "warm_start={documents: 2, epochs: 1}")


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> Counter[StepKind]:
    """What a run really did, counted where it is done."""
    found: Counter[StepKind] = Counter()

    def count(kind: StepKind, name: str, size: Callable[[Any, Any], int]) -> None:
        original = getattr(Loop, name)

        def counted(self: Loop, *arguments: Any, **more: Any) -> Any:
            made = original(self, *arguments, **more)
            found[kind] += size(made, arguments)
            return made

        monkeypatch.setattr(Loop, name, counted)

    count("sample", "write", lambda made, _: len(made.edits))
    count("update", "update", lambda made, _: sum(update.adapter_digest is not None for update in made))
    count("score", "base", lambda _, given: len(given[0]) * (len(PARAPHRASES) if given[1] == "paraphrases" else 1))
    count("learn", "learn", lambda _, arguments: len(arguments[1]))
    count("learn", "warm_start", lambda _, arguments: len(arguments[0]))
    count("sample", "sample_student", lambda made, _: len(made.edits))
    count("read", "with_passages", lambda made, _: len(made))
    return found


def test_a_dry_runs_counts_equal_what_the_run_did(
    tmp_path: Path, prefect_server: None, done: Counter[StepKind]
) -> None:
    plan = plan_run(small_config(*SETTINGS))
    train_teacher(str(CONFIGS / "demo.yaml"), [*SMALL, *SETTINGS], str(tmp_path / "work"))
    assert done == totals(steps_of(plan))


def test_every_stage_of_a_plan_has_a_name_of_its_own() -> None:
    names = [stage.name for stage in plan_run(small_config(*SETTINGS))]
    assert len(set(names)) == len(names)
    assert {"warm start", "round 0", "development 0", "variant oracle"} <= set(names)
