from __future__ import annotations

import pytest
import torch

from student.config import UpdateRecipe
from student.optimizer import SlotAdamW


@pytest.mark.parametrize("width", [7, 1 << 16])
def test_slot_adamw_equals_torch_adamw_for_each_slot(width: int) -> None:
    recipes = [
        UpdateRecipe(learning_rate=0.1, weight_decay=0.3, max_gradient_norm=None),
        UpdateRecipe(learning_rate=0.01, schedule="constant", max_gradient_norm=0.5),
        UpdateRecipe(learning_rate=0.5, warmup_steps=2),
    ]
    totals = [6, 5, 3]
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, width, generator=generator, dtype=torch.float64)
    gradients = torch.randn(6, 3, width, generator=generator, dtype=torch.float64)
    flat = start.clone()
    optimizer = SlotAdamW(flat, recipes, totals)
    for step in range(6):
        optimizer.step(gradients[step, : sum(total > step for total in totals)].clone())
    for k, (recipe, total) in enumerate(zip(recipes, totals, strict=True)):
        alone = start[k].clone().requires_grad_()
        adam = torch.optim.AdamW([alone], lr=1.0, weight_decay=recipe.weight_decay)
        for step in range(total):
            adam.param_groups[0]["lr"] = recipe.learning_rate_at(step, total)
            alone.grad = gradients[step, k].clone()
            if recipe.max_gradient_norm is not None:
                torch.nn.utils.clip_grad_norm_([alone], recipe.max_gradient_norm)
            adam.step()
        assert torch.allclose(flat[k], alone.detach(), rtol=0, atol=1e-12)


def test_slot_adamw_unused_ranks_stay_zero() -> None:
    flat = torch.tensor([[1.0, 0.0]])
    optimizer = SlotAdamW(flat, [UpdateRecipe(weight_decay=0.1)], [3])
    for _ in range(3):
        optimizer.step(torch.tensor([[0.5, 0.0]]))
    assert flat[0, 0] < 1.0
    assert flat[0, 1] == 0.0
