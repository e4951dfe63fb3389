from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from pipelines.reports.plots import plot_accuracy, plot_rewards
from tests.pipelines.factories import make_candidate, make_comparison, make_learning, make_round, make_variant

VARIANTS = (make_variant("base"), make_variant("trained_teacher", label="trained (teacher)"), make_variant(accuracy={}))


def ink(path: Path) -> float:
    """Return the share of pixels of a PNG that are not white."""
    from matplotlib.image import imread

    return float((np.asarray(imread(path))[..., :3] < 0.99).any(-1).mean())


def test_plot_rewards_draws_rounds_with_and_without_rewards(tmp_path: Path) -> None:
    candidates = (make_candidate(reward=0.4), make_candidate(index=1, reward=0.9))
    blank = make_round(1, (), mean_reward=None, learning=make_learning(kl=None))
    rounds = [make_round(0), blank, make_round(2, candidates)]
    for count in range(len(rounds) + 1):
        plot_rewards(rounds[:count], tmp_path / f"{count}.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.png", "1.png", "2.png", "3.png"]
    assert ink(tmp_path / "3.png") > ink(tmp_path / "0.png") + 0.005


def test_plot_accuracy_draws_every_variant_the_same_each_time_without_pyplot(tmp_path: Path) -> None:
    loaded = "matplotlib.pyplot" in sys.modules
    first, second, fewer = (tmp_path / f"{name}.png" for name in "abc")
    plot_accuracy(make_comparison(), VARIANTS, first)
    plot_accuracy(make_comparison(), VARIANTS, second)
    plot_accuracy(make_comparison(), VARIANTS[:1], fewer)
    assert first.read_bytes().startswith(b"\x89PNG")
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes() != fewer.read_bytes()
    plot_accuracy(make_comparison(), (), tmp_path / "none.png")
    assert ("matplotlib.pyplot" in sys.modules) == loaded


def test_plot_to_a_missing_directory_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        plot_rewards([make_round()], tmp_path / "missing" / "rewards.png")
    assert list(tmp_path.iterdir()) == []
