"""Memory: a pass that does not fit is split, a slot that never fits fails alone, and the plan tells how many fit."""

from __future__ import annotations

import mmap
import subprocess
import sys
from typing import Any

import pytest
import torch

from student.banked_linear import FlatLayout
from student.banked_model import BankedModel
from student.config import UpdateRecipe
from student.lora_bank import LoraBank
from student.memory import PeakMemory, bytes_of_slot, plan_memory
from student.passes import is_out_of_memory
from student.updates import UpdateJob, UpdateOutcome
from tests.student.conftest import MakeModel
from tests.student.jobs import adapter_of, deltas, mixed_jobs, same_bits, sequences


def _limit_places(model: Any, most: int) -> None:
    """Let the model's forward pass fail as an allocator does when it gets more than `most` token places at once."""

    def refuse(module: Any, arguments: Any, keywords: dict[str, Any]) -> None:
        if torch.is_grad_enabled() and keywords["input_ids"].numel() > most:
            raise torch.OutOfMemoryError(f"tried to allocate for {keywords['input_ids'].numel()} places")

    model.model.register_forward_pre_hook(refuse, with_kwargs=True)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("most", [60, 40, 18])
def test_pass_that_runs_out_of_memory_is_split_and_gives_the_same(make_model: MakeModel, most: int) -> None:
    """At 40 places the bank is split, at 18 a single slot's lines as well: its step has 24 to 28 places."""
    jobs = mixed_jobs()
    with LoraBank(make_model(dtype=torch.float64)) as bank:
        expected = bank.train(jobs)
        assert bank.usage.splits == 0
    model = make_model(dtype=torch.float64)
    with LoraBank(model) as bank:
        _limit_places(model, most)
        results = bank.train(jobs)
        assert bank.usage.splits > 0
    for left, right in zip(results, expected, strict=True):
        assert left.losses == pytest.approx(right.losses, rel=1e-9)
        pair = deltas(adapter_of(left).factors, 1.0), deltas(adapter_of(right).factors, 1.0)
        assert torch.allclose(*pair, rtol=0, atol=1e-9)


@pytest.mark.parametrize("threads", [2, 3])
def test_passes_of_several_threads_give_the_same_and_are_split_alike(make_model: MakeModel, threads: int) -> None:
    jobs = mixed_jobs()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with LoraBank(make_model(dtype=torch.float64)) as bank:
            expected = bank.train(jobs)
        torch.set_num_threads(threads)
        model = make_model(dtype=torch.float64)
        with LoraBank(model) as bank:
            together = bank.train(jobs)
            _limit_places(model, 18)
            split = bank.train(jobs)
            assert bank.usage.splits > 0
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for left, middle, right in zip(expected, together, split, strict=True):
        for other in (middle, right):
            pair = deltas(adapter_of(left).factors, 1.0), deltas(adapter_of(other).factors, 1.0)
            assert torch.allclose(*pair, rtol=0, atol=1e-9)


def test_slot_that_never_fits_fails_alone(make_model: MakeModel) -> None:
    jobs = mixed_jobs()
    recipe = UpdateRecipe(epochs=4, batch_size=2)
    huge = UpdateJob("huge", sequences(5, [120, 4]), recipe, seed=3)
    model = make_model(dtype=torch.float64)
    with LoraBank(model) as bank:
        expected = bank.train(jobs)
    model = make_model(dtype=torch.float64)
    with LoraBank(model) as bank:
        _limit_places(model, 100)
        results = bank.train([*jobs[:2], huge, *jobs[2:]])
    failed = results.pop(2)
    assert failed.outcome is UpdateOutcome.OUT_OF_MEMORY
    assert failed.adapter is None
    assert "does not fit in memory" in failed.detail
    for left, right in zip(results, expected, strict=True):
        pair = deltas(adapter_of(left).factors, 1.0), deltas(adapter_of(right).factors, 1.0)
        assert torch.allclose(*pair, rtol=0, atol=1e-9)


