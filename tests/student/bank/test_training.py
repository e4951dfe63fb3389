"""Slots in training: their steps, the threads that work on them, leaving and refilling."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from student.bank.bank import LoraBank
from student.bank.packing import LabelledTokens
from student.bank.training import Slot, SlotAdamW, run_apart, sequence_order, threads_apart
from student.config import MAX_GRADIENT_NORM, UpdateRecipe
from student.updates import TrainingSequence, UpdateRequest
from tests.student.factories import (
    MakeModel,
    adapter_of,
    assert_same_updates,
    same_bits,
    sequences,
    torch_threads,
    train,
)


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
    with torch_threads(3):
        yield


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


RECIPES = [
    UpdateRecipe(learning_rate=0.1),
    UpdateRecipe(learning_rate=0.01, adam_betas=(0.8, 0.95)),
    UpdateRecipe(learning_rate=0.5, warmup_steps=2),
]
TOTALS = [6, 5, 3]


def _at(recipe: UpdateRecipe, step: int, total: int) -> Slot:
    """Return a slot that has done `step` of its `total` optimizer steps."""
    slot = Slot(UpdateRequest("", (), recipe, seed=0), [])
    slot.step, slot.steps = step, total
    return slot


def _alone(start: torch.Tensor, gradients: torch.Tensor, recipe: UpdateRecipe) -> torch.Tensor:
    """Return `start` (P,) after a step of torch's AdamW for each of the gradients (steps, P)."""
    alone = start.clone().requires_grad_()
    adam = torch.optim.AdamW([alone], lr=1.0, weight_decay=0.0, betas=recipe.adam_betas)
    for step, gradient in enumerate(gradients):
        adam.param_groups[0]["lr"] = recipe.learning_rate_at(step, len(gradients))
        alone.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_([alone], MAX_GRADIENT_NORM)
        adam.step()
    return alone.detach()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("width", [7, 1 << 16])
def test_slot_adamw_equals_torch_adamw_for_each_slot(width: int, dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, width, generator=generator, dtype=dtype)
    gradients = torch.randn(6, 3, width, generator=generator, dtype=dtype)
    flat = start.clone()
    optimizer = SlotAdamW(flat)
    for step in range(6):
        active = sum(total > step for total in TOTALS)
        slots = [_at(RECIPES[k], step, TOTALS[k]) for k in range(active)]
        optimizer.step(gradients[step, :active].clone(), slots)
    for k, (recipe, total) in enumerate(zip(RECIPES, TOTALS, strict=True)):
        expected = _alone(start[k], gradients[:total, k], recipe)
        assert torch.allclose(flat[k], expected, rtol=tolerance, atol=tolerance)


def test_slot_adamw_late_slot_is_where_it_would_be_alone() -> None:
    """Slot 1 leaves, the last slot takes its place, and a new one begins with moments and steps of its own."""
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    gradients = torch.randn(5, 3, 5, generator=generator, dtype=torch.float64)
    flat = start[:3].clone()
    optimizer = SlotAdamW(flat)
    for step in range(2):
        optimizer.step(gradients[step].clone(), [_at(recipe, step, 5) for recipe in RECIPES])
    optimizer.move(2, 1)
    flat[2].copy_(start[3])
    optimizer.reset(2)
    order = [RECIPES[0], RECIPES[2], RECIPES[1]]
    for step in range(3):
        slots = [_at(order[0], 2 + step, 5), _at(order[1], 2 + step, 5), _at(order[2], step, 3)]
        optimizer.step(gradients[2 + step, [0, 2, 1]].clone(), slots)
    expected = [
        _alone(start[0], gradients[:, 0], RECIPES[0]),
        _alone(start[2], gradients[:, 2], RECIPES[2]),
        _alone(start[3], gradients[2:, 1], RECIPES[1]),
    ]
    assert torch.allclose(flat, torch.stack(expected), rtol=0, atol=1e-12)
