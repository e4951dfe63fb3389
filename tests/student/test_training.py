from __future__ import annotations

import torch

from student.banked_linear import FactorShape, FlatLayout
from student.config import UpdateRecipe
from student.stacks import stack, unstack
from student.training import initial_factors

SHAPES = {"p": FactorShape(16, 4), "q": FactorShape(25, 9)}


def test_initial_factors_follow_peft_and_depend_on_seed_and_rank_alone() -> None:
    """PEFT draws A with kaiming_uniform_(a=sqrt(5)), which is uniform in +-1 / sqrt(D_in), and sets B to zero."""
    narrow, wide = FlatLayout(SHAPES, 40), FlatLayout(SHAPES, 64)
    recipe = UpdateRecipe(rank=40)
    views = narrow.views(initial_factors(narrow, recipe, 7)[None])
    padded = wide.views(initial_factors(wide, recipe, 7)[None])
    other = narrow.views(initial_factors(narrow, recipe, 8)[None])
    for name, (a, b) in views.items():
        bound = SHAPES[name].d_in ** -0.5
        assert 0.95 * bound < float(a.max()) <= bound
        assert -bound <= float(a.min()) < -0.95 * bound
        assert abs(float(a.mean())) < 0.1 * bound
        assert not b.any()
        assert torch.equal(padded[name][0][:, :40], a)
        assert not padded[name][0][:, 40:].any()
        assert not torch.equal(other[name][0], a)


def test_unstack_undoes_stack_and_each_adapter_owns_its_memory() -> None:
    layout = FlatLayout(SHAPES, 5)
    generator = torch.Generator().manual_seed(0)
    recipes = [UpdateRecipe(rank=5), UpdateRecipe(rank=2)]
    flat = torch.randn(2, layout.size, generator=generator)
    for a, b in layout.views(flat).values():
        a[1, 2:] = b[1, 2:] = 0
    adapters = unstack(layout, flat, recipes, "base")
    assert torch.equal(stack(layout, adapters), flat)
    assert not stack(layout, [None]).any()
    for adapter, recipe in zip(adapters, recipes, strict=True):
        for name, (a, b) in adapter.factors.items():
            assert a.shape == (recipe.rank, SHAPES[name].d_in)
            assert b.shape == (SHAPES[name].d_out, recipe.rank)
            assert a.untyped_storage().nbytes() == a.nbytes
            assert b.untyped_storage().nbytes() == b.nbytes
