"""Passes: how slots share them, and what happens when memory runs out."""

from __future__ import annotations

import itertools
import mmap
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from student.bank.bank import LoraBank
from student.bank.layers import FlatLayout
from student.bank.model import BankedModel
from student.bank.passes import (
    PASS_COST,
    BankLimits,
    bytes_of_slot,
    is_out_of_memory,
    peak_bytes,
    plan_limits,
    split_into_passes,
)
from student.config import UpdateRecipe
from student.updates import UpdateOutcome, UpdateRequest
from tests.student.factories import (
    MakeModel,
    assert_same_updates,
    mixed_jobs,
    run_alone,
    sequences,
    torch_threads,
    train,
)


@given(sizes=st.lists(st.integers(1, 300), min_size=1, max_size=8), most=st.integers(1, 1500))
@settings(max_examples=150, deadline=None)
def test_split_into_passes_is_the_cheapest_of_all_runs(sizes: list[int], most: int) -> None:
    passes = split_into_passes(sizes, most)
    assert sorted(i for part in passes for i in part) == list(range(len(sizes)))

    def cost(parts: list[list[int]]) -> int:
        return sum(len(part) * max(sizes[i] for i in part) + PASS_COST for part in parts)

    def fits(part: list[int]) -> bool:
        return len(part) == 1 or len(part) * max(sizes[i] for i in part) <= most

    assert all(fits(part) for part in passes)
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    for cuts in itertools.product([False, True], repeat=len(sizes) - 1):
        parts = [[order[0]]]
        for i, cut in zip(order[1:], cuts, strict=True):
            parts = [*parts, [i]] if cut else [*parts[:-1], [*parts[-1], i]]
        if all(fits(part) for part in parts):
            assert cost(passes) <= cost(parts)


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
    assert [one.losses for one in results] == [pytest.approx(other.losses, rel=1e-9) for other in expected]
    assert_same_updates(results, expected, 1e-9)


@pytest.mark.parametrize("threads", [2, 3])
def test_passes_of_several_threads_give_the_same_and_are_split_alike(make_model: MakeModel, threads: int) -> None:
    jobs = mixed_jobs()
    with torch_threads(1):
        expected = train(make_model(dtype=torch.float64), jobs)
    model = make_model(dtype=torch.float64)
    with torch_threads(threads), LoraBank(model) as bank:
        together = bank.train(jobs)
        _limit_places(model, 18)
        split = bank.train(jobs)
        assert bank.usage.splits > 0
        assert torch.get_num_threads() == threads
    assert_same_updates(expected, together, 1e-9)
    assert_same_updates(expected, split, 1e-9)


def test_slot_that_never_fits_fails_alone(make_model: MakeModel) -> None:
    jobs = mixed_jobs()
    recipe = UpdateRecipe(epochs=4, batch_size=2)
    huge = UpdateRequest("huge", sequences(5, [120, 4]), recipe, seed=3)
    model = make_model(dtype=torch.float64)
    expected = train(model, jobs)
    model = make_model(dtype=torch.float64)
    with LoraBank(model) as bank:
        _limit_places(model, 100)
        results = bank.train([*jobs[:2], huge, *jobs[2:]])
    failed = results.pop(2)
    assert failed.outcome is UpdateOutcome.OUT_OF_MEMORY
    assert failed.adapter is None
    assert "does not fit in memory" in failed.detail
    assert_same_updates(results, expected, 1e-9)


