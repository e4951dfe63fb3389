"""Threads that work apart: each alone on its work, all of them stopped by one that fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from student.threads import run_apart, threads_apart
from tests.student.conftest import MakeModel

Seen = tuple[int, int]


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def seen_by(number: int, together: threading.Barrier | None = None) -> Callable[[threading.Event], Seen]:
    def work(stop: threading.Event) -> Seen:
        if together is not None:
            together.wait(timeout=30)  # Passes only when all works run at once.
        assert not stop.is_set()
        return number, torch.get_num_threads()

    return work


@pytest.mark.usefixtures("three_threads")
def test_run_apart_gives_each_work_a_thread_of_its_own_and_returns_in_order() -> None:
    together = threading.Barrier(2)
    assert run_apart([seen_by(7, together), seen_by(3, together)]) == [(7, 1), (3, 1)]
    assert torch.get_num_threads() == 3
    assert run_apart([seen_by(5)]) == [(5, 3)]


@pytest.mark.usefixtures("three_threads")
def test_run_apart_stops_the_others_when_one_fails() -> None:
    def failing(stop: threading.Event) -> bool:
        raise ValueError("broken")

    told: list[bool] = []

    def patient(stop: threading.Event) -> bool:
        told.append(stop.wait(timeout=30))
        return True

    with pytest.raises(ValueError, match="broken"):
        run_apart([patient, failing])
    assert told == [True]
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_threads_apart_follow_torch_the_work_and_the_device(make_model: MakeModel) -> None:
    model = make_model()
    assert [threads_apart(model, torch.device("cpu"), most) for most in (0, 1, 2, 8)] == [1, 1, 2, 3]
    assert threads_apart(model, torch.device("cuda"), 8) == 1
