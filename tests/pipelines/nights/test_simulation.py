from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.config import read_config
from pipelines.nights.config import NightConfig
from pipelines.nights.simulate import ARMS, Arm, SimulatedNight
from pipelines.nights.simulation_report import arms_table, draw_matrix, sentences, then_of
from tests.flows.settings import CONFIGS


def night(outcome: str, groups: dict[int, float], probes: float = 0.9) -> SimulatedNight:
    return SimulatedNight(
        outcome=outcome,
        right_after=None,
        groups={f"night-{number + 1:04d}": value for number, value in groups.items()},
        probes=probes,
        probes_base=0.92,
        page="",
        seconds=1.0,
    )


FORGETFUL = Arm(
    name="forgetful",
    poisoned=2,
    nights=(
        night("promoted", {0: 0.5}),
        night("promoted", {0: 0.4, 1: 0.7}),
        night("promoted", {0: 0.3, 1: 0.6, 2: 1.0}),
        night("held", {0: 0.3, 1: 0.3, 2: 0.9}, probes=0.5),
    ),
)


def test_kept_is_what_is_left_of_what_was_right_after_each_night_and_wrong_documents_count_for_nothing() -> None:
    assert FORGETFUL.kept == pytest.approx((0.3 + 0.3) / (0.5 + 0.7))
    assert FORGETFUL.lost_probes == pytest.approx(0.42)
    assert then_of(FORGETFUL, "night-0002") == 0.7
    assert then_of(FORGETFUL, "night-0004") is None
    assert FORGETFUL.model_copy(update={"poisoned": None}).kept == pytest.approx(1.5 / 2.2)
    assert Arm(name="empty", nights=(night("held", {}),)).kept is None


def test_report_shows_every_arm(tmp_path: Path) -> None:
    arms = [FORGETFUL.model_copy(update={"name": name}) for name in ARMS]
    table = arms_table(arms)
    assert list(table.columns[0].cells) == list(ARMS)
    assert [next(iter(column.cells)) for column in table.columns[1:]] == [
        "3", "1", "0", "60.0", "30.0", "50.0", "92.0", "50.0",
    ]  # fmt: skip
    assert next(iter(sentences(arms))) == "full: the night of wrong documents was promoted."
    for count in (1, len(arms)):
        draw_matrix(arms[:count], tmp_path / f"{count}.png")
        assert (tmp_path / f"{count}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("arm", ARMS)
def test_arms_are_settings_of_the_shipped_night(arm: str) -> None:
    shipped = CONFIGS / "nights-demo.yaml"
    changed = read_config(shipped, NightConfig, ARMS[arm]).model_dump()
    whole = read_config(shipped, NightConfig, ()).model_dump()
    different = {name for name in whole if whole[name] != changed[name]}
    assert different == {setting.split("=")[0].split(".")[0] for setting in ARMS[arm]}
