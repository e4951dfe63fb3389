"""Shares of the budget: even in tokens, or following what the student gains."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from pipelines.write_corpus.allocate import Trial, draw_kinds, even_kinds, gains_of

KINDS = ("poor", "good", "long")


def trials(rounds: int, noise: float = 0.02, seed: int = 0) -> list[Trial]:
    """Eight trials of each kind a round: `good` gains the most per token, `long` the most per piece."""
    rng, found = random.Random(seed), []
    for number in range(rounds):
        for kind, tokens, gain in (("poor", 50, 0.01), ("good", 50, 0.1), ("long", 400, 0.2)):
            found += [Trial(kind=kind, round=number, tokens=tokens, gain=gain + rng.gauss(0, noise)) for _ in range(8)]
    return found


def test_draws_follow_the_gain_per_token_and_the_seed() -> None:
    drawn = draw_kinds(KINDS, trials(2), 200, 1, 0)
    assert Counter(drawn)["good"] > 180
    assert drawn == draw_kinds(KINDS, trials(2), 200, 1, 0)
    noisy = trials(2, noise=0.5)
    assert draw_kinds(KINDS, noisy, 200, 1, 0) != draw_kinds(KINDS, noisy, 200, 1, 1)


def test_uncertain_kinds_are_explored() -> None:
    noisy = Counter(draw_kinds(KINDS, trials(1, noise=0.5), 300, 0, 0))
    assert min(noisy[kind] for kind in KINDS) > 10


def test_later_rounds_count_more() -> None:
    before = trials(1, noise=0.001)
    after = [t.model_copy(update={"round": 4, "gain": 0.3 if t.kind == "poor" else 0.0}) for t in before]
    assert Counter(draw_kinds(KINDS, before, 100, 0, 0))["good"] == 100
    assert Counter(draw_kinds(KINDS, before + after, 100, 4, 0))["poor"] > 90


def test_without_trials_kinds_take_turns() -> None:
    assert draw_kinds(KINDS, [], 4, 0, 0) == ["poor", "good", "long", "poor"]


def test_gains_are_ratios_of_sums_with_their_errors() -> None:
    best, *rest = gains_of(trials(4))
    assert (best.kind, best.pieces) == ("good", 32)
    assert best.per_tokens == pytest.approx(2.0, abs=4 * best.error)
    assert {each.kind for each in rest} == {"poor", "long"}
    (single,) = gains_of([Trial(kind="one", round=0, tokens=10, gain=0.5)])
    assert (single.per_tokens, single.error) == (50.0, 0.0)


def test_even_shares_are_even_in_tokens() -> None:
    size = {"poor": 20, "good": 50, "long": 200}
    spent, pieces = Counter[str](), Counter[str]()
    for _ in range(40):
        for kind in even_kinds(KINDS, spent, pieces, 16):
            spent[kind] += size[kind]
            pieces[kind] += 1
    assert max(spent.values()) - min(spent.values()) <= 2 * 200


def test_a_kind_that_yields_nothing_does_not_take_the_budget() -> None:
    spent, pieces = Counter({"good": 50, "long": 50}), Counter(dict.fromkeys(KINDS, 1))
    for _ in range(40):
        for kind in even_kinds(KINDS, spent, pieces, 8):
            spent[kind] += 0 if kind == "poor" else 50
            pieces[kind] += 1
    assert pieces["poor"] < 8 * 1.5 * pieces["good"]
