"""Products with frozen weights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from student.adapters import Adapter
from student.bank.layers import (
    Attached,
    AttachedHere,
    BankedLinear,
    FactorShape,
    FlatLayout,
    frozen_head_loss,
    frozen_product,
    initial_factors,
    stack,
    unstack,
    weighted_loss,
)


def _banked(bias: bool, slots: int = 3) -> tuple[BankedLinear, nn.Linear, Attached]:
    torch.manual_seed(0)
    base = nn.Linear(6, 5, bias=bias, dtype=torch.float64).requires_grad_(False)
    attached = AttachedHere()
    a = torch.randn(slots, 2, 6, dtype=torch.float64, requires_grad=True)
    b = torch.randn(slots, 2, 5, dtype=torch.float64, requires_grad=True)
    attached.factors = {"here": (a, b)}
    attached.scales = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)[:slots, None, None]
    return BankedLinear(base, "here", attached), base, attached


@pytest.mark.parametrize("bias", [True, False])
def test_banked_linear_output_and_gradients_equal_separate_products(bias: bool) -> None:
    with torch.random.fork_rng():
        layer, base, attached = _banked(bias)
        x = torch.randn(6, 4, 6, dtype=torch.float64, requires_grad=True)
        weights = torch.randn(6, 4, 5, dtype=torch.float64)
    a, b = attached.factors["here"]
    assert attached.scales is not None
    parts = zip(torch.split(x, 2), a, b, attached.scales, strict=True)
    expected = torch.cat([base(rows) + scale * (rows @ left.t()) @ right for rows, left, right, scale in parts])
    inputs = (x, a, b)
    wanted = torch.autograd.grad((expected * weights).sum(), inputs)
    got = layer(x)
    assert torch.allclose(got, expected, rtol=0, atol=1e-12)
    for left, right in zip(torch.autograd.grad((got * weights).sum(), inputs), wanted, strict=True):
        assert torch.allclose(left, right, rtol=0, atol=1e-12)


def test_banked_linear_without_factors_is_the_base_bitwise() -> None:
    with torch.random.fork_rng():
        layer, base, attached = _banked(bias=True)
        x = torch.randn(3, 6, dtype=torch.float64)
    attached.factors = {"elsewhere": attached.factors["here"]}
    assert torch.equal(layer(x), base(x))
    assert layer.weight is base.weight
    assert layer.bias is base.bias


def test_attached_factors_are_each_threads_own() -> None:
    with torch.random.fork_rng():
        layer, base, _ = _banked(bias=True)
        x = torch.randn(3, 6, dtype=torch.float64)
    with ThreadPoolExecutor(1) as pool:
        elsewhere = pool.submit(layer, x).result()
    assert torch.equal(elsewhere, base(x))
    assert not torch.equal(layer(x), base(x))


@pytest.mark.parametrize(("rows", "d_in", "d_out"), [(3, 24, 40), (64, 24, 40), (200, 24, 40), (5, 512, 512)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_frozen_product_equals_the_product_in_double_precision(
    rows: int, d_in: int, d_out: int, with_bias: bool
) -> None:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, d_in, generator=generator)
    weight = torch.randn(d_out, d_in, generator=generator)
    bias = torch.randn(d_out, generator=generator) if with_bias else None
    exact = nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    y = frozen_product(x, weight, bias)
    assert torch.allclose(y.double(), exact, rtol=0, atol=1e-4)
    back = frozen_product(y, weight.t())
    exact = y.double() @ weight.double()
    assert torch.allclose(back.double(), exact, rtol=0, atol=1e-5 * float(exact.abs().max()))
    poisoned = x.clone()
    poisoned[1] = float("nan")
    kept = [i for i in range(rows) if i != 1]
    assert torch.equal(frozen_product(poisoned, weight, bias)[kept], y[kept])


@pytest.mark.parametrize("with_bias", [True, False])
def test_frozen_head_loss_equals_cross_entropy_of_whole_logits(with_bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    count, size, vocabulary = 50, 8, 9000  # More labels than fit in one block of logits.
    hidden = torch.randn(count, size, generator=generator, dtype=torch.float64, requires_grad=True)
    head = torch.randn(vocabulary, size, generator=generator, dtype=torch.float64)
    bias = torch.randn(vocabulary, generator=generator, dtype=torch.float64) if with_bias else None
    labels = torch.randint(vocabulary, (count,), generator=generator)
    weights = torch.rand(count, generator=generator, dtype=torch.float64)
    total, losses = frozen_head_loss(hidden, head, bias, labels, weights)
    expected, parts = weighted_loss(nn.functional.linear(hidden, head, bias), labels, weights)
    assert torch.allclose(total, expected, rtol=1e-12)
    assert torch.allclose(losses, parts, rtol=1e-10)
    (got,), (want,) = torch.autograd.grad(3 * total, hidden), torch.autograd.grad(3 * expected, hidden)
    assert torch.allclose(got, want, rtol=0, atol=1e-12)


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