_REAL = """
import resource, torch
torch.set_num_threads(1)
from tests.student.factories import sequences, tiny_model
from student.config import UpdateRecipe
from student.bank.bank import LoraBank
from student.updates import UpdateRequest
recipe = UpdateRecipe(epochs=1, batch_size=64)
jobs = [UpdateRequest(str(k), sequences(k, [250] * 64), recipe, seed=k) for k in range(4)]
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
    slots, splits, *outcomes = run_alone(_REAL)
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


@given(
    widest=st.integers(1, 500),
    budget=st.integers(1, 10**7),
    slot_bytes=st.integers(1, 10**6),
    place_bytes=st.integers(1, 10**4),
)
@settings(max_examples=200, deadline=None)
def test_bank_limits_stay_within_the_budget_wherever_one_slot_does(
    widest: int, budget: int, slot_bytes: int, place_bytes: int
) -> None:
    limits = BankLimits(max_slots=16, max_pass_places=1000, memory_bytes=budget, place_bytes=place_bytes)
    slots = limits.slots(widest, slot_bytes)
    places = limits.pass_places(slots, slot_bytes)
    assert 1 <= slots <= 16
    assert 1 <= places <= 1000
    if slot_bytes + widest * place_bytes <= budget:
        assert slots * slot_bytes + widest * place_bytes <= budget
        assert slots * slot_bytes + places * place_bytes <= budget
        assert places >= min(widest, 1000)


def test_budget_decides_how_many_slots_share_a_bank(make_model: MakeModel) -> None:
    jobs = [UpdateRequest(f"{k}", sequences(k, [40] * 4), UpdateRecipe(epochs=1), seed=k) for k in range(8)]
    slots = []
    for kilobytes in (500, 4_000, 64_000):
        with LoraBank(make_model(), memory_bytes=kilobytes << 10) as bank:
            results = bank.train(jobs)
            slots.append(bank.usage.slots)
        assert all(result.outcome is UpdateOutcome.OK for result in results)
    assert slots[0] == 1 < slots[1] < slots[2] == 8


_PLANNED = """
import torch
torch.set_num_threads(1)
from student.bank.passes import bytes_of_slot, plan_limits
from student.bank.layers import FlatLayout
from student.bank.model import BankedModel
from tests.student.factories import sequences, tiny_model
from student.config import UpdateRecipe
from student.bank.bank import LoraBank
from student.updates import UpdateRequest
jobs = [UpdateRequest(str(k), sequences(k, [250] * 8), UpdateRecipe(epochs=1), seed=k) for k in range(24)]
with LoraBank(tiny_model(), max_pass_places=1 << 20) as bank:
    bank.train(jobs[:1])  # Libraries take memory of their own at first use.
    bank.train(jobs)
student = BankedModel(tiny_model(), "all-linear")
slots = 24 * bytes_of_slot(FlatLayout(student.shapes, 8), torch.float32)
print(bank.usage.slots, slots + plan_limits(student, 24, 1, None).place_bytes * 24 * 8 * 249, bank.usage.peak_bytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_plan_is_near_what_a_bank_takes() -> None:
    slots, estimated, measured = run_alone(_PLANNED)
    if measured == "None":
        pytest.skip("the peak of a process's memory cannot be read here")
    assert int(slots) == 24
    assert 0.5 * int(estimated) <= int(measured) <= 1.2 * int(estimated)


def test_gradient_checkpointing_changes_memory_and_nothing_else(make_model: MakeModel) -> None:
    jobs = mixed_jobs()
    expected = train(make_model(dtype=torch.float64), jobs)
    model = make_model(dtype=torch.float64)
    with LoraBank(model, memory_bytes=1) as bank:  # Less than a single slot needs.
        results = bank.train(jobs)
        assert model.is_gradient_checkpointing
        assert bank.usage.slots == 1
    assert not model.is_gradient_checkpointing
    assert not any(module.training for module in model.modules())
    assert_same_updates(results, expected, 1e-10)


def test_plan_with_checkpoints_keeps_less(make_model: MakeModel) -> None:
    student = BankedModel(make_model(), "all-linear")
    whole = plan_limits(student, 8, 1000, None)
    assert not student.checkpoints
    assert student.checkpoint()
    assert student.checkpoints
    less = plan_limits(student, 8, 1000, None)
    student.restore()
    assert less.place_bytes < 0.8 * whole.place_bytes
    layout = FlatLayout(student.shapes, 8)
    assert bytes_of_slot(layout, torch.float32) == 5 * 4 * layout.size
    assert whole.memory_bytes > 0


def test_peak_bytes_see_what_was_held_for_a_moment() -> None:
    start = peak_bytes(torch.device("cpu"), reset=True)
    held = mmap.mmap(-1, 64 << 20)  # Pages that the process did not have before.
    held.write(b"x" * (64 << 20))
    held.close()
    peak = peak_bytes(torch.device("cpu"))
    if start is not None and peak is not None:
        assert peak - start > 48 << 20
