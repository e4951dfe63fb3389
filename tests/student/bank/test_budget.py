"""How many slots fit: the plan before, the peak after."""

from __future__ import annotations

import mmap
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from student.bank.bank import LoraBank
from student.bank.budget import BankLimits, PeakMemory, bytes_of_slot, plan_limits
from student.bank.layout import FlatLayout
from student.bank.model import BankedModel
from student.config import UpdateRecipe
from student.updates import UpdateOutcome, UpdateRequest
from tests.student.factories import MakeModel, assert_same_updates, mixed_jobs, run_alone, sequences, train


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
from student.bank.budget import bytes_of_slot, plan_limits
from student.bank.layout import FlatLayout
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


def test_peak_memory_sees_what_was_held_for_a_moment() -> None:
    with PeakMemory(torch.device("cpu")) as peak:
        held = mmap.mmap(-1, 64 << 20)  # Pages that the process did not have before.
        held.write(b"x" * (64 << 20))
        held.close()
    if peak.grown is not None:
        assert peak.grown > 48 << 20
