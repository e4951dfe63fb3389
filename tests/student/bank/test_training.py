"""Slots in training: their steps, the threads that work on them, leaving and refilling."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from student.bank.bank import LoraBank
from student.bank.packing import LabelledTokens
from student.bank.training import Slot, run_apart, sequence_order, threads_apart
from student.config import UpdateRecipe
from student.sequences import TrainingSequence
from student.updates import UpdateRequest
from tests.student.factories import MakeModel, adapter_of, assert_same_updates, same_bits, sequences, train


def _slot(sequences: list[TrainingSequence], **recipe: int) -> Slot:
    return Slot(UpdateRequest("", tuple(sequences), UpdateRecipe.model_validate(recipe), seed=0), [])


def _steps(slot: Slot) -> list[list[LabelledTokens]]:
    """Return the lines of all steps."""
    shown = []
    while slot.step < slot.steps:
        shown.append(slot.lines())
        slot.step += 1
    return shown


def _numbered(lengths: list[int]) -> list[TrainingSequence]:
    return [TrainingSequence(tuple(100 * i + j for j in range(n)), (True,) * n) for i, n in enumerate(lengths, 1)]


def test_steps_of_a_slot_cover_every_sequence_once_an_epoch() -> None:
    slot = _slot(_numbered([5, 3, 4, 2, 6]), epochs=3, batch_size=2)
    assert slot.steps == 9
    steps = _steps(slot)
    shown = [int(line.ids[0]) // 100 for lines in steps for line in lines]
    assert len(shown) == 15
    for epoch in range(3):
        assert sorted(shown[5 * epoch : 5 * epoch + 5]) == [1, 2, 3, 4, 5]
    assert [len(lines) for lines in steps[:3]] == [2, 2, 1]


def test_places_of_a_slot_bound_every_step() -> None:
    slot = _slot(_numbered([5, 3, 4, 2, 6]), epochs=20, batch_size=2)
    assert slot.places == 5 + 4
    assert max(sum(len(line.ids) for line in lines) for lines in _steps(slot)) == slot.places


def test_lines_of_a_slot_have_labels_where_the_mask_says_so() -> None:
    sequence = TrainingSequence((7, 8, 9, 10), (True, False, True, True))
    (line,) = _slot([sequence], epochs=1).lines()
    assert line.ids.tolist() == [7, 8, 9]
    assert line.labels.tolist() == [-1, 9, 10]


def test_sequence_order_is_seeded_and_differs_between_epochs() -> None:
    orders = sequence_order(20, 3, 2)
    assert orders == sequence_order(20, 3, 2)
    assert orders[0] != orders[1]
    assert orders[:1] == sequence_order(20, 3, 1)
    assert orders != sequence_order(20, 4, 2)


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


@pytest.mark.usefixtures("one_thread")
def test_slots_leave_and_new_ones_take_their_place(make_model: MakeModel) -> None:
    jobs = [
        UpdateRequest(f"{k}", sequences(k, [4, 5, 6]), UpdateRecipe(epochs=1 + k % 4, batch_size=2), seed=k)
        for k in range(11)
    ]
    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += torch.is_grad_enabled()

    model = make_model(dtype=torch.float64)
    with LoraBank(model, max_slots=3) as bank:
        hook = model.model.register_forward_pre_hook(count)
        few = bank.train(jobs)
        hook.remove()
    steps = sum(job.recipe.total_steps(3) for job in jobs)
    # A bank that waits for its slowest slot would need 8 + 8 + 8 + 6.
    assert bank.usage.slots == 3
    assert steps / 3 <= passes < 0.7 * steps
    with LoraBank(make_model(dtype=torch.float64)) as bank:
        many = bank.train(jobs)
        assert bank.usage.slots == 11
    assert_same_updates(few, many, 1e-10)


def test_finished_slot_is_frozen_to_the_bit(make_model: MakeModel) -> None:
    """Two neighbours that go on for three or for nine epochs: the first steps are the same to the bit."""
    short = UpdateRequest("short", sequences(0, [5, 4]), UpdateRecipe(epochs=3), seed=1)
    frozen = []
    for epochs in (3, 9):
        recipe = UpdateRecipe(epochs=epochs)
        neighbours = [UpdateRequest(f"{k}", sequences(k, [6, 5]), recipe, seed=k) for k in (1, 2)]
        frozen.append(adapter_of(train(make_model(), [neighbours[0], short, neighbours[1]])[1]))
    assert same_bits(*frozen)


def test_packed_slots_carry_little_padding(make_model: MakeModel) -> None:
    """Edits of 2 to 12 lines of 3 to 20 tokens; a full step of the fullest slot has many times the places of
    the smallest one's."""
    generator = torch.Generator().manual_seed(0)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    jobs = [
        UpdateRequest(
            f"{k}",
            sequences(k, [draw(3, 20) for _ in range(draw(2, 12))]),
            UpdateRecipe(epochs=2, batch_size=16),
            seed=k,
        )
        for k in range(64)
    ]
    with LoraBank(make_model()) as bank:
        results = bank.train(jobs)
        usage = bank.usage
    assert usage.padding_share is not None
    assert usage.padding_share < 0.15
    assert usage.tokens == sum(result.tokens for result in results)
    assert usage.places == sum(result.padded_tokens for result in results)
