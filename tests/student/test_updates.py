"""Requests, and the usage of banks."""

from __future__ import annotations

from typing import Any

from evaluation.exact_match import AnswerFormat
from evaluation.tasks import Document
from student.config import UpdateRecipe
from student.updates import BankUsage, make_request
from teacher.self_edit import Implication, SelfEdit, TrainingSpec


def test_make_request_takes_the_training_spec_into_the_recipe(tokenizer: Any) -> None:
    edit = SelfEdit(implications=(Implication(text="x"),), training=TrainingSpec(rank=3, epochs=2, learning_rate=1e-3))
    job = make_request("k", edit, Document(id="d", text="t"), tokenizer, UpdateRecipe(), AnswerFormat(), 5)
    assert (job.recipe.rank, job.recipe.epochs, job.recipe.learning_rate) == (3, 2, 1e-3)
    assert job.recipe.alpha == UpdateRecipe().alpha


def test_usage_of_several_banks_is_the_sum_or_the_highest() -> None:
    one = BankUsage(slots=3, tokens=60, places=80, splits=1, peak_bytes=5)
    other = BankUsage(slots=2, tokens=9, places=12)
    assert BankUsage.merged([one, other]) == BankUsage(slots=3, tokens=69, places=92, splits=1, peak_bytes=5)
    assert BankUsage.merged([one, other]).padding_share == 0.25
    assert BankUsage.merged([]) == BankUsage()
    assert BankUsage().padding_share is None
