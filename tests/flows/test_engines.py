"""The whole flow with other engines: vLLM as sampler, and endpoints as generator and as teacher."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.faults import MODEL, FaultyServer
from tests.flows.settings import CONFIGS, TINY, Child, command, run_command, train
from tests.vllm_parts import needs_vllm
from tests.vllm_server import MICRO_TEACHER

pytestmark = pytest.mark.flow

VLLM = "teacher.sampling={type: vllm, max_new_tokens: 64, engine: {kv_cache_gb: 0.2}}"
SHORT = ("loop.rounds=0", "comparison.variants=[base, raw_passage, untrained_teacher]")


def endpoint(url: str, model: str = MODEL, **settings: Any) -> dict[str, Any]:
    return {"base_url": url, "model": model, **settings}


@needs_vllm
def test_training_with_vllm_runs_to_the_end_and_leaves_no_process(tmp_path: Path, finished_run: Any) -> None:
    child = Child(
        command(CONFIGS / "demo.yaml", tmp_path / "work", (*TINY, VLLM), tmp_path / "r.json"), tmp_path / "home"
    )
    try:
        assert child.wait() == 0, child.output[-4000:]
        deadline = time.monotonic() + 60.0
        while group_lives(child.process.pid):
            assert time.monotonic() < deadline, "a process is left"
            time.sleep(0.05)
    finally:
        child.kill()
    result = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    embedded = json.loads(finished_run.result.read_text(encoding="utf-8"))
    assert set(result) == set(embedded)
    assert set(result["variants"]) == set(embedded["variants"])
    assert all(entry["mean_reward"] is not None for entry in result["rounds"])
    # What no sampler decides is the same to the last digit.
    for same in ("base", "raw_passage"):
        assert result["document_accuracy"][same] == embedded["document_accuracy"][same]


def group_lives(leader: int) -> bool:
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True


@needs_vllm
@pytest.mark.slow
def test_external_generator_behind_vllms_server_loses_nothing_to_faults(
    tmp_path: Path, vllm_micro_teacher: str
) -> None:
    sampling = {"type": "openai", "endpoint": endpoint("", MICRO_TEACHER), "max_new_tokens": 64}
    with FaultyServer(vllm_micro_teacher) as server:
        sampling["endpoint"]["base_url"] = server.base_url  # type: ignore[index]
        server.fail_next(["429", "500", "truncated", "not json", "empty", "reset"])
        source = {"type": "endpoint", "sampling": sampling, "prompt": "micro-implications"}
        external = json.dumps({"name": "external_generator", "label": "external generator", "source": source})
        variants = f"comparison.variants=[base, raw_passage, {external}, untrained_teacher]"
        result, _ = train(tmp_path, "demo", (*TINY, *SHORT, variants))
    assert set(result["variants"]) == {"base", "raw_passage", "untrained_teacher", "external_generator"}
    assert result["spent"]["external"]["calls"] == 4 + 6
    assert result["spent"]["external"]["failures"] == 6
    assert not any("generation_failed" in note for note in result["notes"])
    assert 1 < result["edit_tokens"]["external_generator"] <= 64


@pytest.mark.slow
def test_a_teacher_behind_an_endpoint_writes_within_its_budget(tmp_path: Path) -> None:
    def teach(budget: int, model: str = MODEL) -> tuple[int, str]:
        told = endpoint(server.base_url, model, budget_tokens=budget, concurrency=1)
        sampling = {"type": "openai", "endpoint": told, "max_new_tokens": 64}
        chosen = [part for part in TINY if not part.startswith("teacher.sampling")]
        settings = (*chosen, *SHORT, f"teacher.model={model}", "teacher.sampling=" + json.dumps(sampling))
        whole = command(CONFIGS / "demo.yaml", tmp_path / "work", settings, tmp_path / "r.json")
        return run_command(whole, tmp_path / "home")

    with FaultyServer() as server:
        server.replies = lambda prompt: f"The passage is {len(prompt)} characters long."
        code, output = teach(10_000, "nobody")
        assert code == 1
        assert "no model 'nobody'" in output
        assert server.seen == [], "a wrong name is seen before anything is asked or trained"
        code, output = teach(700)
        assert code == 1
        assert "budget" in output
        assert "Traceback" not in output
        assert len(server.seen) == 2, (
            "the third could exceed it: a prompt counts with a token a byte before its use is known"
        )
        code, output = teach(10_000)
        assert code == 0, output[-4000:]
        assert len(server.seen) == 4, "what was paid for is not asked for again"
    result = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert set(result["variants"]) == {"base", "raw_passage", "untrained_teacher"}
    assert result["edit_tokens"]["untrained_teacher"] > 0
    assert result["spent"]["teacher"]["calls"] == 4
