from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher.config import GroupRelativeConfig, PreferenceConfig, RestEmConfig, RewardWeightedConfig
from teacher.credit import Earned
from teacher.selection import (
    Candidate,
    CandidateGroup,
    LeftOut,
    Selection,
    group_relative,
    preferences,
    rest_em,
    reward_weighted,
    select_examples,
)


def group(name: str, *rewards: float | None, base: float | None = 0.0) -> CandidateGroup:
    """Return a group whose candidates have the token ids (0,), (1,), ... in order."""
    candidates = tuple(Candidate(token_ids=(i,), reward=reward) for i, reward in enumerate(rewards))
    return CandidateGroup(id=name, prompt=f"prompt of {name}", candidates=candidates, base_reward=base)


def eighths(rows: list[list[int]]) -> list[CandidateGroup]:
    """Return a group for each row, its rewards given in eighths, so that sums are exact."""
    return [group(f"g{i}", *(reward / 8 for reward in row)) for i, row in enumerate(rows)]


def with_errors(name: str, *values: tuple[float | None, float | None]) -> CandidateGroup:
    """Return a group of rewards with their standard errors; the token ids are (0,), (1,), ... in order."""
    candidates = tuple(Candidate((i,), reward, error) for i, (reward, error) in enumerate(values))
    return CandidateGroup(name, f"prompt of {name}", candidates)


def pairs_of(selection: Selection) -> list[tuple[str, int, int]]:
    """Return each pair's group, better and worse candidate."""
    found = []
    for better, worse in zip(selection.examples[::2], selection.examples[1::2], strict=True):
        assert (better.pair, better.group_id, better.prompt) == (worse.pair, worse.group_id, worse.prompt)
        assert (better.weight, worse.weight) == (1.0, -1.0)
        found.append((better.group_id, better.token_ids[0], worse.token_ids[0]))
    assert [example.pair for example in selection.examples[::2]] == list(range(len(found)))
    return found


REWARDS = st.lists(st.none() | st.floats(-1.0, 1.0), max_size=6)
GROUPS = st.lists(REWARDS, max_size=5).map(lambda rows: [group(f"g{i}", *row) for i, row in enumerate(rows)])


def test_rest_em_keeps_the_best_and_ties_go_to_the_first() -> None:
    groups = [group("a", 0.2, 0.9, 0.9), group("b", 0.5, None, 0.1)]
    one = rest_em(groups, keep=1)
    assert [(e.group_id, e.prompt, e.token_ids, e.weight) for e in one.examples] == [
        ("a", "prompt of a", (1,), 1.0),
        ("b", "prompt of b", (0,), 1.0),
    ]
    assert [e.token_ids for e in rest_em(groups, keep=2).examples] == [(1,), (2,), (0,), (2,)]
    assert one.left_out == {}


def test_rest_em_requires_a_gain_over_the_student_without_an_update() -> None:
    groups = [group("gain", 0.4, 0.6, base=0.5), group("tie", 0.5, base=0.5), group("unknown", 0.9, base=None)]
    strict = rest_em(groups, keep=2)
    assert [(e.group_id, e.token_ids) for e in strict.examples] == [("gain", (1,))]
    assert strict.left_out == {"tie": LeftOut.NO_GAIN, "unknown": LeftOut.NO_BASE_REWARD}
    free = rest_em(groups, keep=1, require_gain=False)
    assert [e.group_id for e in free.examples] == ["gain", "tie", "unknown"]


def test_rest_em_keeps_equal_completions_once() -> None:
    same = Candidate(token_ids=(7, 8), reward=0.9)
    other = Candidate(token_ids=(9,), reward=0.3)
    groups = [CandidateGroup("a", "p", (same, other, same), base_reward=0.0)]
    assert [e.token_ids for e in rest_em(groups, keep=2).examples] == [(7, 8), (9,)]
    with pytest.raises(ValueError, match="at least 1"):
        rest_em(groups, keep=0)


@given(GROUPS, st.integers(1, 4), st.booleans())
def test_rest_em_properties(groups: list[CandidateGroup], keep: int, require_gain: bool) -> None:
    selection = rest_em(groups, keep=keep, require_gain=require_gain)
    chosen: dict[str, list[int]] = {}
    for example in selection.examples:
        assert example.weight == 1.0
        chosen.setdefault(example.group_id, []).append(example.token_ids[0])
    for g in groups:
        picked = [g.candidates[i].reward for i in chosen.get(g.id, [])]
        rest = [c.reward for c in g.candidates if c.reward is not None and c.token_ids[0] not in chosen.get(g.id, [])]
        assert len(picked) <= keep
        assert all(r is not None and (not require_gain or r > 0.0) for r in picked)
        if len(picked) == keep:
            assert all(r is not None and r >= max(rest, default=-math.inf) for r in picked)
        assert (g.id in chosen) != (g.id in selection.left_out)


