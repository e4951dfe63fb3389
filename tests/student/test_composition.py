"""Adapters put together."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.errors import UpdateError
from student.adapters import Adapter
from student.composition import merge_adapters

LAYERS = {"blocks.0.up": (7, 5), "blocks.0.down": (5, 9)}
"""(D_in, D_out) by layer."""


def adapter(rank: int, alpha: float, seed: int, base: str = "base") -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    factors = {
        name: (torch.randn(rank, wide, generator=generator), torch.randn(out, rank, generator=generator))
        for name, (wide, out) in LAYERS.items()
    }
    return Adapter(factors, rank, alpha, base)


def change(made: Adapter, name: str) -> torch.Tensor:
    a, b = made.factors[name]
    return made.alpha / made.rank * (b @ a)


@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_sum_is_exact_while_the_rank_suffices(ranks: list[int], seed: int) -> None:
    parts = [adapter(rank, 2.0 * rank + i, seed + i) for i, rank in enumerate(ranks)]
    whole = merge_adapters(parts, sum(ranks), 4.0)
    assert (whole.rank, whole.alpha, whole.base_digest) == (sum(ranks), 4.0, "base")
    for name in LAYERS:
        torch.testing.assert_close(change(whole, name), sum(change(part, name) for part in parts), rtol=1e-4, atol=1e-4)


def test_beyond_it_what_is_left_out_is_the_smallest_singular_values() -> None:
    parts = [adapter(3, 6.0, 1), adapter(3, 3.0, 2)]
    for name in LAYERS:
        wanted = sum((change(part, name) for part in parts), torch.zeros(()))
        values = torch.linalg.svdvals(wanted)
        for rank in (1, 2, 4):
            left = wanted - change(merge_adapters(parts, rank, 2.0), name)
            assert float(torch.linalg.norm(left)) == pytest.approx(float(values[rank:].norm()), rel=1e-4)


def test_result_is_the_same_as_pefts() -> None:
    from peft import LoraConfig, get_peft_model

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = torch.nn.Linear(7, 5, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.up(x)
            return out

    torch.manual_seed(0)
    model = get_peft_model(Net(), LoraConfig(r=3, lora_alpha=6, target_modules=["up"]), adapter_name="one")
    model.add_adapter("two", LoraConfig(r=3, lora_alpha=3, target_modules=["up"]))
    layer = model.base_model.model.up
    given_parts = []
    for name, alpha in (("one", 6.0), ("two", 3.0)):
        a, b = torch.randn(3, 7), torch.randn(5, 3)
        layer.lora_A[name].weight.data, layer.lora_B[name].weight.data = a, b
        given_parts.append(Adapter({"up": (a, b)}, 3, alpha, ""))
    model.add_weighted_adapter(["one", "two"], [1.0, 1.0], "both", combination_type="svd", svd_rank=2)
    theirs = layer.get_delta_weight("both")
    torch.testing.assert_close(change(merge_adapters(given_parts, 2, 2.0), "up"), theirs, rtol=1e-4, atol=1e-5)


def test_adapters_of_other_bases_or_layers_are_refused() -> None:
    with pytest.raises(UpdateError, match="merging: adapter"):
        merge_adapters([adapter(1, 1.0, 0), adapter(1, 1.0, 1, base="another")], 2, 2.0)
    other = Adapter({"blocks.1.up": (torch.ones(1, 7), torch.ones(5, 1))}, 1, 1.0, "base")
    with pytest.raises(UpdateError, match="same layers"):
        merge_adapters([adapter(1, 1.0, 0), other], 2, 2.0)
