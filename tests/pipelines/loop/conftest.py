"""A loop on the small demo, opened anew on the same work directory as often as a test likes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.loop.loop import Loop
from tests.pipelines.factories import make_loop, small_config

Open = Callable[..., Loop]


@pytest.fixture
def opened(tmp_path: Path, prefect_server: None) -> Open:
    return lambda *overrides: make_loop(small_config(*overrides), tmp_path / "work")
