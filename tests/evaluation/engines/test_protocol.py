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
    written = choice["text"] if reader is READER else choice["message"]["content"]
    assert answer.outcome.text == written
    assert answer.outcome.finish_reason == choice["finish_reason"]
    assert written or json.loads(text)["usage"]["completion_tokens"] > 0


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
        ({"text": "a"}, 1, "malformed", True),
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
    assert READER.body(json.dumps(body)).outcome == EndpointReply("", "stop", 1, 1, None, "")
