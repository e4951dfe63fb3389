from __future__ import annotations

import sys
import time

import pytest
import torch

from pipelines.bench.measure import matrix_product_rate, peak_growth, timed
from pipelines.bench.profiling import ELEMENTWISE, PYTHON, group_of, group_shares, profile_run
from pipelines.bench.records import Operation

CPU = torch.device("cpu")
MEGABYTE = 1 << 20


def test_timed_returns_seconds_and_result() -> None:
    def work() -> str:
        time.sleep(0.05)
        return "done"

    seconds, found = timed(work, CPU)
    assert found == "done"
    assert 0.05 <= seconds < 5.0


@pytest.mark.skipif(sys.platform != "linux", reason="the peak can be set back on Linux alone")
def test_peak_growth_sees_memory_that_was_freed_again_and_not_that_of_before() -> None:
    def grow(megabytes: int) -> int:
        return int(torch.ones(megabytes * MEGABYTE // 4).sum() > 0)

    peak_growth(lambda: grow(300), CPU)
    growth, found = peak_growth(lambda: grow(100), CPU)
    assert found == 1
    assert growth is not None
    assert 95 * MEGABYTE < growth < 160 * MEGABYTE
    nothing, _ = peak_growth(lambda: None, CPU)
    assert nothing is not None
    assert nothing < 20 * MEGABYTE


def test_matrix_product_rate_is_that_of_the_product_alone() -> None:
    rate = matrix_product_rate(CPU, torch.float32, side=256)
    left, right = torch.randn(256, 256), torch.randn(256, 256)
    slowest = max(timed(lambda: torch.mm(left, right), CPU)[0] for _ in range(4))
    assert 2 * 256**3 / slowest <= rate < 1e14


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("aten::mm", "matrix products"),
        ("aten::baddbmm_", "matrix products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::nll_loss_forward", "loss"),
        ("aten::index_select", "copies and gathers"),
        ("aten::t", "allocation and views"),
        ("aten::tanh", ELEMENTWISE),
        ("aten::mul_", ELEMENTWISE),
        ("aten::_fused_adamw_", ELEMENTWISE),
        ("_BankedProduct", PYTHON),
        ("autograd::engine::evaluate_function: MmBackward0", PYTHON),
    ],
)
def test_group_of_operations(name: str, group: str) -> None:
    assert group_of(name) == group


def test_group_shares_add_up_and_leave_the_rest_to_python() -> None:
    operations = [
        Operation(name="aten::mm", group="matrix products", calls=1, seconds=2.0),
        Operation(name="aten::bmm", group="matrix products", calls=1, seconds=3.0),
        Operation(name="Function", group=PYTHON, calls=1, seconds=1.0),
    ]
    assert group_shares(operations, 10.0) == {"matrix products": 0.5, PYTHON: 0.5}
    assert group_shares(operations, 3.0) == {"matrix products": pytest.approx(5 / 6), PYTHON: pytest.approx(1 / 6)}


def test_profile_finds_the_operation_that_takes_the_time() -> None:
    left, right = torch.randn(400, 400), torch.randn(400, 400)
    found = profile_run(lambda: [torch.mm(left, right) for _ in range(50)], CPU)
    assert found.operations[0].name == "aten::mm"
    assert found.operations[0].calls == 50
    assert found.shares["matrix products"] > 0.5
    assert sum(found.shares.values()) == pytest.approx(1.0)


def test_profile_of_a_cpu_keeps_the_work_on_one_thread_and_gives_the_others_back() -> None:
    usual = torch.get_num_threads()
    seen: list[int] = []
    found = profile_run(lambda: seen.append(torch.get_num_threads()), CPU)
    assert (seen, found.threads, torch.get_num_threads()) == ([1], 1, usual)
