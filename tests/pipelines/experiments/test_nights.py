from __future__ import annotations

from typing import Any

import pytest

from pipelines.adapt_student.config import NightConfig
from pipelines.adapt_student.page import GroupScore, NewDocument, NightResult
from pipelines.experiments.nights import ARMS, arm_row, known_after
from pipelines.settings import load
from tests.flows.settings import CONFIGS


def night(number: int, outcome: Any, own: float, earlier: dict[int, float], probes: float = 0.9) -> NightResult:
    """A night after which the student in use knows these shares of the documents of earlier nights."""
    side = "after" if outcome == "promoted" else "before"
    sides = [{"before": None, "after": None, side: value} for value in earlier.values()]
    groups = [
        GroupScore(night=f"night-{n:04d}", documents=4, then=None, **each)
        for n, each in zip(earlier, sides, strict=True)
    ]
    new = NewDocument(id="d", title="", source="", place="weights", because="", questions=8, before=None, after=own)
    probed: dict[str, Any] = {"probes_base": 0.92, f"probes_{side}": probes}
    return NightResult(night=f"night-{number:04d}", outcome=outcome, new=(new,), groups=tuple(groups), **probed)


def test_kept_is_what_is_left_of_what_each_night_taught_and_wrong_documents_do_not_count() -> None:
    results = [
        night(1, "promoted", 0.5, {}),
        night(2, "promoted", 0.7, {1: 0.4}),
        night(3, "rejected", 0.9, {1: 0.4, 2: 0.7}),
        night(4, "promoted", 1.0, {1: 0.3, 2: 0.6}),
        night(5, "held", 0.9, {1: 0.3, 2: 0.3, 4: 0.9}, probes=0.5),
    ]
    assert known_after(results[-1]) == {"night-0001": 0.3, "night-0002": 0.3, "night-0004": 0.9}
    row = arm_row("forgetful", results)  # of five nights, the fourth brings wrong documents
    assert row == ["forgetful", "3", "1", "1", "promoted", "60.0", "30.0", "50.0", "92.0", "50.0"]


@pytest.mark.parametrize("arm", ARMS)
def test_arms_are_settings_of_the_shipped_night(arm: str) -> None:
    shipped = CONFIGS / "nights-demo.yaml"
    changed, whole = (load(shipped, NightConfig, settings).model_dump() for settings in (ARMS[arm], ()))
    different = {name for name in whole if whole[name] != changed[name]}
    assert different == {setting.split("=")[0].split(".")[0] for setting in ARMS[arm]}
