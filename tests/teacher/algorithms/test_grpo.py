from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher.algorithms.algorithm import CompletionGroup, CompletionReward, LeftOut
from teacher.algorithms.grpo import GroupRelativeConfig
from teacher.rewards import LineGains
from tests.teacher.factories import GROUPS, group


def test_group_relative_leaves_out_groups_without_advantages() -> None:
    groups = [
        group("none", None, None),
        group("one", 0.3, None),
        group("flat", 0.3, 0.3),
        group("good", 0.0, 1.0, None, 0.5),
    ]
    selection = GroupRelativeConfig().select(groups)
    assert selection.left_out == {
        "none": LeftOut.NO_REWARDS,
        "one": LeftOut.TOO_FEW_REWARDS,
        "flat": LeftOut.ZERO_SPREAD,
    }
    scale = math.sqrt((0.75**2 + 0.75**2) / 3)
    assert [e.token_ids for e in selection.examples] == [(0,), (1,), (3,)]
    assert [e.weight for e in selection.examples] == pytest.approx([-0.75 / scale, 0.75 / scale, 0.0])


def test_group_relative_batch_normalization_is_one_number_for_all_groups() -> None:
    groups = [group("wide", 0.0, 1.0), group("narrow", 0.50, 0.51)]
    scaled = [e.weight for e in GroupRelativeConfig().select(groups).examples]
    assert math.fsum(w**2 for w in scaled) / 4 == pytest.approx(1.0)
    assert abs(scaled[2]) == pytest.approx(0.01 * abs(scaled[0]))  # a group of mere noise is not blown up


@given(GROUPS, st.randoms())
def test_group_relative_properties(groups: list[CompletionGroup], random: object) -> None:
    config = GroupRelativeConfig()
    selection = config.select(groups)
    weights = {(e.group_id, e.token_ids): e.weight for e in selection.examples}
    for g in groups:
        own = [w for (name, _), w in weights.items() if name == g.id]
        assert math.fsum(own) == pytest.approx(0.0, abs=1e-9)
        assert bool(own) != (g.id in selection.left_out)
        assert not own or len(own) == sum(c.reward is not None for c in g.completions)
    shuffled = [
        CompletionGroup(g.id, g.prompt, tuple(random.sample(g.completions, len(g.completions))))  # type: ignore[attr-defined]
        for g in random.sample(groups, len(groups))  # type: ignore[attr-defined]
    ]
    again = config.select(shuffled)
    assert again.left_out == selection.left_out
    assert {(e.group_id, e.token_ids): e.weight for e in again.examples} == pytest.approx(weights, abs=1e-9)


def test_line_credit_weighs_each_token_by_its_line_and_the_batch_has_unit_scale() -> None:
    """Two self-edits of two lines; only the second line of the second one gains more than its counterpart."""
    lines = CompletionGroup(
        id="d",
        prompt="p",
        completions=(
            CompletionReward((1, 2, 3), 0.2, lines=LineGains((0.2, 0.0), (0, 1, None))),
            CompletionReward((4, 5), 0.4, lines=LineGains((0.1, 0.3), (0, 1))),
            CompletionReward((6,), None, lines=LineGains((9.0,), (0,))),
        ),
    )
    plain = GroupRelativeConfig(line_credit=2.0).select([lines]).examples
    scale = plain[1].weight / 0.2
    assert plain[0].weight == pytest.approx(-0.2 * scale)
    assert plain[0].token_weights == pytest.approx((2 * 0.1 * scale, 2 * -0.3 * scale, 0.0))
    assert plain[1].token_weights == pytest.approx((2 * -0.1 * scale, 2 * 0.3 * scale))
    squares = [sum((row.weight + more) ** 2 for more in row.token_weights) / len(row.token_weights) for row in plain]
    assert sum(squares) / 2 == pytest.approx(1.0)
    assert all(row.token_weights == () for row in GroupRelativeConfig().select([lines]).examples)
