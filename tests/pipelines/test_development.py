"""Looks at the development documents."""

from __future__ import annotations

from pipelines.config import DevelopmentConfig
from pipelines.development import Progress


def decisions(means: list[float | None], **settings: float) -> tuple[list[str | None], Progress]:
    progress = Progress(DevelopmentConfig.model_validate(settings))
    looks = [progress.look(f"p{i}", mean) for i, mean in enumerate(means)]
    return [None if look is None else look.decision for look in looks], progress


def test_the_best_teacher_is_kept_and_a_small_fall_goes_on() -> None:
    found, progress = decisions([0.2, 0.4, 0.38], patience=3, fall=0.05)
    assert found == ["best", "best", "go on"]
    assert (progress.best_policy, progress.goes_on_from, progress.ended) == ("p1", "p2", False)


def test_a_large_fall_goes_back_to_the_best() -> None:
    found, progress = decisions([0.4, 0.3], patience=3, fall=0.05)
    assert found == ["best", "back to the best"]
    assert progress.goes_on_from == "p0"


def test_learning_ends_after_enough_looks_without_a_better_teacher() -> None:
    found, progress = decisions([0.4, 0.39, 0.38], patience=2, fall=0.5)
    assert found == ["best", "go on", "stop"]
    assert progress.ended
    assert progress.best_policy == "p0"


def test_a_better_teacher_starts_the_count_anew() -> None:
    found, _ = decisions([0.4, 0.39, 0.41, 0.40], patience=2)
    assert found == ["best", "go on", "best", "go on"]


def test_a_look_without_any_reward_decides_nothing() -> None:
    found, progress = decisions([None, 0.1], patience=1)
    assert found == [None, "best"]
    assert progress.best_policy == "p1"
