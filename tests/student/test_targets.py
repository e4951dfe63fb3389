"""Layers by name and depth."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from student.config import WHOLE_DEPTH
from student.targets import select_layers, unknown_names

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


@given(st.integers(1, 40))
def test_halves_hold_as_many_blocks(blocks: int) -> None:
    lower, upper = (select_layers(_names(blocks), PARTS, depth) for depth in ((0.0, 0.5), (0.5, 1.0)))
    assert len(lower) == len(upper) == len(PARTS) * ((blocks + 1) // 2)


def test_names_and_ends_of_names() -> None:
    names = _names(2)
    assert select_layers(names, ("up_proj",), (0.5, 1.0)) == ["model.layers.1.mlp.up_proj"]
    assert select_layers(names, ("lm_head",), WHOLE_DEPTH) == ["lm_head"]
    assert select_layers(names, ("lm_head",), (0.0, 0.9)) == []
    assert unknown_names(names, ("up_proj", "p_proj", "1.mlp.up_proj")) == ["p_proj"]
    assert unknown_names(names, "all-linear") == []
