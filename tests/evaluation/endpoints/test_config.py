from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from evaluation.endpoints.config import EndpointConfig, check_key
from evaluation.endpoints.records import EndpointRequest, most_tokens
from evaluation.errors import ConfigError

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
        ({"budget_cost": 1.0}, "budget_cost: got 1.0 USD without prices"),
        ({"price_input": 1.0}, "both or none"),
        ({"backoff_first": 5.0, "backoff_longest": 1.0}, "backoff_longest: got 1.0, allowed is at least"),
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
    monkeypatch.setenv("GENERATOR_KEY", "")
    with pytest.raises(ConfigError, match="is empty"):
        check_key(config(key_env="GENERATOR_KEY"))
    monkeypatch.setenv("GENERATOR_KEY", "other\n")
    with pytest.raises(ConfigError, match="holds white space"):
        check_key(config(key_env="GENERATOR_KEY"))
    monkeypatch.setenv("GENERATOR_KEY", "other")
    assert check_key(config(key_env="GENERATOR_KEY")) == "other"


def test_cost_is_per_million_tokens_and_unknown_without_prices() -> None:
    assert config().cost(1000, 1000) is None
    assert config(price_input=3.0, price_output=15.0).cost(1_000_000, 100_000) == pytest.approx(4.5)


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
        {"schema": {"type": "object"}},
        {"system": "s"},
    ]
    asked = [EndpointRequest(**(fields | change)).digest(config()) for change in changes]
    elsewhere: list[dict[str, Any]] = [{"base_url": "http://127.0.0.1:8001/v1"}, {"model": "n"}, {"api": "chat"}]
    asked += [EndpointRequest(**fields).digest(config(**change)) for change in elsewhere]
    assert len({base, *asked}) == len(asked) + 1
    same: list[dict[str, Any]] = [{"timeout": 3.0}, {"budget_tokens": 7}, {"base_url": "http://127.0.0.1:8000/v1/"}]
    assert {EndpointRequest(**fields).digest(config(**change)) for change in same} == {base}


def test_most_tokens_counts_bytes() -> None:
    assert most_tokens("aé字\ud800") == 1 + 2 + 3 + 3
    with pytest.raises(ValueError, match="max_tokens: got 0"):
        EndpointRequest("p", 0)
