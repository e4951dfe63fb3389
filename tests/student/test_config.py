"""The recipe of an update: ranges, schedule, and which layers it names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import get_linear_schedule_with_warmup

from student.config import WHOLE_DEPTH, UpdateRecipe, select_layers, unknown_names
from teacher.self_edit import TrainingSpec


def test_recipe_with_spec_overrides_what_the_spec_sets_alone() -> None:
    recipe = UpdateRecipe(rank=8, epochs=5, warmup_steps=3)
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


@given(warmup=st.integers(0, 8), total=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_learning_rate_at_equals_transformers_schedule(warmup: int, total: int) -> None:
    recipe = UpdateRecipe(learning_rate=0.3, warmup_steps=warmup)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    schedule = get_linear_schedule_with_warmup(optimizer, warmup, total)
    for step in range(total):
        assert recipe.learning_rate_at(step, total) == pytest.approx(schedule.get_last_lr()[0], abs=1e-15)
        optimizer.step()
        schedule.step()


PARTS = ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")


def _names(blocks: int) -> list[str]:
    return [*(f"model.layers.{i}.{part}" for i in range(blocks) for part in PARTS), "lm_head"]


@given(st.integers(1, 40), st.floats(0, 1), st.floats(0, 1))
def test_cuts_of_the_depth_share_the_blocks_out(blocks: int, one: float, other: float) -> None:
    """What two cuts make of the depth is the whole of it, in order; a block on a cut is on both sides."""
    low, high = sorted((one, other))
    pieces = [set(select_layers(_names(blocks), "all-linear", cut)) for cut in ((0.0, low), (low, high), (high, 1.0))]
    assert set.union(*pieces) - {"lm_head"} == set(_names(blocks)) - {"lm_head"}
    assert select_layers(_names(blocks), "all-linear", WHOLE_DEPTH) == _names(blocks)


def test_names_and_ends_of_names() -> None:
    names = _names(2)
    assert select_layers(names, ("up_proj",), (0.5, 1.0)) == ["model.layers.1.mlp.up_proj"]
    assert select_layers(names, ("lm_head",), WHOLE_DEPTH) == ["lm_head"]
    assert select_layers(names, ("lm_head",), (0.0, 0.9)) == []
    assert unknown_names(names, ("up_proj", "p_proj", "1.mlp.up_proj")) == ["p_proj"]
    assert unknown_names(names, "all-linear") == []