def test_group_relative_leaves_out_what_teaches_nothing() -> None:
    groups = [
        group("none", None, None),
        group("one", 0.3, None),
        group("flat", 0.3, 0.3),
        group("good", 0.0, 1.0, None, 0.5),
    ]
    selection = group_relative(groups, normalize="none")
    assert selection.left_out == {
        "none": LeftOut.NO_REWARDS,
        "one": LeftOut.TOO_FEW_REWARDS,
        "flat": LeftOut.ZERO_SPREAD,
    }
    assert [(e.token_ids, e.weight) for e in selection.examples] == [((0,), -0.75), ((1,), 0.75), ((3,), 0.0)]


def test_group_relative_batch_normalization_is_one_number_for_all_groups() -> None:
    groups = [group("wide", 0.0, 1.0), group("narrow", 0.50, 0.51)]
    plain = [e.weight for e in group_relative(groups, normalize="none").examples]
    scaled = [e.weight for e in group_relative(groups, normalize="batch").examples]
    ratios = [s / p for s, p in zip(scaled, plain, strict=True)]
    assert ratios == pytest.approx([ratios[0]] * 4)
    assert math.fsum(w**2 for w in scaled) / 4 == pytest.approx(1.0)
    assert abs(scaled[2]) == pytest.approx(0.01 * abs(scaled[0]))  # a group of mere noise is not blown up


@given(GROUPS, st.sampled_from(["none", "batch"]), st.floats(-1.0, 1.0), st.randoms())
def test_group_relative_properties(groups: list[CandidateGroup], normalize: str, shift: float, random: object) -> None:
    config = GroupRelativeConfig.model_validate({"normalize": normalize})
    selection = select_examples(groups, config)
    weights = {(e.group_id, e.token_ids): e.weight for e in selection.examples}
    for g in groups:
        own = [w for (name, _), w in weights.items() if name == g.id]
        assert math.fsum(own) == pytest.approx(0.0, abs=1e-9)
        assert bool(own) != (g.id in selection.left_out)
        assert not own or len(own) == sum(c.reward is not None for c in g.candidates)
    shuffled = [
        CandidateGroup(g.id, g.prompt, tuple(random.sample(g.candidates, len(g.candidates))))  # type: ignore[attr-defined]
        for g in random.sample(groups, len(groups))  # type: ignore[attr-defined]
    ]
    again = select_examples(shuffled, config)
    assert again.left_out == selection.left_out
    assert {(e.group_id, e.token_ids): e.weight for e in again.examples} == pytest.approx(weights, abs=1e-9)


@given(st.lists(st.lists(st.integers(-8, 8), max_size=5), max_size=4), st.integers(-4, 4))
def test_group_relative_is_invariant_to_a_shift_of_the_rewards(rows: list[list[int]], shift: int) -> None:
    plain = group_relative(eighths(rows), normalize="batch")
    moved = group_relative(eighths([[r + shift for r in row] for row in rows]), normalize="batch")
    assert moved.left_out == plain.left_out
    assert [e.weight for e in moved.examples] == pytest.approx([e.weight for e in plain.examples], abs=1e-9)


def test_reward_weighted_weights_are_exponential_in_the_reward_and_have_mean_1() -> None:
    """Rewards of 0.6 and 0.4 lie half a beta of 0.2 above and below their mean."""
    selection = reward_weighted([group("a", 0.6, 0.4, None)], beta=0.2, weight_cap=100.0)
    high, low = math.exp(0.5), math.exp(-0.5)
    mean = (high + low) / 2
    assert [e.token_ids for e in selection.examples] == [(0,), (1,)]
    assert [e.weight for e in selection.examples] == pytest.approx([high / mean, low / mean])
    assert selection.left_out == {}


def test_reward_weighted_leaves_out_what_teaches_nothing() -> None:
    groups = [group("none", None), group("one", 0.3, None), group("flat", 0.3, 0.3), group("good", 0.0, 1.0)]
    selection = select_examples(groups, RewardWeightedConfig())
    assert selection.left_out == {
        "none": LeftOut.NO_REWARDS,
        "one": LeftOut.TOO_FEW_REWARDS,
        "flat": LeftOut.ZERO_SPREAD,
    }
    assert [e.group_id for e in selection.examples] == ["good", "good"]
    assert reward_weighted([]) == Selection((), {})


def test_reward_weighted_cap_bounds_the_ratio_to_an_average_completion() -> None:
    """One lucky reward among 10: exp(9) average completions without the cap, 5 with it."""
    lucky = group("a", *[0.0] * 9, 1.0)
    weights = [e.weight for e in reward_weighted([lucky, group("b", 0.4, 0.5, 0.6)], beta=0.1, weight_cap=5.0).examples]
    assert weights[9] / weights[11] == pytest.approx(5.0)
    for beta, cap in ((0.0, 5.0), (-1.0, 5.0), (math.nan, 5.0), (0.1, 0.5)):
        with pytest.raises(ValueError, match="beta, weight_cap"):
            reward_weighted([lucky], beta=beta, weight_cap=cap)


