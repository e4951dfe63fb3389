"""Fixtures of the student's tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.student.factories import MakeModel, byte_tokenizer, tiny_model


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
    """A bank whose slots all share their passes: with more threads, each trains slots of its own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
