from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher.algorithms.algorithm import CompletionGroup, CompletionReward, LeftOut, Selection
from teacher.algorithms.rest_em import RestEmConfig
from tests.teacher.factories import GROUPS, group


def rest_em(groups: list[CompletionGroup], *, keep: int = 1, require_gain: bool = True) -> Selection:
    return RestEmConfig(keep=keep, require_gain=require_gain).select(groups)


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
    same = CompletionReward(token_ids=(7, 8), reward=0.9)
    other = CompletionReward(token_ids=(9,), reward=0.3)
    groups = [CompletionGroup("a", "p", (same, other, same), base_reward=0.0)]
    assert [e.token_ids for e in rest_em(groups, keep=2).examples] == [(7, 8), (9,)]


@given(GROUPS, st.integers(1, 4), st.booleans())
def test_rest_em_properties(groups: list[CompletionGroup], keep: int, require_gain: bool) -> None:
    selection = rest_em(groups, keep=keep, require_gain=require_gain)
    chosen: dict[str, list[int]] = {}
    for example in selection.examples:
        assert example.weight == 1.0
        chosen.setdefault(example.group_id, []).append(example.token_ids[0])
    for g in groups:
        picked = [g.completions[i].reward for i in chosen.get(g.id, [])]
        rest = [c.reward for c in g.completions if c.reward is not None and c.token_ids[0] not in chosen.get(g.id, [])]
        assert len(picked) <= keep
        assert all(r is not None and (not require_gain or r > 0.0) for r in picked)
        if len(picked) == keep:
            assert all(r is not None and r >= max(rest, default=-math.inf) for r in picked)
        assert (g.id in chosen) != (g.id in selection.left_out)


@pytest.mark.parametrize("prompt", ["", "_prompt-long", "_prompt-rewrite", "_prompt-self-qa"])
def test_rest_em_repeats_seals_recorded_choices(shared_data: Callable[..., Path], prompt: str) -> None:
    """SEAL's best-of-5 by the mean of 3 runs, no gain needed, ties to the first: 50 of 50 rows for each prompt."""
    graded = shared_data("seal", "graded", f"train_rank_iter0{prompt}.json.gz")
    selected = shared_data("seal", "selected", f"sft_best1of5_iter0{prompt}.jsonl.gz")
    articles = json.loads(gzip.decompress(graded.read_bytes()))["articles"]
    rows = [json.loads(line) for line in gzip.decompress(selected.read_bytes()).decode().splitlines()]
    groups = [
        CompletionGroup(
            id=str(i),
            prompt=article["prompt"],
            completions=tuple(
                CompletionReward(tuple(completion["text"].strip().encode()), completion["stats"]["adapter_mean"])
                for completion in article["completions"]
            ),
        )
        for i, article in enumerate(articles)
    ]
    examples = rest_em(groups, require_gain=False).examples
    assert len(rows) == 50
    assert [(e.prompt, bytes(e.token_ids).decode()) for e in examples] == [(r["prompt"], r["completion"]) for r in rows]
