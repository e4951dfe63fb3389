from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.engines.endpoint import EndpointConfig
from evaluation.engines.ledger import EndpointFailure, EndpointReply
from evaluation.engines.protocol import AnswerReader

CONFIG = EndpointConfig(base_url="http://127.0.0.1:1/v1", model="m")
CHAT = CONFIG.model_copy(update={"api": "chat"})
READER, CHAT_READER = AnswerReader(CONFIG, None), AnswerReader(CHAT, None)
GOOD = {"choices": [{"text": "a", "finish_reason": "stop"}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_choice = st.fixed_dictionaries(
    {},
    optional={
        "text": st.text(max_size=5) | _json,
        "message": st.fixed_dictionaries({}, optional={"content": st.text(max_size=5) | _json}) | _json,
        "finish_reason": st.sampled_from(["stop", "length", "content_filter", "abort", None]) | _json,
    },
)
_body = st.fixed_dictionaries(
    {},
    optional={
        "choices": st.lists(_choice | _json, max_size=2) | _json,
        "usage": st.fixed_dictionaries({}, optional={"prompt_tokens": _json, "completion_tokens": _json}) | _json,
        "model": st.text(max_size=5) | _json,
    },
)


@given(st.sampled_from([READER, CHAT_READER]), (_body | _json).map(json.dumps) | st.text(max_size=30))
def test_any_body_gives_a_reply_that_was_written_or_a_failure(reader: AnswerReader, text: str) -> None:
    answer = reader.body(text)
    assert not answer.stop
    assert not answer.free
    if isinstance(answer.outcome, EndpointFailure):
        assert answer.outcome.detail
        return
    choice = json.loads(text)["choices"][0]
    message = choice.get("message") or {}
    written = [each for each in (choice.get("text"), message.get("content")) if each is not None]
    assert answer.outcome.text in written or any(isinstance(each, list) for each in written)
    assert answer.outcome.finish_reason in ("stop", "length")
    assert answer.outcome.text or json.loads(text)["usage"]["completion_tokens"] > 0


@given(st.integers(0, len(json.dumps(GOOD)) - 1))
def test_no_truncated_body_is_a_reply(length: int) -> None:
    outcome = READER.body(json.dumps(GOOD)[:length]).outcome
    assert isinstance(outcome, EndpointFailure)
    assert outcome.reason == "malformed"


@pytest.mark.parametrize(
    ("choice", "used", "reason", "transient"),
    [
        ({"text": "a", "finish_reason": "content_filter"}, 1, "content_filtered", False),
        ({"text": "", "finish_reason": "length"}, 100, "empty_choice", False),
        ({"text": None, "finish_reason": "stop"}, 3, "empty_choice", False),
        ({"text": "", "finish_reason": "stop"}, 0, "empty_choice", True),
        ({"text": "a", "finish_reason": "abort"}, 1, "malformed", True),
        ({"text": None, "message": {"content": None, "reasoning_content": "hm"}}, 0, "empty_choice", False),
    ],
)
def test_choices_that_are_no_replies(choice: dict[str, Any], used: int, reason: str, transient: bool) -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": used}
    answer = READER.body(json.dumps({"choices": [choice], "usage": usage}))
    assert isinstance(answer.outcome, EndpointFailure)
    assert answer.outcome.reason == reason
    assert answer.transient == transient
    assert answer.usage == (1, used)


def test_model_that_ends_at_once_wrote_an_empty_reply() -> None:
    body = {"choices": [{"text": "", "finish_reason": "stop"}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
    assert READER.body(json.dumps(body)).outcome == EndpointReply("", "stop", 1, 1, "")


@pytest.mark.parametrize(
    ("reason", "used", "how"),
    [
        *((reason, 1, "stop") for reason in ("stop", "eos", "end_turn", "stop_sequence", "STOP", None)),
        *((reason, 1, "length") for reason in ("length", "max_tokens", "MAX_TOKENS", "model_length")),
        *((reason, 5, "length") for reason in (None, "eos", "finished")),  # all that was asked for is used up
        ("stop", 5, "stop"),
    ],
)
def test_ends_of_other_servers_are_ends(reason: str | None, used: int, how: str) -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": used}
    body = {"choices": [{"text": "a", "finish_reason": reason}], "usage": usage}
    outcome = READER.body(json.dumps(body), most=5).outcome
    assert isinstance(outcome, EndpointReply)
    assert (outcome.text, outcome.finish_reason, bool(outcome.note)) == ("a", how, reason == "finished")


GOOD_TEXT = {"message": {"content": "a"}, "finish_reason": "stop"}


@pytest.mark.parametrize(
    "body",
    [
        {"choices": [{"message": {"content": [{"type": "text", "text": "a"}]}, "finish_reason": "stop"}]},
        {"choices": [{"message": {"content": [{"type": "thinking", "thinking": "b"}, {"type": "text", "text": "a"}]}}]},
        {"choices": [{"message": {"content": ["a"]}}]},
        {"choices": [{"message": {"content": "a", "reasoning_content": "b"}, "finish_reason": "stop"}]},
        {"choices": [{"text": "a", "finish_reason": "stop"}]},
        {"choices": [{"message": {"content": "a"}}]},
        {"choices": [{"message": {"content": "a"}, "finish_reason": {"type": "stop"}}]},
        {"choices": [GOOD_TEXT], "usage": []},
        {"choices": [GOOD_TEXT], "usage": {"prompt_tokens": -1, "completion_tokens": "many"}},
        {"choices": [GOOD_TEXT], "model": 7},
        {"choices": [GOOD_TEXT], "usage": {"prompt_tokens": 3.5}},
    ],
)
def test_a_text_that_was_paid_for_is_kept(body: dict[str, Any]) -> None:
    outcome = CHAT_READER.body(json.dumps(body)).outcome
    assert isinstance(outcome, EndpointReply)
    assert outcome.text == "a"
