"""Factors in one flat tensor."""

from __future__ import annotations

import torch

from student.adapters import Adapter
from student.bank.layout import FactorShape, FlatLayout, initial_factors, stack, unstack

SHAPES = {"p": FactorShape(16, 4), "q": FactorShape(25, 9)}


def test_flat_layout_views_share_memory_and_cover_every_number_once() -> None:
    layout = FlatLayout({"p": FactorShape(3, 4), "q": FactorShape(5, 2)}, rank=2)
    flat = torch.zeros(2, layout.size)
    for a, b in layout.views(flat).values():
        a += 1
        b += 1
    assert torch.equal(flat, torch.ones(2, 2 * (3 + 4 + 5 + 2)))


def test_initial_factors_follow_peft_and_depend_on_seed_and_rank_alone() -> None:
    """PEFT draws A with kaiming_uniform_(a=sqrt(5)), which is uniform in +-1 / sqrt(D_in), and sets B to zero."""
    narrow, wide = FlatLayout(SHAPES, 40), FlatLayout(SHAPES, 64)
    views = narrow.views(initial_factors(narrow, 40, 7, list(SHAPES))[None])
    padded = wide.views(initial_factors(wide, 40, 7, list(SHAPES))[None])
    other = narrow.views(initial_factors(narrow, 40, 8, list(SHAPES))[None])
    for name, (a, b) in views.items():
        bound = SHAPES[name].d_in ** -0.5
        assert 0.95 * bound < float(a.max()) <= bound
        assert -bound <= float(a.min()) < -0.95 * bound
        assert abs(float(a.mean())) < 0.1 * bound
        assert not b.any()
        assert torch.equal(padded[name][0][:, :40], a)
        assert not padded[name][0][:, 40:].any()
        assert not torch.equal(other[name][0], a)


def test_initial_factors_of_some_layers_are_those_of_a_bank_of_these_layers() -> None:
    both, one = FlatLayout(SHAPES, 4), FlatLayout({"q": SHAPES["q"]}, 4)
    views = both.views(initial_factors(both, 4, 7, ["q"])[None])
    alone = one.views(initial_factors(one, 4, 7, ["q"])[None])
    assert torch.equal(views["q"][0], alone["q"][0])
    assert not views["p"][0].any()


def test_unstack_undoes_stack_and_each_adapter_owns_its_memory() -> None:
    layout = FlatLayout(SHAPES, 5)
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(2, layout.size, generator=generator)
    for a, b in layout.views(flat).values():
        a[1, 2:] = b[1, 2:] = 0
    views = layout.views(flat)
    views["p"][0][1] = views["p"][1][1] = 0
    ranks, layers = [5, 2], [["p", "q"], ["q"]]
    adapters = [Adapter(unstack(layout, flat[k], ranks[k], layers[k]), ranks[k], 1.0, "base") for k in range(2)]
    assert torch.equal(stack(layout, adapters), flat)
    assert not stack(layout, [None]).any()
    for adapter, rank, names in zip(adapters, ranks, layers, strict=True):
        assert list(adapter.factors) == names
        for name, (a, b) in adapter.factors.items():
            assert a.shape == (rank, SHAPES[name].d_in)
            assert b.shape == (SHAPES[name].d_out, rank)
            assert a.untyped_storage().nbytes() == a.nbytes
            assert b.untyped_storage().nbytes() == b.nbytes
