"""torch, GPUs, cores and memory; limits are read from directories laid out like Linux's own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.doctor.children import Outcome, Probe, run_probes
from pipelines.doctor.limits import Limits, read_limits
from pipelines.doctor.machine import (
    core_check,
    cpu_flags,
    gpu_checks,
    has_gpu,
    memory_check,
    native_bfloat16,
    quota_check,
    torch_checks,
)
from tests.pipelines.doctor_parts import PACKAGED, named, probed

GPUS = Outcome(data={"gpus": [{"name": "NVIDIA H100", "memory": "81559 MiB", "driver": "580.82"}]})


def torch_outcome(**changes: Any) -> Outcome:
    data = {
        "version": "2.13.0",
        "cuda": "13.0",
        "threads": 2,
        "capability": "AVX2",
        "cpu": {"gflops": 50.0, "error": 1e-6},
        "devices": [{"name": "NVIDIA H100", "bytes": 85_000_000_000}],
        "gpu": {"gflops": 40_000.0, "error": 1e-6},
        "cuda_error": "",
    }
    return Outcome(data=data | changes)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def test_torch_multiplies_and_says_what_it_is(tmp_path: Path) -> None:
    outcome = probed(tmp_path, Probe("torch"))
    assert outcome.data is not None, outcome.error
    assert outcome.data["cpu"]["gflops"] > 0.1
    checks = list(torch_checks(outcome, "2.13.0", PACKAGED))
    assert [check.status for check in checks] == ["ok", "ok", "ok"]
    assert "GFLOP/s" in named(checks, "float32 on CPU").found


@pytest.mark.parametrize("error", [0.5, float("nan")])
def test_a_product_that_is_wrong_is_broken(error: float) -> None:
    outcome = torch_outcome(cpu={"gflops": 50.0, "error": error})
    check = named(torch_checks(outcome, "2.13.0+cpu", PACKAGED), "float32 on CPU")
    assert check.status == "broken"
    assert check.fix == "python -m pip uninstall --yes torch && python -m pip install torch==2.13.0"


def test_torch_that_cannot_be_imported_is_broken_and_one_that_is_late_is_not() -> None:
    [check] = torch_checks(Outcome(error="OSError: libgomp"), "2.13.0", PACKAGED)
    assert (check.status, "OSError: libgomp" in check.found) == ("broken", True)
    assert [check.status for check in torch_checks(Outcome(late=45.0), "2.13.0", PACKAGED)] == ["warning"]
    assert list(torch_checks(Outcome(error="not installed"), None, PACKAGED)) == []


def test_a_gpu_beside_a_torch_built_for_cpu_is_a_warning_with_the_command() -> None:
    outcome = torch_outcome(version="2.13.0+cpu", cuda=None, devices=[], gpu=None)
    checks = list(gpu_checks(GPUS, outcome, "2.13.0+cpu", PACKAGED))
    assert named(checks, "GPU").found == "NVIDIA H100, 81559 MiB, driver 580.82"
    idle = named(checks, "torch on GPU")
    assert idle.status == "warning"
    assert idle.fix == "python -m pip uninstall --yes torch && python -m pip install torch==2.13.0"


def test_a_gpu_that_torch_uses_or_that_its_driver_keeps_from_it() -> None:
    checks = list(gpu_checks(GPUS, torch_outcome(), "2.13.0", PACKAGED))
    assert [check.status for check in checks] == ["ok", "ok"]
    assert "40,000 GFLOP/s" in named(checks, "float32 on GPU").found
    refused = torch_outcome(devices=[], gpu=None, cuda_error="driver too old (found version 11040)")
    assert "driver too old" in named(gpu_checks(GPUS, refused, "2.13.0", PACKAGED), "torch on GPU").found
    # Without nvidia-smi torch's own list is shown.
    assert named(gpu_checks(None, torch_outcome(), "2.13.0", PACKAGED), "GPU").found == "NVIDIA H100, 85 GB"


def test_no_gpu_is_nothing_to_mend_but_a_driver_that_fails_is() -> None:
    bare = torch_outcome(devices=[], gpu=None)
    [check] = gpu_checks(None, bare, "2.13.0", PACKAGED)
    assert (check.status, check.fix) == ("optional", "")
    [check] = gpu_checks(Outcome(error="RuntimeError: NVML mismatch"), bare, "2.13.0", PACKAGED)
    assert (check.status, "NVML mismatch" in check.found) == ("warning", True)
    assert not has_gpu(Outcome(data={"gpus": []}), bare)


@pytest.mark.parametrize(("code", "expected"), [(0, "NVIDIA A, 40 GiB, driver 580.82"), (9, "no devices")])
def test_the_drivers_own_list_is_read(tmp_path: Path, code: int, expected: str) -> None:
    said = "NVIDIA A, 40 GiB, 580.82" if code == 0 else "no devices were found"
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho '{said}'\nexit {code}\n")
    tool.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    found = run_probes([Probe("gpus")], environment, at_once=1, begun=lambda _: None, ended=lambda _: None)
    check = next(iter(gpu_checks(found["gpus"], torch_outcome(devices=[], gpu=None), "2.13.0", PACKAGED)))
    assert expected in check.found


@pytest.mark.parametrize(
    ("line", "native"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16", True),
        ("flags\t\t: fpu avx2 amx_tile amx_bf16", True),
        ("flags\t\t: fpu avx2 avx512f", False),
        ("Features\t: fp asimd bf16", True),
        ("model name\t: bf16", False),
    ],
)
def test_bfloat16_is_native_by_the_processors_features(tmp_path: Path, line: str, native: bool) -> None:
    write(tmp_path, {"proc/cpuinfo": f"processor\t: 0\n{line}\n"})
    assert native_bfloat16(tmp_path) is native
    assert cpu_flags(tmp_path / "elsewhere") == frozenset()


def test_limits_of_version_2_are_the_tightest_on_the_way_up(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/slice/unit\n",
        "sys/fs/cgroup/slice/memory.max": "4000000000\n",
        "sys/fs/cgroup/slice/memory.current": "3000000000\n",
        "sys/fs/cgroup/slice/memory.stat": "anon 1\ninactive_file 500000000\n",
        "sys/fs/cgroup/slice/cpu.max": "300000 100000\n",
        "sys/fs/cgroup/cpu.max": "max 100000\n",
        "sys/fs/cgroup/slice/unit/memory.max": "max\n",
        "sys/fs/cgroup/slice/unit/cpu.max": "150000 100000\n",
    }
    assert read_limits(write(tmp_path, files)) == Limits(4_000_000_000, 2_500_000_000, 1.5)


def test_limits_of_version_1_inside_a_container(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "9:name=systemd:/\n4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n2:cpuset:/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "2000000000\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "700000000\n",
        "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 200000000\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    }
    assert read_limits(write(tmp_path, files)) == Limits(2_000_000_000, 500_000_000, 0.5)


def test_no_control_groups_and_no_limits(tmp_path: Path) -> None:
    assert read_limits(tmp_path) == Limits()
    unlimited = {
        "proc/self/cgroup": "3:cpu:/\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "1",
    }
    assert read_limits(write(tmp_path, unlimited)) == Limits()
    assert [check.status for check in core_check(Limits())] == ["ok"]


@given(
    own=st.integers(1, 256),
    quota=st.none() | st.floats(0.1, 300, allow_nan=False),
    threads=st.integers(1, 512),
)
def test_threads_that_the_command_sets_always_fit(own: int, quota: float | None, threads: int) -> None:
    [check] = quota_check(256, own, quota, threads)
    if check.status == "ok":
        assert check.fix == ""
        return
    fitting = int(check.fix.removeprefix("export OMP_NUM_THREADS="))
    assert 1 <= fitting < threads
    assert fitting == 1 or fitting <= min(own, quota or own)
    [again] = quota_check(256, own, quota, fitting)
    assert again.status == "ok"


def test_memory_is_what_the_container_leaves() -> None:
    [check] = memory_check(Limits(memory=1_000_000_000, memory_used=400_000_000))
    assert check.status == "warning"
    assert check.found.startswith("0.6 of 1.0 GB free (a limit of this container")
    [whole] = memory_check(Limits(memory=2**62))
    assert "limit" not in whole.found
