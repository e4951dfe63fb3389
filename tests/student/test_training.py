from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from student.adapters import Adapter
from student.banked_linear import FactorShape, FlatLayout
from student.config import UpdateRecipe
from student.memory import MemoryPlan
from student.passes import PASS_COST, split_into_passes
from student.stacks import stack, unstack
from student.training import BankLimits, initial_factors

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


def test_initial_factors_of_some_layers_are_those_of_a_bank_of_these_layers() -> None:
    both, one = FlatLayout(SHAPES, 4), FlatLayout({"q": SHAPES["q"]}, 4)
    recipe = UpdateRecipe(rank=4)
    views = both.views(initial_factors(both, recipe, 7, ["q"])[None])
    alone = one.views(initial_factors(one, recipe, 7)[None])
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


@given(
    widest=st.integers(1, 500),
    budget=st.integers(1, 10**7),
    slot_bytes=st.integers(1, 10**6),
    place_bytes=st.integers(1, 10**4),
)
@settings(max_examples=200, deadline=None)
def test_bank_limits_stay_within_the_budget_wherever_one_slot_does(
    widest: int, budget: int, slot_bytes: int, place_bytes: int
) -> None:
    limits = BankLimits(max_slots=16, max_pass_places=1000, plan=MemoryPlan(budget, place_bytes))
    slots = limits.slots(widest, slot_bytes)
    places = limits.pass_places(slots, slot_bytes)
    assert 1 <= slots <= 16
    assert 1 <= places <= 1000
    if slot_bytes + widest * place_bytes <= budget:
        assert slots * slot_bytes + widest * place_bytes <= budget
        assert slots * slot_bytes + places * place_bytes <= budget
        assert places >= min(widest, 1000)


@given(sizes=st.lists(st.integers(1, 300), min_size=1, max_size=8), most=st.integers(1, 1500))
@settings(max_examples=150, deadline=None)
def test_split_into_passes_is_the_cheapest_of_all_runs(sizes: list[int], most: int) -> None:
    passes = split_into_passes(sizes, most)
    assert sorted(i for part in passes for i in part) == list(range(len(sizes)))

    def cost(parts: list[list[int]]) -> int:
        return sum(len(part) * max(sizes[i] for i in part) + PASS_COST for part in parts)

    def fits(part: list[int]) -> bool:
        return len(part) == 1 or len(part) * max(sizes[i] for i in part) <= most

    assert all(fits(part) for part in passes)
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    for cuts in itertools.product([False, True], repeat=len(sizes) - 1):
        parts = [[order[0]]]
        for i, cut in zip(order[1:], cuts, strict=True):
            parts = [*parts, [i]] if cut else [*parts[:-1], [*parts[-1], i]]
        if all(fits(part) for part in parts):
            assert cost(passes) <= cost(parts)