@given(GROUPS, st.floats(1e-3, 10.0), st.floats(1.0, 100.0))
def test_reward_weighted_properties(groups: list[CandidateGroup], beta: float, cap: float) -> None:
    selection = select_examples(groups, RewardWeightedConfig(beta=beta, weight_cap=cap))
    weights = {(e.group_id, e.token_ids): e.weight for e in selection.examples}
    if weights:
        assert math.fsum(weights.values()) / len(weights) == pytest.approx(1.0)
    for g in groups:
        own = [(c.reward, weights[g.id, c.token_ids]) for c in g.candidates if (g.id, c.token_ids) in weights]
        assert bool(own) != (g.id in selection.left_out)
        assert not own or len(own) == sum(c.reward is not None for c in g.candidates)
        ordered = [weight for _, weight in sorted(own, key=lambda pair: pair[0] or 0.0)]
        assert ordered == sorted(ordered)  # a better reward never weighs less
        assert all(weight >= 0.0 for weight in ordered)


@given(
    st.lists(st.lists(st.integers(-8, 8), max_size=5), max_size=4),
    st.lists(st.integers(-4, 4), min_size=4, max_size=4),
)
def test_reward_weighted_is_invariant_to_a_shift_of_a_documents_rewards(
    rows: list[list[int]], shifts: list[int]
) -> None:
    plain = reward_weighted(eighths(rows))
    moved = reward_weighted(eighths([[r + shift for r in row] for row, shift in zip(rows, shifts, strict=False)]))
    assert moved.left_out == plain.left_out
    assert [e.weight for e in moved.examples] == pytest.approx([e.weight for e in plain.examples], abs=1e-9)


def test_preferences_take_pairs_whose_gap_exceeds_its_error() -> None:
    """Errors of 0.03 and 0.04 make 0.05 for the gap, so 1.5 of them are 0.075."""
    groups = [
        with_errors("clear", (0.5, 0.03), (0.58, 0.04)),
        with_errors("near", (0.5, 0.03), (0.57, 0.04)),
        with_errors("equal", (0.5, 0.0), (0.5, 0.0)),
        with_errors("one", (0.5, 0.0), (None, None)),
        with_errors("none", (None, None), (None, None)),
    ]
    selection = select_examples(groups, PreferenceConfig(gap_errors=1.5))
    assert pairs_of(selection) == [("clear", 1, 0)]
    assert selection.unknown_errors == 0
    assert selection.left_out == {
        "near": LeftOut.NO_CLEAR_PAIR,
        "equal": LeftOut.ZERO_SPREAD,
        "one": LeftOut.TOO_FEW_REWARDS,
        "none": LeftOut.NO_REWARDS,
    }
    assert pairs_of(preferences(groups, gap_errors=1.0)) == [("clear", 1, 0), ("near", 1, 0)]


def test_preferences_without_a_known_error_take_any_gap_and_count_it() -> None:
    groups = [with_errors("a", (0.5, None), (0.51, 9.0), (0.52, 9.0)), with_errors("b", (0.2, None), (0.2, None))]
    selection = preferences(groups)
    assert pairs_of(selection) == [("a", 2, 0), ("a", 1, 0)]  # 2 and 1 are within their errors
    assert selection.unknown_errors == 2
    assert selection.left_out == {"b": LeftOut.ZERO_SPREAD}
    assert preferences(groups, max_pairs=1).unknown_errors == 1


def test_preferences_take_the_largest_gaps_first_and_ties_as_sampled() -> None:
    groups = [group("a", 0.0, 1.0, 0.5, 1.0), group("b", 0.25, 0.0)]
    assert pairs_of(preferences(groups, max_pairs=3)) == [("a", 1, 0), ("a", 3, 0), ("a", 2, 0), ("b", 0, 1)]
    for pairs, errors in ((0, 1.0), (1, -1.0)):
        with pytest.raises(ValueError, match="max_pairs, gap_errors"):
            preferences(groups, max_pairs=pairs, gap_errors=errors)


def test_preferences_never_prefer_a_completion_to_itself() -> None:
    same = CandidateGroup("a", "p", (Candidate((7,), 0.9), Candidate((7,), 0.1)))
    assert preferences([same]) == Selection((), {"a": LeftOut.NO_CLEAR_PAIR})


