"""Fixtures that every part's tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vllm_server import vllm_micro_teacher

__all__ = ["vllm_micro_teacher"]

SHARED_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Callable[..., Path]:
    """Return a function that gives the path of a recorded data file, or skips the test when it is absent."""

    def find(*parts: str) -> Path:
        path = SHARED_DATA.joinpath(*parts)
        if not path.exists():
            pytest.skip(f"recorded data {'/'.join(parts)} is not at hand")
        return path

    return find
