"""Client and sampler against vLLM's own server, with a proxy between them that injects faults."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from evaluation.common.errors import EndpointError
from evaluation.engines.endpoint import Endpoint, EndpointRequest
from evaluation.engines.ledger import EndpointFailure, Ledger
from teacher.parsing.parser import parse_self_edit
from teacher.samplers.openai import OpenAISampler, OpenAISampling
from teacher.samplers.sampler import Completion
from tests.evaluation.factories import config_for, counts, replies, texts
from tests.faults import FaultyServer
from tests.vllm_server import MICRO_TEACHER

pytestmark = pytest.mark.slow

PROMPT = "Passage: {}\nImplications:\n"


@pytest.fixture
def proxy(vllm_micro_teacher: str) -> Iterator[FaultyServer]:
    with FaultyServer(vllm_micro_teacher) as server:
        yield server


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "l.db") as opened:
        yield opened


def asked(count: int, max_tokens: int = 16) -> list[EndpointRequest]:
    return [EndpointRequest(PROMPT.format(f"Person {i} lives in Rome."), max_tokens, seed=i) for i in range(count)]


def test_every_fault_passes_and_nothing_is_lost(
    proxy: FaultyServer, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluation.engines.endpoint.RETRIES", 8)
    endpoint = Endpoint(config_for(proxy, model=MICRO_TEACHER), ledger)
    endpoint.check()
    expected = replies(endpoint.complete(asked(12)))
    assert {r.model for r in expected} == {MICRO_TEACHER}
    assert all(r.text and r.prompt_tokens and 1 <= (r.completion_tokens or 0) <= 16 for r in expected)
    assert ledger.spent().tokens == sum((r.prompt_tokens or 0) + (r.completion_tokens or 0) for r in expected)
    assert ledger.spent().unsettled == 0

    proxy.fail_next(["429", "500", "truncated", "cut", "not json", "empty", "no text", "reset"])
    with Ledger(tmp_path / "other.db") as fresh:
        again = Endpoint(config_for(proxy, model=MICRO_TEACHER), fresh)
        assert texts(again.complete(asked(12))) == [reply.text for reply in expected]
        assert counts(fresh)[:2] == (20, 8)


def test_refusals_of_the_server_are_understood(proxy: FaultyServer, ledger: Ledger) -> None:
    with pytest.raises(EndpointError, match=f"no model 'nobody', available: {MICRO_TEACHER}"):
        Endpoint(config_for(proxy, model="nobody"), ledger).check()
    with pytest.raises(EndpointError, match="model 'nobody'"):
        Endpoint(config_for(proxy, model="nobody"), ledger).complete(asked(2))
    endpoint = Endpoint(config_for(proxy, model=MICRO_TEACHER), ledger)
    with pytest.raises(EndpointError, match="Check that the server supports this model"):
        endpoint.complete(asked(1, max_tokens=5000))
    long = EndpointRequest(PROMPT.format("Rome " * 990), 60)  # below the context, but not with the completion
    longer = EndpointRequest(PROMPT.format("Rome " * 5000), 16)
    outcomes = endpoint.complete([*asked(1), long, longer])
    assert texts(outcomes[:1])
    for outcome in outcomes[1:]:
        assert isinstance(outcome, EndpointFailure)
        assert outcome.reason == "prompt_too_long"


def test_sampler_writes_self_edits(proxy: FaultyServer, tmp_path: Path) -> None:
    config = OpenAISampling(type="openai", endpoint=config_for(proxy, model=MICRO_TEACHER), max_new_tokens=64)
    prompts = [request.prompt for request in asked(2)]
    sampler = OpenAISampler(config, tmp_path / "l.db")
    sampler.check()
    written = sampler.sample(prompts, n=3, seed=0)
    flat = [c for row in written for c in row if isinstance(c, Completion)]
    assert len({c.text for c in flat}) == len(flat) == 6
    assert all(c.token_ids == () and c.completion_tokens and c.completion_tokens <= 64 for c in flat)
    assert any(parse_self_edit(c.text, prompt=prompts[0], finish_reason=c.finish_reason).edit for c in flat)
    sampler.close()
    again = OpenAISampler(config, tmp_path / "again.db")  # the same seeds, asked anew: the server heeds them
    assert again.sample(prompts, n=3, seed=0) == written
    again.close()
