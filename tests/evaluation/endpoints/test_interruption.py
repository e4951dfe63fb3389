from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from evaluation.endpoints.client import Endpoint
from evaluation.endpoints.ledger import Ledger
from tests.evaluation.endpoints.settings import config_for, requests_for, texts
from tests.faults import FaultyServer

SCRIPT = """
import sys
from pathlib import Path
from evaluation.endpoints.client import Endpoint
from evaluation.endpoints.config import EndpointConfig
from evaluation.endpoints.ledger import Ledger
from tests.evaluation.endpoints.settings import requests_for

config = EndpointConfig(base_url=sys.argv[1], model="tiny", concurrency=2)
Endpoint(config, Ledger(Path(sys.argv[2]))).complete(requests_for(30))
"""


def test_killed_run_pays_for_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "l.db"
    with FaultyServer(delay=0.1) as server:
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, server.base_url, str(path)])
        while len(server.seen) < 8:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.wait(60)
        with Ledger(path) as ledger:
            stored, spent = ledger.stored(), ledger.spent()
            assert stored >= 6
            assert spent.unsettled == spent.calls - stored <= 2
            asked_before = len(server.seen)
            written = texts(Endpoint(config_for(server), ledger).complete(requests_for(30)))
            assert len(set(written)) == 30
            assert len(server.seen) - asked_before == 30 - stored
            assert ledger.spent().calls == spent.calls + 30 - stored


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let an interrupt through even where the tests run in the background of a shell, which has them ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_interrupt_ends_the_calls_at_once_and_leaves_no_thread(tmp_path: Path, interruptible: None) -> None:
    with FaultyServer() as server, Ledger(tmp_path / "l.db") as ledger:
        server.always["prompt 00"] = "hang"
        endpoint = Endpoint(config_for(server, concurrency=4, timeout=60.0), ledger)

        def interrupt() -> None:
            while len(server.seen) < 4:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        before = set(threading.enumerate())
        threading.Thread(target=interrupt, daemon=True).start()
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            endpoint.complete(requests_for(8))
        assert time.monotonic() - started < 10
        left = [t.name for t in set(threading.enumerate()) - before if "process_request" not in t.name]
        assert left == []
        assert ledger.spent()[:3] == (4, 4, 4)
        server.always.clear()
        assert len(texts(endpoint.complete(requests_for(8)))) == 8