_REAL = """
import resource, torch
torch.set_num_threads(1)
from tests.student.jobs import adapter_of, sequences
from tests.student.tiny import tiny_model
from student.config import UpdateRecipe
from student.lora_bank import LoraBank
from student.updates import UpdateJob
recipe = UpdateRecipe(epochs=1, batch_size=64)
jobs = [UpdateJob(str(k), sequences(k, [250] * 64), recipe, seed=k) for k in range(4)]
with LoraBank(tiny_model(), memory_bytes=1 << 40, max_pass_places=1 << 20) as bank:
    bank.train(jobs[:1])
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20), resource.RLIM_INFINITY))
    results = bank.train(jobs)
    print(bank.usage.slots, bank.usage.splits, *(result.outcome.value for result in results))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_real_allocation_failure_is_split_and_retried() -> None:
    """Four slots of 16,000 places each, with 300 MiB on top of what one of them has made the process take."""
    slots, splits, *outcomes = _run_alone(_REAL)
    assert int(slots) == 4
    assert int(splits) > 0
    assert outcomes == ["ok"] * 4


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_is_out_of_memory_knows_allocators(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_other_errors_of_a_pass_are_not_swallowed(make_model: MakeModel) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    model = make_model()
    with LoraBank(model) as bank:
        model.model.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            bank.train(mixed_jobs())


def test_budget_decides_how_many_slots_share_a_bank(make_model: MakeModel) -> None:
    jobs = [UpdateJob(f"{k}", sequences(k, [40] * 4), UpdateRecipe(epochs=1), seed=k) for k in range(8)]
    slots = []
    for kilobytes in (500, 4_000, 64_000):
        with LoraBank(make_model(), memory_bytes=kilobytes << 10) as bank:
            results = bank.train(jobs)
            slots.append(bank.usage.slots)
            assert bank.usage.slots == 1 or bank.usage.estimated_bytes <= kilobytes << 10
        assert all(result.outcome is UpdateOutcome.OK for result in results)
    assert slots[0] == 1 < slots[1] < slots[2] == 8


_PLANNED = """
import torch
torch.set_num_threads(1)
from tests.student.jobs import sequences
from tests.student.tiny import tiny_model
from student.config import UpdateRecipe
from student.lora_bank import LoraBank
from student.updates import UpdateJob
jobs = [UpdateJob(str(k), sequences(k, [250] * 8), UpdateRecipe(epochs=1), seed=k) for k in range(24)]
with LoraBank(tiny_model(), max_pass_places=1 << 20) as bank:
    bank.train(jobs[:1])  # Libraries take memory of their own at first use.
    bank.train(jobs)
    print(bank.usage.slots, bank.usage.estimated_bytes, bank.usage.peak_bytes)
"""


def _run_alone(code: str) -> list[str]:
    """Return the words that a fresh process prints: reserves of this one would hide what is allocated."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_plan_is_near_what_a_bank_takes() -> None:
    slots, estimated, measured = _run_alone(_PLANNED)
    if measured == "None":
        pytest.skip("this system does not tell the peak of a process's memory")
    assert int(slots) == 24
    assert 0.5 * int(estimated) <= int(measured) <= 1.2 * int(estimated)


def test_gradient_checkpointing_changes_memory_and_nothing_else(make_model: MakeModel) -> None:
    jobs = mixed_jobs()
    with LoraBank(make_model(dtype=torch.float64)) as bank:
        expected = bank.train(jobs)
    model = make_model(dtype=torch.float64)
    with LoraBank(model, memory_bytes=1) as bank:  # Less than a single slot needs.
        results = bank.train(jobs)
        assert model.is_gradient_checkpointing
        assert bank.usage.slots == 1
    assert not model.is_gradient_checkpointing
    assert not any(module.training for module in model.modules())
    for left, right in zip(results, expected, strict=True):
        pair = deltas(adapter_of(left).factors, 1.0), deltas(adapter_of(right).factors, 1.0)
        assert torch.allclose(*pair, rtol=0, atol=1e-10)


def test_plan_with_checkpoints_keeps_less(make_model: MakeModel) -> None:
    student = BankedModel(make_model(), "all-linear")
    whole = plan_memory(student, None)
    assert not student.checkpoints
    assert student.checkpoint()
    assert student.checkpoints
    less = plan_memory(student, None)
    student.restore()
    assert less.place_bytes < 0.8 * whole.place_bytes
    layout = FlatLayout(student.shapes, 8)
    assert bytes_of_slot(layout, torch.float32) == 5 * 4 * layout.size
    assert whole.budget > 0


def test_peak_memory_sees_what_was_held_for_a_moment() -> None:
    with PeakMemory(torch.device("cpu")) as peak:
        held = mmap.mmap(-1, 64 << 20)  # Pages that the process did not have before.
        held.write(b"x" * (64 << 20))
        held.close()
    if peak.grown is not None:
        assert peak.grown > 48 << 20


def test_results_do_not_depend_on_the_order_of_refilling(make_model: MakeModel) -> None:
    """The same jobs in the same order give the same bits; a bank that refills is as repeatable as one that does not."""
    jobs = [UpdateJob(f"{k}", sequences(k, [4] * (1 + k % 3)), UpdateRecipe(epochs=2), seed=k) for k in range(9)]
    runs = []
    for _ in range(2):
        with LoraBank(make_model(), max_slots=4) as bank:
            runs.append([adapter_of(result) for result in bank.train(jobs)])
    assert all(same_bits(left, right) for left, right in zip(*runs, strict=True))
