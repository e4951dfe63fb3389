"""Fixtures that every part's tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from tests.extras import EXTRAS
from tests.vllm_server import vllm_micro_teacher

__all__ = ["vllm_micro_teacher"]

settings.register_profile("preceptor", deadline=None)  # a loaded machine is no failure
settings.load_profile("preceptor")

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


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry endpoints twice, without waiting long."""
    monkeypatch.setattr("evaluation.engines.endpoint.RETRIES", 2)
    monkeypatch.setattr("evaluation.engines.protocol.TIMEOUT", 60.0)
    monkeypatch.setattr("evaluation.engines.endpoint.FIRST_WAIT", 0.01)


@pytest.fixture(autouse=True)
def no_github(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the commands of tests that run on GitHub from annotating the pull request."""
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests of extras that are not installed."""
    for item in items:
        if "vllm_micro_teacher" in getattr(item, "fixturenames", ()):
            item.add_marker("vllm")
        for name, reason in EXTRAS.items():
            if reason and item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))
