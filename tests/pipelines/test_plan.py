"""A run does what its plan says: the counts of a dry run are those of the run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from pipelines.plan import StepKind, steps_of, totals
from pipelines.records import Learning, Sampling, ScoredUpdate
from pipelines.train_teacher.flow import train_teacher
from pipelines.train_teacher.plan import plan_run
from tests.pipelines.factories import CONFIGS, SMALL, small_config

VARIANTS = (
    "comparison={edits: 1, resamples: 100, curve: {tokens: [40], samples: 2}, variants: [base, raw_passage, "
    "{name: fixed_kind, label: best, source: {type: best_prompt, prompts: [micro-self-qa]}}, untrained_teacher, "
    "trained_teacher, null_edit, other_document, fixed_kind_equal_tokens, proxy_teacher, oracle]}"
)
SETTINGS = (VARIANTS, "loop={rounds: 1, documents: 2, development: {every: 1, edits: 1}}")


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> Counter[StepKind]:
    """What a run really did, counted where it is done."""
    from pipelines.loop.loop import Loop

    found: Counter[StepKind] = Counter()
    sample, update, base, learn, read = Loop.sample, Loop.update, Loop.base, Loop.learn, Loop.in_context

    def counted_sample(self: Loop, *args: object, **more: object) -> Sampling:
        made = sample(self, *args, **more)  # type: ignore[arg-type]
        found["sample"] += len(made.edits)
        return made

    def counted_update(self: Loop, trials: list[object], questions: str) -> tuple[ScoredUpdate, ...]:
        made = update(self, trials, questions)  # type: ignore[arg-type]
        found["update"] += sum(update.adapter_digest is not None for update in made)
        return made

    def counted_base(self: Loop, tasks: list[object], questions: str) -> tuple[ScoredUpdate, ...]:
        found["score"] += len(tasks)
        return base(self, tasks, questions)  # type: ignore[arg-type]

    def counted_learn(self: Loop, state: str | None, examples: list[object], *, seed: int) -> Learning:
        found["learn"] += len(examples)
        return learn(self, state, examples, seed=seed)  # type: ignore[arg-type]

    def counted_read(self: Loop, edits: list[object]) -> object:
        found["read"] += len(edits)
        return read(self, edits)  # type: ignore[arg-type]

    for name, counted in (
        ("sample", counted_sample),
        ("update", counted_update),
        ("base", counted_base),
        ("learn", counted_learn),
        ("in_context", counted_read),
    ):
        monkeypatch.setattr(Loop, name, counted)
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
    assert {"round 0", "development 0", "proxy round 0", "variant oracle", "curve fixed_kind"} <= set(names)
