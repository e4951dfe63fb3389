"""Passes: how slots share them, and what happens when memory runs out."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from student.bank.bank import LoraBank
from student.bank.passes import PASS_COST, is_out_of_memory, split_into_passes
from student.config import UpdateRecipe
from student.updates import UpdateOutcome, UpdateRequest
from tests.student.factories import MakeModel, assert_same_updates, mixed_jobs, run_alone, sequences, train


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
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = train(make_model(dtype=torch.float64), jobs)
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
