from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import get_constant_schedule_with_warmup, get_linear_schedule_with_warmup

from student.config import UpdateRecipe
from teacher.self_edit import TrainingSpec


def test_recipe_with_spec_overrides_what_the_spec_sets_alone() -> None:
    recipe = UpdateRecipe(rank=8, epochs=5, weight_decay=0.1)
    changed = recipe.with_spec(TrainingSpec(learning_rate=0.02, loss_on="answer"))
    assert changed == recipe.model_copy(update={"learning_rate": 0.02, "loss_on": "answer"})
    assert recipe.with_spec(None) is recipe
    assert recipe.with_spec(TrainingSpec()) is recipe
    assert recipe.with_spec(TrainingSpec(rank=2)).scale == 4 * recipe.scale


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"adam_betas": (0.9, 1.0)},
        {"target_modules": ()},
        {"depth": (0.6, 0.4)},
        {"depth": (0.5, 1.1)},
        {"batch": 3},
        {"max_gradient_norm": 0.0},
    ],
)
def test_recipe_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        UpdateRecipe.model_validate(wrong)


@given(sequences=st.integers(1, 40), epochs=st.integers(1, 9), batch=st.integers(1, 12), most=st.integers(1, 100))
def test_total_steps_counts_what_a_loop_would_do(sequences: int, epochs: int, batch: int, most: int) -> None:
    recipe = UpdateRecipe(epochs=epochs, batch_size=batch, max_steps=most)
    steps = sum(1 for _ in range(epochs) for _ in range(0, sequences, batch))
    assert recipe.total_steps(sequences) == min(steps, most)


@given(warmup=st.integers(0, 8), total=st.integers(1, 12), linear=st.booleans())
@settings(max_examples=40, deadline=None)
def test_learning_rate_at_equals_transformers_schedules(warmup: int, total: int, linear: bool) -> None:
    recipe = UpdateRecipe(learning_rate=0.3, warmup_steps=warmup, schedule="linear" if linear else "constant")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    if linear:
        schedule = get_linear_schedule_with_warmup(optimizer, warmup, total)
    else:
        schedule = get_constant_schedule_with_warmup(optimizer, warmup)
    for step in range(total):
        assert recipe.learning_rate_at(step, total) == pytest.approx(schedule.get_last_lr()[0], abs=1e-15)
        optimizer.step()
        schedule.step()