@given(
    st.lists(st.lists(st.tuples(st.none() | st.floats(-1.0, 1.0), st.none() | st.floats(0.0, 0.5)), max_size=6)),
    st.floats(0.0, 3.0),
    st.integers(1, 20),
)
def test_preferences_properties(
    rows: list[list[tuple[float | None, float | None]]], gap_errors: float, max_pairs: int
) -> None:
    groups = {f"g{i}": with_errors(f"g{i}", *row) for i, row in enumerate(rows)}
    selection = preferences(list(groups.values()), gap_errors=gap_errors, max_pairs=max_pairs)
    pairs = pairs_of(selection)
    assert len(set(pairs)) == len(pairs)
    for name, g in groups.items():
        own = [(g.candidates[better], g.candidates[worse]) for group_id, better, worse in pairs if group_id == name]
        assert len(own) <= max_pairs
        assert bool(own) != (name in selection.left_out)
        gaps = []
        for better, worse in own:
            assert better.reward is not None
            assert worse.reward is not None
            gaps.append(better.reward - worse.reward)
            assert gaps[-1] > 0.0
            if better.standard_error is not None and worse.standard_error is not None:
                assert gaps[-1] > gap_errors * math.sqrt(better.standard_error**2 + worse.standard_error**2) - 1e-12
        assert gaps == sorted(gaps, reverse=True)


@pytest.mark.parametrize("prompt", ["", "_prompt-long", "_prompt-rewrite", "_prompt-self-qa"])
def test_rest_em_repeats_seals_recorded_choices(shared_data: Callable[..., Path], prompt: str) -> None:
    """SEAL's best-of-5 by the mean of 3 runs, no gain needed, ties to the first: 50 of 50 rows for each prompt."""
    graded = shared_data("seal", "graded", f"train_rank_iter0{prompt}.json.gz")
    selected = shared_data("seal", "selected", f"sft_best1of5_iter0{prompt}.jsonl.gz")
    articles = json.loads(gzip.decompress(graded.read_bytes()))["articles"]
    rows = [json.loads(line) for line in gzip.decompress(selected.read_bytes()).decode().splitlines()]
    groups = [
        CandidateGroup(
            id=str(i),
            prompt=article["prompt"],
            candidates=tuple(
                Candidate(tuple(completion["text"].strip().encode()), completion["stats"]["adapter_mean"])
                for completion in article["completions"]
            ),
        )
        for i, article in enumerate(articles)
    ]
    examples = select_examples(groups, RestEmConfig(keep=1, require_gain=False)).examples
    assert len(rows) == 50
    assert [(e.prompt, bytes(e.token_ids).decode()) for e in examples] == [(r["prompt"], r["completion"]) for r in rows]


def test_line_credit_weighs_each_token_by_its_line_and_the_batch_has_unit_scale() -> None:
    """Two self-edits of two lines: the second line of the first one earned nothing, that of the other all."""
    group = CandidateGroup(
        id="d",
        prompt="p",
        candidates=(
            Candidate((1, 2, 3), 0.2, earned=Earned((0.2, 0.0), (0, 1, None))),
            Candidate((4, 5), 0.4, earned=Earned((0.1, 0.3), (0, 1))),
            Candidate((6,), None, earned=Earned((9.0,), (0,))),
        ),
    )
    plain = group_relative([group], line_credit=2.0).examples
    assert [row.weight for row in plain] == pytest.approx([-0.2, 0.2])
    assert plain[0].token_weights == pytest.approx((2 * 0.1, 2 * -0.3, 0.0))
    assert plain[1].token_weights == pytest.approx((2 * -0.1, 2 * 0.3))
    scaled = group_relative([group], normalize="batch", line_credit=2.0).examples
    squares = [sum((row.weight + more) ** 2 for more in row.token_weights) / len(row.token_weights) for row in scaled]
    assert sum(squares) / 2 == pytest.approx(1.0)
    assert all(row.token_weights == () for row in group_relative([group]).examples)


@given(st.lists(st.lists(st.integers(0, 8), min_size=2, max_size=5), min_size=1, max_size=4), st.integers(1, 8))
def test_refused_completions_are_made_less_likely_and_change_no_advantage(rows: list[list[int]], eighth: int) -> None:
    groups = eighths(rows)
    refused = Candidate(token_ids=(9,), reward=None, refused=True)
    failed = Candidate(token_ids=(8,), reward=None)
    nothing = Candidate(token_ids=(), reward=None, refused=True)
    added = [replace(g, candidates=(*g.candidates, refused, failed, nothing)) for g in groups]
    plain = group_relative(groups, normalize="batch")
    assert group_relative(added, normalize="batch") == plain
    learned = group_relative(added, normalize="batch", refused_weight=eighth / 8)
    assert learned.examples[: len(plain.examples)] == plain.examples
    assert learned.left_out == plain.left_out
    rest = learned.examples[len(plain.examples) :]
    assert [(e.group_id, e.token_ids, e.weight) for e in rest] == [(g.id, (9,), -eighth / 8) for g in groups]
