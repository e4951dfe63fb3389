"""Requests, replies and configuration of an endpoint, against a real server on loopback."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from evaluation.common.errors import ConfigError, EndpointError
from evaluation.engines.endpoint import Endpoint, EndpointConfig, EndpointRequest, check_key, most_tokens
from evaluation.engines.ledger import EndpointReply, Ledger
from tests.evaluation.factories import config_for, counts, replies, requests_for, texts
from tests.faults import COMPLETION_TOKENS, FaultyServer

SECRET = "sk-abc123def456"


def config(**changes: Any) -> EndpointConfig:
    return EndpointConfig.model_validate({"base_url": "http://127.0.0.1:8000/v1", "model": "m"} | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_url": "ftp://host/v1"}, "base_url: allowed are http and https"),
        ({"base_url": "127.0.0.1:8000"}, "base_url: allowed are http and https"),
        ({"base_url": f"https://user:{SECRET}@host/v1"}, "base_url: .*Put the key into an environment variable"),
        ({"base_url": f"https://host/v1?api-key={SECRET}"}, "base_url: .*Put the key into an environment variable"),
        ({"key_env": SECRET}, "key_env: allowed is the name of an environment variable"),
        ({"concurrency": 257}, "less than or equal to 256"),
        ({"key": SECRET}, "Extra inputs are not permitted"),
    ],
)
def test_config_mistakes_are_named_and_no_secret_is_repeated(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        config(**changes)
    assert SECRET not in str(caught.value)


def test_check_key_reads_the_named_variable_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    assert check_key(config()) is None
    with pytest.raises(ConfigError, match="'GENERATOR_KEY' named by key_env is not set"):
        check_key(config(key_env="GENERATOR_KEY"))
    for key, mistake in (("", "is empty"), ("other\n", "holds white space")):
        monkeypatch.setenv("GENERATOR_KEY", key)
        with pytest.raises(ConfigError, match=mistake):
            check_key(config(key_env="GENERATOR_KEY"))
    monkeypatch.setenv("GENERATOR_KEY", "other")
    assert check_key(config(key_env="GENERATOR_KEY")) == "other"


def test_digest_depends_on_all_that_decides_the_reply_and_on_nothing_else() -> None:
    fields: dict[str, Any] = {"prompt": "p", "max_tokens": 5}
    base = EndpointRequest(**fields).digest(config())
    changes: list[dict[str, Any]] = [
        {"prompt": "q"},
        {"max_tokens": 6},
        {"temperature": 0.5},
        {"top_p": 0.5},
        {"seed": 0},
        {"index": 1},
    ]
    asked = [EndpointRequest(**(fields | change)).digest(config()) for change in changes]
    elsewhere: list[dict[str, Any]] = [{"base_url": "http://127.0.0.1:8001/v1"}, {"model": "n"}, {"api": "chat"}]
    asked += [EndpointRequest(**fields).digest(config(**change)) for change in elsewhere]
    assert len({base, *asked}) == len(asked) + 1
    same: list[dict[str, Any]] = [{"concurrency": 3}, {"budget_tokens": 7}, {"base_url": "http://127.0.0.1:8000/v1/"}]
    assert {EndpointRequest(**fields).digest(config(**change)) for change in same} == {base}
    # Replies that were paid for are found again: a digest stays as it was first stored.
    paid_for = EndpointConfig(base_url="http://127.0.0.1:1/v1", model="m")
    stored = EndpointRequest("p", 10, temperature=0.5, seed=7, index=2).digest(paid_for)
    assert stored == "5a8913aa3f1de7d82f9f62348c47ddee8c865cd1c8c6543a43c33ea68f8e061e"


def test_most_tokens_counts_bytes() -> None:
    assert most_tokens("aé字\ud800") == 1 + 2 + 3 + 3


KEY = "sk-the-right-one"


def test_replies_come_in_order_and_are_stored(tmp_path: Path) -> None:
    requests = requests_for(20)
    with FaultyServer(delay=0.01) as server, Ledger(tmp_path / "l.db") as ledger:
        endpoint = Endpoint(config_for(server, concurrency=4), ledger)
        first = replies(endpoint.complete(requests))
        assert len({reply.text for reply in first}) == 20
        assert 1 < server.peak <= 4
        assert {(r.prompt_tokens, r.completion_tokens, r.finish_reason, r.model) for r in first} == {
            (2, COMPLETION_TOKENS, "stop", "tiny")
        }
        again = replies(endpoint.complete(requests[::-1]))
        assert [reply.text for reply in again] == [reply.text for reply in first][::-1]
        assert len(server.seen) == 20
        assert counts(ledger) == (20, 0, 0, 20 * (COMPLETION_TOKENS + 2))


def test_same_requests_are_asked_once_and_others_are_not_confused(tmp_path: Path) -> None:
    request = EndpointRequest("p", 10, seed=1)
    other = EndpointRequest("p", 10, seed=1, index=1)
    with FaultyServer() as server, Ledger(tmp_path / "l.db") as ledger:
        outcomes = Endpoint(config_for(server), ledger).complete([request, other, request, request])
        assert len(set(texts(outcomes))) == 1
        assert len(server.seen) == 2
        assert Endpoint(config_for(server), ledger).complete([]) == []


def test_server_that_wants_the_newer_name_of_the_token_limit_is_given_it(tmp_path: Path) -> None:
    with FaultyServer() as server, Ledger(tmp_path / "l.db") as ledger:
        server.always["prompt"] = "newer limit"
        assert len(texts(Endpoint(config_for(server, concurrency=1), ledger).complete(requests_for(2)))) == 2
        assert [list(seen.body)[1] for seen in server.seen] == ["max_tokens", *["max_completion_tokens"] * 2]
        assert counts(ledger)[:2] == (2, 0)


def test_protocols_send_what_they_should(tmp_path: Path) -> None:
    request = EndpointRequest("p", 10, temperature=0.5, top_p=0.9, seed=7)
    with FaultyServer() as server, Ledger(tmp_path / "l.db") as ledger:
        Endpoint(config_for(server), ledger).complete([request])
        Endpoint(config_for(server, api="chat"), ledger).complete([EndpointRequest("hi", 10)])
    common = {"model": "tiny", "temperature": 0.5, "top_p": 0.9, "seed": 7}
    assert server.seen[0].body == {"prompt": "p", "max_tokens": 10, **common}
    assert server.seen[1].body == {
        "model": "tiny",
        "temperature": 1.0,
        "top_p": 1.0,
        "max_tokens": 10,
        "messages": [{"role": "user", "content": "hi"}],
    }


@pytest.mark.parametrize("key_env", [None, "GENERATOR_KEY"])
def test_nothing_of_the_environment_is_sent_but_the_named_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key_env: str | None
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "stranger")
    monkeypatch.setenv("GENERATOR_KEY", KEY)
    with FaultyServer(key=KEY if key_env else "") as server, Ledger(tmp_path / "l.db") as ledger:
        endpoint = Endpoint(config_for(server, key_env=key_env), ledger)
        endpoint.check()
        texts(endpoint.complete(requests_for(1)))
        headers = server.seen[0].headers
    assert "stranger" not in str(headers)
    assert headers.get("authorization") == (f"Bearer {KEY}" if key_env else None)


def test_wrong_model_stops_at_once_and_is_named(tmp_path: Path) -> None:
    with FaultyServer() as server, Ledger(tmp_path / "l.db") as ledger:
        endpoint = Endpoint(config_for(server, model="tinny", concurrency=1), ledger)
        with pytest.raises(EndpointError, match="no model 'tinny', available: tiny"):
            endpoint.check()
        with pytest.raises(EndpointError, match=r"model 'tinny': .*`tinny` does not exist.* the model 'tinny'"):
            endpoint.complete(requests_for(10))
        assert len(server.seen) == 1
        assert counts(ledger) == (1, 1, 0, 0)


def test_wrong_key_stops_at_once_and_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENERATOR_KEY", "sk-mistyped")
    with FaultyServer(key=KEY) as server, Ledger(tmp_path / "l.db") as ledger:
        endpoint = Endpoint(config_for(server, key_env="GENERATOR_KEY", concurrency=2), ledger)
        for ask in (endpoint.check, lambda: endpoint.complete(requests_for(10))):
            with pytest.raises(EndpointError, match="Check the key in GENERATOR_KEY") as caught:
                ask()
            assert "mistyped" not in str(caught.value)
        assert len(server.seen) <= 2
        assert b"mistyped" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())
        with pytest.raises(ConfigError, match="OTHER_KEY"):
            Endpoint(config_for(server, key_env="OTHER_KEY"), ledger)


def test_replies_in_flight_are_stored_when_another_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = requests_for(4, max_tokens=2)
    with FaultyServer(delay=0.3) as server, Ledger(tmp_path / "l.db") as ledger:
        endpoint = Endpoint(config_for(server, concurrency=4), ledger)

        def keep(self: Ledger, call: int, digest: str, reply: EndpointReply) -> EndpointReply:
            keep_first(self, call, digest, reply)
            raise RuntimeError("the disk is gone")

        keep_first = Ledger.keep
        monkeypatch.setattr(Ledger, "keep", keep)
        with pytest.raises(RuntimeError, match="the disk is gone"):
            endpoint.complete(requests)
        monkeypatch.undo()
        assert ledger.stored() == 4
        assert ledger.spent().unsettled == 0
        assert len(texts(endpoint.complete(requests))) == len(server.seen) == 4


def test_check_without_a_server_or_a_list(tmp_path: Path) -> None:
    with FaultyServer() as server, Ledger(tmp_path / "l.db") as ledger:
        Endpoint(config_for(server, base_url=server.base_url + "/deeper"), ledger).check()
        gone = config_for(server, base_url="http://127.0.0.1:9/v1")
        with pytest.raises(EndpointError, match=r"127.0.0.1:9/v1.* no valid response: ConnectError"):
            Endpoint(gone, ledger).check()


def test_complete_works_inside_a_running_loop(tmp_path: Path) -> None:
    with FaultyServer() as server, Ledger(tmp_path / "l.db") as ledger:
        endpoint = Endpoint(config_for(server), ledger)

        async def notebook_cell() -> list[str]:
            return texts(endpoint.complete(requests_for(2)))

        assert len(asyncio.run(notebook_cell())) == 2
