from __future__ import annotations

import torch

from student.bank.bank import LoraBank
from student.config import UpdateRecipe
from student.sequences import TrainingSequence
from student.updates import UpdateOutcome, UpdateRequest
from tests.student.factories import MakeModel, train

SEQUENCES = (TrainingSequence((5, 6, 7, 8), (True,) * 4),)


def _idle() -> UpdateRecipe:
    """A recipe that trains without moving anything, which validation would not allow."""
    return UpdateRecipe.model_construct(**{**UpdateRecipe(epochs=2).model_dump(), "learning_rate": 0.0})


def test_canary_update_that_changes_nothing_fails_alone(make_model: MakeModel) -> None:
    jobs = [UpdateRequest("works", SEQUENCES, UpdateRecipe(epochs=2), 0), UpdateRequest("idle", SEQUENCES, _idle(), 0)]
    works, idle = train(make_model(), jobs)
    assert works.outcome is UpdateOutcome.OK
    assert idle.outcome is UpdateOutcome.CANARY_FAILED
    assert idle.adapter is None
    assert "differ from the base's by 0" in idle.detail


def test_canary_smallest_allowed_update_passes(make_model: MakeModel) -> None:
    """One step of a thousandth of the default step size is far above rounding."""
    job = UpdateRequest("small", SEQUENCES, UpdateRecipe(learning_rate=5e-6, max_steps=1), 0)
    (result,) = train(make_model(), [job])
    assert result.outcome is UpdateOutcome.OK


def test_canary_continued_adapter_that_did_not_move_fails(make_model: MakeModel) -> None:
    with LoraBank(make_model()) as bank:
        (first,) = bank.train([UpdateRequest("first", SEQUENCES, UpdateRecipe(epochs=2), 0)])
        (again,) = bank.train([UpdateRequest("again", SEQUENCES, _idle(), 0, initial=first.adapter)])
    assert again.outcome is UpdateOutcome.CANARY_FAILED
    assert "continued from" in again.detail


def test_canary_moved_base_fails_every_slot(make_model: MakeModel) -> None:
    model = make_model()
    with LoraBank(model) as bank:
        model.model.norm.weight.data[0] += 1e-3
        results = bank.train([UpdateRequest(str(k), SEQUENCES, UpdateRecipe(epochs=1), k) for k in range(2)])
    assert [result.outcome for result in results] == [UpdateOutcome.CANARY_FAILED] * 2
    assert "base's own logits moved" in results[0].detail


def test_canary_diverged_slot_is_non_finite_not_canary(make_model: MakeModel) -> None:
    values = {**UpdateRecipe(epochs=1).model_dump(), "learning_rate": 1e38}
    job = UpdateRequest("diverged", SEQUENCES, UpdateRecipe.model_construct(**values), 0)
    (result,) = train(make_model(), [job])
    assert result.losses
    assert torch.isfinite(torch.tensor(result.losses)).all()
    assert result.outcome in (UpdateOutcome.NON_FINITE, UpdateOutcome.CANARY_FAILED)
    assert result.adapter is None
