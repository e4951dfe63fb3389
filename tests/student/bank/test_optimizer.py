from __future__ import annotations

import pytest
import torch

from student.bank.optimizer import SlotAdamW, SlotStep
from student.config import MAX_GRADIENT_NORM, UpdateRecipe

RECIPES = [
    UpdateRecipe(learning_rate=0.1),
    UpdateRecipe(learning_rate=0.01, adam_betas=(0.8, 0.95)),
    UpdateRecipe(learning_rate=0.5, warmup_steps=2),
]
TOTALS = [6, 5, 3]


def _alone(start: torch.Tensor, gradients: torch.Tensor, recipe: UpdateRecipe) -> torch.Tensor:
    """Return `start` (P,) after a step of torch's AdamW for each of the gradients (steps, P)."""
    alone = start.clone().requires_grad_()
    adam = torch.optim.AdamW([alone], lr=1.0, weight_decay=0.0, betas=recipe.adam_betas)
    for step, gradient in enumerate(gradients):
        adam.param_groups[0]["lr"] = recipe.learning_rate_at(step, len(gradients))
        alone.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_([alone], MAX_GRADIENT_NORM)
        adam.step()
    return alone.detach()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("width", [7, 1 << 16])
def test_slot_adamw_equals_torch_adamw_for_each_slot(width: int, dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, width, generator=generator, dtype=dtype)
    gradients = torch.randn(6, 3, width, generator=generator, dtype=dtype)
    flat = start.clone()
    optimizer = SlotAdamW(flat)
    for step in range(6):
        active = sum(total > step for total in TOTALS)
        slots = [SlotStep(RECIPES[k], step, TOTALS[k]) for k in range(active)]
        optimizer.step(gradients[step, :active].clone(), slots)
    for k, (recipe, total) in enumerate(zip(RECIPES, TOTALS, strict=True)):
        expected = _alone(start[k], gradients[:total, k], recipe)
        assert torch.allclose(flat[k], expected, rtol=tolerance, atol=tolerance)


def test_slot_adamw_late_slot_is_where_it_would_be_alone() -> None:
    """Slot 1 leaves, the last slot takes its place, and a new one begins with moments and steps of its own."""
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    gradients = torch.randn(5, 3, 5, generator=generator, dtype=torch.float64)
    flat = start[:3].clone()
    optimizer = SlotAdamW(flat)
    for step in range(2):
        optimizer.step(gradients[step].clone(), [SlotStep(recipe, step, 5) for recipe in RECIPES])
    optimizer.move(2, 1)
    flat[2].copy_(start[3])
    optimizer.reset(2)
    order = [RECIPES[0], RECIPES[2], RECIPES[1]]
    for step in range(3):
        slots = [SlotStep(order[0], 2 + step, 5), SlotStep(order[1], 2 + step, 5), SlotStep(order[2], step, 3)]
        optimizer.step(gradients[2 + step, [0, 2, 1]].clone(), slots)
    expected = [
        _alone(start[0], gradients[:, 0], RECIPES[0]),
        _alone(start[2], gradients[:, 2], RECIPES[2]),
        _alone(start[3], gradients[2:, 1], RECIPES[1]),
    ]
    assert torch.allclose(flat, torch.stack(expected), rtol=0, atol=1e-12)


def test_slot_adamw_unused_ranks_stay_zero() -> None:
    flat = torch.tensor([[1.0, 0.0]])
    optimizer = SlotAdamW(flat)
    for step in range(3):
        optimizer.step(torch.tensor([[0.5, 0.0]]), [SlotStep(UpdateRecipe(), step, 3)])
    assert flat[0, 0] < 1.0
    assert flat[0, 1] == 0.0
