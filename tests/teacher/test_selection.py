from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher.config import GroupRelativeConfig, RestEmConfig
from teacher.selection import Candidate, CandidateGroup, LeftOut, group_relative, rest_em, select_examples


def group(name: str, *rewards: float | None, base: float | None = 0.0) -> CandidateGroup:
    """Return a group whose candidates have the token ids (0,), (1,), ... in order."""
    candidates = tuple(Candidate(token_ids=(i,), reward=reward) for i, reward in enumerate(rewards))
    return CandidateGroup(id=name, prompt=f"prompt of {name}", candidates=candidates, base_reward=base)


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
    plain = group_relative([group(f"g{i}", *(r / 8 for r in row)) for i, row in enumerate(rows)])
    moved = group_relative([group(f"g{i}", *((r + shift) / 8 for r in row)) for i, row in enumerate(rows)])
    assert moved.left_out == plain.left_out
    assert [e.weight for e in moved.examples] == pytest.approx([e.weight for e in plain.examples], abs=1e-9)


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
