"""Fixtures of the student's tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.student.factories import MakeModel, byte_tokenizer, tiny_model, torch_threads


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A byte-level tokenizer without merges."""
    return byte_tokenizer()


@pytest.fixture
def make_model() -> MakeModel:
    """The function that builds a tiny random student; called twice with the same arguments, it builds the same."""
    return tiny_model


@pytest.fixture
def one_thread() -> Iterator[None]:
    """A bank whose slots all share their passes."""
    with torch_threads(1):
        yield
