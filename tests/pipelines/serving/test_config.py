"""Settings, keys and the command lines of what is started."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from evaluation.errors import ConfigError
from pipelines.serving.child import vllm_command, vllm_environment
from pipelines.serving.config import ServeConfig, is_loopback, read_api_key
from pipelines.serving.options import ServingOptions


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    assert is_loopback(host)
    assert read_api_key(host, None) is None


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.7", "example.org", "localhost.example.org", "127.0.0.1.nip.io"]
)
def test_any_other_address_needs_a_key(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(ConfigError, match="--api-key-env"):
        read_api_key(host, None)


@pytest.mark.parametrize("value", ["", "two words", "tab\there", "schlüssel", "line\n"])
def test_unfit_key_is_refused_and_never_shown(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SOME_KEY", value)
    with pytest.raises(ConfigError, match="SOME_KEY") as caught:
        read_api_key("127.0.0.1", "SOME_KEY")
    assert not value or value not in str(caught.value)


def test_missing_variable_is_refused_and_a_good_key_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(ConfigError, match="not set"):
        read_api_key("0.0.0.0", "SOME_KEY")
    monkeypatch.setenv("SOME_KEY", "k3y")
    assert read_api_key("0.0.0.0", "SOME_KEY") == "k3y"


def test_tolerance_follows_from_rounding_unless_it_is_given() -> None:
    def tolerance(**changes: object) -> float:
        return ServeConfig.model_validate({"work_dir": Path("w"), **changes}).tolerance

    assert tolerance() == 1e-3
    assert tolerance(dtype="bfloat16") == tolerance(device="cuda") == 0.25
    assert tolerance(dtype="bfloat16", options={"tolerance": 0.5}) == 0.5


def test_out_of_range_and_unknown_settings_are_refused() -> None:
    for wrong in ({"poll_seconds": 0}, {"max_rank": 513}, {"tolerance": -1}, {"nothing": 1}):
        with pytest.raises(ValidationError):
            ServingOptions.model_validate(wrong)


def test_vllm_is_told_the_rank_it_needs_the_layers_and_loopback() -> None:
    config = ServeConfig(work_dir=Path("w"), host="0.0.0.0")
    command = vllm_command(config, "micro-student", 9, ["k_proj", "q_proj"], 1234)
    line = " ".join(command)
    assert "--max-lora-rank 16 --lora-target-modules k_proj q_proj" in line
    assert "--host 127.0.0.1 --port 1234" in line
    assert "--enforce-eager" in line
    assert "0.0.0.0" not in line
    assert "gpu" not in line


def test_keys_travel_by_environment_and_the_clients_key_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIENTS_KEY", "secret")
    monkeypatch.setenv("VLLM_API_KEY", "the user's")
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "False")
    # An engine that was opened in this process leaves it set.
    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING", raising=False)
    environment = vllm_environment("own", device="cpu", hidden="CLIENTS_KEY")
    assert environment["VLLM_API_KEY"] == "own"
    assert environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"
    assert "secret" not in environment.values()
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in vllm_environment("own", device="cuda", hidden=None)
