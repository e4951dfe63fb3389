"""Figures from measurements, on numbers whose results are known; what is printed and drawn from them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from pipelines.bench.arms import Arm, Places, growth_counts
from pipelines.bench.common import Machine, Spread, demo_config, paired_ratios, spread
from pipelines.bench.figure import plot_bank
from pipelines.bench.records import BankBench, BankBenchResult, Operation, Profile, Work
from pipelines.bench.report import closing_lines, print_bank_report
from pipelines.bench.summary import JobFacts, Measured, growth_exponent, summarise
from student.config import UpdateRecipe
from student.updates import UpdateJob

BENCH = BankBench(config=demo_config(), adapters=40, slots=(1, 16, 40), pairs=3)
WORK = Work(
    name="demo",
    student="micro-student",
    parameters=1000,
    adapters=40,
    lines=8.0,
    steps=16.0,
    tokens=100.0,
    flops=4e5,
    factor_difference=2e-6,
)
MACHINE = Machine(device="cpu", dtype="float32", threads=2, cores=2, matrix_product_rate=1e8, torch="2.13")
JOBS = tuple(UpdateJob(f"job-{i}", (), UpdateRecipe(), seed=i) for i in range(40))
FACTS = JobFacts({j.key: 100 for j in JOBS}, {j.key: 4e5 for j in JOBS}, 16.0, 1000, 2e-6)
SECONDS = {
    "published": (4.0, 5.0, 6.0),  # of one adapter
    "sequential": (40.0, 44.0, 36.0),  # 1.0, 1.1 and 0.9 an adapter
    "bank-40": (8.0, 8.0, 12.0),  # 0.2, 0.2 and 0.3
    "bank-40-of-10": (2.0, 2.0, 2.0),
    "bank-40-of-20": (4.0, 4.0, 4.0),
    "bank-16": (10.0, 8.0, 12.0),
    "bank-1": (12.8, 12.8, 12.8),  # of 16 adapters
}
COUNTS = {"published": 1, "bank-40-of-10": 10, "bank-40-of-20": 20, "bank-1": 16}
PROFILE = Profile(
    seconds=2.0,
    threads=1,
    shares={"matrix products": 0.75, "loss": 0.25},
    operations=(Operation(name="aten::mm", group="matrix products", calls=1234, seconds=1.5),),
)


def arm(name: str) -> Arm:
    chosen = JOBS[: COUNTS.get(name, 40)]
    return Arm(name, f"label of {name}", chosen, chosen[:1], lambda jobs: Places(0, 0))


def result(*, bench: BankBench = BENCH, machine: Machine = MACHINE, profile: Profile | None = None) -> BankBenchResult:
    arms = [arm(name) for name in SECONDS if bench.published or name != "published"]
    measured = {name: Measured(seconds, Places(75, 100), 5_000_000) for name, seconds in SECONDS.items()}
    return summarise(bench, arms, measured, FACTS, WORK, machine, profile)


def values(figure: Spread) -> tuple[float, float, float]:
    return figure.median, figure.low, figure.high


def printed(found: BankBenchResult, bench: BankBench = BENCH) -> str:
    out = io.StringIO()
    print_bank_report(Console(width=80, file=out), found, bench, Path("work/bench/bank.png"))
    return out.getvalue()


def test_spread_and_paired_ratios() -> None:
    assert spread([3.0, 1.0, 2.0, 10.0]) == Spread(median=2.5, low=1.0, high=10.0)
    # Pair by pair: 10/2, 12/4, 9/1. Ratios of medians would give another figure.
    assert paired_ratios([10.0, 12.0, 9.0], [2.0, 4.0, 1.0]) == Spread(median=5.0, low=3.0, high=9.0)
    with pytest.raises(ValueError, match="zip"):
        paired_ratios([1.0], [1.0, 2.0])


@pytest.mark.parametrize("power", [0.5, 1.0, 1.3])
def test_growth_exponent_is_the_power_that_times_follow(power: float) -> None:
    numbers = (16, 32, 64)
    assert growth_exponent(numbers, [0.3 * n**power for n in numbers]) == pytest.approx(power)
    assert growth_exponent((4,), [1.0]) is None


def test_growth_counts_are_a_quarter_and_a_half() -> None:
    assert [growth_counts(n) for n in (64, 4, 3, 2, 1)] == [(16, 32), (1, 2), (1,), (1,), ()]


def test_sizes_above_the_number_of_candidates_count_as_it() -> None:
    assert BankBench(config=demo_config(), adapters=10).sizes == (1, 4, 10)
    assert BankBench(config=demo_config(), adapters=64, slots=(16, 4, 16)).sizes == (4, 16)


def test_summary_of_known_measurements() -> None:
    found = result()
    assert values(found.ratios.bank_over_sequential) == pytest.approx((5.0, 3.0, 5.5))
    assert found.ratios.bank_over_published is not None
    assert values(found.ratios.bank_over_published) == pytest.approx((20.0, 20.0, 25.0))
    assert found.adapters_per_minute == {1: pytest.approx(75.0), 16: 240.0, 40: 300.0}
    assert values(found.ratios_by_slots[1]) == pytest.approx((1.25, 1.125, 1.375))
    assert found.padding_share == 0.25
    assert found.peak_memory_bytes == 5_000_000
    # 40 jobs of 4e5 FLOPs in 8 s are 2e6 FLOP/s of 1e8; sequentially 1 s an adapter where 4 ms would do.
    assert found.useful_flop_share == pytest.approx(0.02)
    assert found.ceiling == pytest.approx(250.0)
    assert found.arms["sequential"].useful_tokens_per_second == pytest.approx(100.0)
    assert found.arms["published"].seconds_per_adapter == Spread(median=5.0, low=4.0, high=6.0)
    assert found.arms["published"].useful_tokens_per_second == pytest.approx(20.0)
    assert found.growth.adapters == (10, 20, 40)
    assert found.growth.exponent == pytest.approx(1.0)


def test_targets_are_judged_by_the_medians() -> None:
    met = {target.what: (target.measured, target.met) for target in result().targets}
    assert met == {
        "times as fast as the sequential loop": (pytest.approx(5.0), True),
        "times as fast as the published loop": (20.0, True),
        "growth with the candidates (1 is linear)": (pytest.approx(1.0), True),
        "time of an adapter, K = 40 over K = 16": (1.0, True),
    }
    slow = {**SECONDS, "bank-40": (14.0, 14.0, 14.0)}
    measured = {name: Measured(seconds, Places(1, 1), None) for name, seconds in slow.items()}
    missed = summarise(BENCH, [arm(name) for name in SECONDS], measured, FACTS, WORK, MACHINE).targets
    assert [target.met for target in missed] == [False, False, False, False]


def test_targets_say_nothing_about_other_work_and_machines() -> None:
    for changed in ({"device": "NVIDIA"}, {"threads": 8}, {"dtype": "bfloat16"}):
        assert result(machine=MACHINE.model_copy(update=changed)).targets == ()


def test_json_holds_what_scripts_read() -> None:
    read = json.loads(result().model_dump_json())
    for name in ("bank_over_sequential", "bank_over_published"):
        assert set(read["ratios"][name]) == {"median", "low", "high"}
    assert read["adapters_per_minute"] == {"1": pytest.approx(75.0), "16": 240.0, "40": 300.0}
    assert {"useful_flop_share", "padding_share", "peak_memory_bytes"} <= set(read)
    assert BankBenchResult.model_validate(read) == result()
    without = BENCH.model_copy(update={"published": False})
    assert json.loads(result(bench=without).model_dump_json())["ratios"]["bank_over_published"] is None


def test_report_tells_every_arm_ratio_and_target_at_80_columns() -> None:
    text = printed(result(profile=PROFILE))
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "…" not in text
    plain = " ".join(text.split())
    for name in SECONDS:
        assert f"label of {name}" in plain
    assert "over the sequential loop: 5 times [3, 5.5] as fast (median of 3 pairs [lowest, highest])" in plain
    assert "over the published loop: 20.0 times [20.0, 25.0] as fast" in plain
    assert "10 in 2 s (200.0 ms each), 20 in 4 s (200.0 ms each)" in plain
    assert "2 CPU threads" in plain
    assert text.count("  met     ") == 4
    assert "mm 1,234 75.0" in plain
    assert "so the work is the same" in plain


def test_report_says_where_a_target_is_missed_and_what_to_type_next() -> None:
    found = result()
    missed = found.targets[0].model_copy(update={"measured": 3.1, "met": False})
    changed = BENCH.model_copy(update={"seed": 4, "published": False, "slots": (2, 8)})
    lines = closing_lines(found.model_copy(update={"targets": (missed,)}), changed, Path("a.png"))
    assert "  NOT MET times as fast as the sequential loop: 3.10, wanted >= 4" in lines
    command = "preceptor bench bank --adapters 40 --pairs 3 --seed 4 --slots 2 --slots 8 --skip-published --profile"
    assert lines[-1].strip() == command
    other = closing_lines(result(machine=MACHINE.model_copy(update={"threads": 8})), BENCH, Path("a.png"))
    assert any("They say nothing about this" in line for line in other)


def test_report_of_unequal_work_says_so() -> None:
    found = result()
    other = found.model_copy(update={"work": WORK.model_copy(update={"factor_difference": 0.2})})
    plain = " ".join(printed(other).split())
    assert "more than rounding" in plain
    assert "the work is the same" not in plain


def test_figure_is_written_and_shows_the_measurements(tmp_path: Path) -> None:
    first, same, other = tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png"
    plot_bank(result(), first)
    plot_bank(result(), same)
    faster = result().model_copy(update={"adapters_per_minute": {1: 75.0, 16: 240.0, 40: 900.0}})
    plot_bank(faster, other)
    assert first.read_bytes().startswith(b"\x89PNG")
    assert first.read_bytes() == same.read_bytes()
    assert first.read_bytes() != other.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png", "c.png"]
