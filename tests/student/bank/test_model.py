"""Which layers of a model get factors."""

from __future__ import annotations

import pytest

from evaluation.common.errors import ModelError
from student.bank.model import find_targets
from tests.student.factories import MakeModel


def test_find_targets_all_linear_leaves_the_output_head_out(make_model: MakeModel) -> None:
    names = set(find_targets(make_model(), "all-linear"))
    assert len(names) == 2 * 7
    assert "lm_head" not in names
    assert set(find_targets(make_model(), ("q_proj", "layers.1.mlp.down_proj"))) == {
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.down_proj",
    }


def test_find_targets_at_a_depth_takes_those_blocks(make_model: MakeModel) -> None:
    upper = find_targets(make_model(), ("up_proj", "down_proj"), (0.5, 1.0))
    assert list(upper) == ["model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj"]
    with pytest.raises(ModelError, match=r"\[0.4, 0.6\].*depth"):
        find_targets(make_model(), "all-linear", (0.4, 0.6))  # Two blocks, at 0.25 and 0.75.


def test_find_targets_unknown_name_is_refused_with_the_known_ones(make_model: MakeModel) -> None:
    with pytest.raises(ModelError, match=r"\['c_attn'\].*'q_proj'"):
        find_targets(make_model(), ("q_proj", "c_attn"))
