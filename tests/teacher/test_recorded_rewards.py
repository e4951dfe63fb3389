"""SEAL's recorded rewards: the winner's curse in them, and a replay of how updates could have been spent.

The files are those that the authors of SEAL (arXiv 2506.10943) published: 50 passages, 5 self-edits, 3 updates each.
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from teacher.allocation import headroom, shrunken_truth, simulate_choice
from teacher.rewards import reliability

GRADED = Path(__file__).resolve().parents[3] / "shared" / "data" / "seal" / "graded"
FILES = sorted(GRADED.glob("train_rank_*.json.gz"))
pytestmark = pytest.mark.skipif(not FILES, reason="the recorded runs are not at hand")

Rewards = list[list[list[float]]]


def rewards_of(path: Path) -> Rewards:
    """Return the share of right answers by passage, self-edit and update (D, E, S)."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        articles = json.load(file)["articles"]
    found: Rewards = []
    for article in articles:
        edits = []
        for completion in article["completions"]:
            by_run: dict[int, list[bool]] = defaultdict(list)
            for question in completion["questions"]:
                by_run[question["rep"]].append(bool(question["adapter_correct"]))
            edits.append([sum(right) / len(right) for _, right in sorted(by_run.items())])
        if all(len(edit) == 3 for edit in edits) and len(edits) == 5:
            found.append(edits)
    return found


@pytest.fixture(scope="module")
def recorded() -> list[Rewards]:
    return [rewards for path in FILES if (rewards := rewards_of(path))]


def test_stored_means_follow_from_the_question_rows() -> None:
    checked = 0
    for path in FILES:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            articles = json.load(file)["articles"]
        for article in articles:
            for completion in article["completions"]:
                rows, stats = completion["questions"], completion["stats"]
                if rows and "adapter_mean" in stats:
                    mean = sum(bool(row["adapter_correct"]) for row in rows) / len(rows)
                    assert stats["adapter_mean"] == pytest.approx(mean, abs=5e-5)
                    checked += 1
    assert checked > 500


def test_two_thirds_of_the_best_of_five_is_winners_curse(recorded: list[Rewards]) -> None:
    found = [headroom(rewards) for rewards in recorded]
    apparent = float(np.mean([f.apparent - f.mean for f in found]))
    real = float(np.mean([f.cross_validated - f.mean for f in found]))
    assert 0.12 < apparent < 0.21
    assert 0.02 < real < 0.10
    assert real < apparent / 2


def test_rewards_of_three_updates_are_unreliable(recorded: list[Rewards]) -> None:
    for rewards in recorded:
        estimate = reliability(rewards)
        assert estimate is not None
        assert 0.2 < estimate.of_mean(3) < 0.5


def test_halving_gains_more_than_equal_shares_of_the_same_updates(recorded: list[Rewards]) -> None:
    gaps = []
    generator = np.random.default_rng(0)
    for rewards in recorded:
        estimate = reliability(rewards)
        assert estimate is not None
        replay = shrunken_truth(rewards, estimate.between_variance)
        for _ in range(200):
            halving = simulate_choice(replay, ((5, 1), (3, 2), (2, 2)), generator)
            gaps.append(halving - simulate_choice(replay, ((5, 3),), generator))
    mean, error = float(np.mean(gaps)), float(np.std(gaps) / np.sqrt(len(gaps)))
    assert mean > 3 * error, f"{mean:.4f} +- {error:.4f}"
