"""From a chat request to vLLM's, and from vLLM's reply to the client's, without an engine."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.exceptions import HTTPException

from evaluation.exact_match import AnswerFormat
from pipelines.ask.answers import AskOptions, Composer, Vocabulary
from pipelines.serve.requests import chat_events, chat_reply, completion_request, question_of, source_headers
from student.memory import ExternalMemory, MemoryEntry

MEMORY = ExternalMemory([MemoryEntry(id="straße 1", text="Zyx lives in Oldmere.")])
USER = {"role": "user", "content": " Who? "}


@pytest.fixture(scope="module")
def composer() -> Composer:
    options = AskOptions(answer_format=AnswerFormat(), max_new_tokens=8, least_score=0.1)
    return Composer(Vocabulary.open("micro-student"), MEMORY, options, has_adapter=True, version=2)


@pytest.mark.parametrize(
    "messages",
    [
        [USER],
        [{"role": "user", "content": "before"}, {"role": "assistant", "content": "yes"}, USER],
        [USER, {"role": "assistant", "content": "yes"}],
        [{"role": "user", "content": [{"type": "text", "text": "Who?"}]}],
    ],
)
def test_last_message_of_the_user_is_the_question(messages: list[Any]) -> None:
    assert question_of({"messages": messages}) == "Who?"


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"messages": "Who?"},
        {"messages": [{"role": "system", "content": "Who?"}]},
        {"messages": [{"role": "user", "content": " "}]},
        {"messages": [USER, {"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        {"messages": [USER], "tools": [{}]},
        {"messages": [USER], "n": 2},
    ],
)
def test_other_chats_are_refused(content: dict[str, Any]) -> None:
    with pytest.raises(HTTPException) as refused:
        question_of(content)
    assert refused.value.status_code == 400


def test_prompt_is_that_of_ask_in_tokens(composer: Composer) -> None:
    prompt = composer.prompt_for("Where does Zyx live?")
    body = completion_request(composer, prompt, "base", {"max_tokens": 4, "temperature": 1.5})
    tokenizer, _, ends = composer.vocabulary
    text = "Passage: Zyx lives in Oldmere.\nQuestion: Where does Zyx live?\nAnswer:"
    assert tokenizer.decode(body["prompt"], skip_special_tokens=True) == tokenizer.decode(
        tokenizer(text, add_special_tokens=False)["input_ids"]
    )
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("base", 4, 0.0)
    assert body["stop_token_ids"] == sorted(ends)
    assert completion_request(composer, prompt, "base", {"max_completion_tokens": 400})["max_tokens"] == 8
    for most in (-1, "many"):
        with pytest.raises(HTTPException, match="max_tokens"):
            completion_request(composer, prompt, "base", {"max_tokens": most})


def test_reply_and_stream_name_version_and_source(composer: Composer) -> None:
    tokens = composer.vocabulary.tokenizer(" sailor", add_special_tokens=False)["input_ids"]
    answer = composer.read(composer.prompt_for("Where does Zyx live?"), tokens, [0.0] * len(tokens))
    written = {"id": "cmpl-1", "created": 5, "usage": {"total_tokens": 9}}
    for text, reason, shown in ((" sailor\nQuestion", "length", "stop"), (" sailor", "length", "length")):
        choices = [{"text": text, "finish_reason": reason}]
        reply = chat_reply(answer, "champion", {**written, "choices": choices})
        (choice,) = reply["choices"]
        assert (choice["message"], choice["finish_reason"]) == ({"role": "assistant", "content": "sailor"}, shown)
        assert (reply["object"], reply["model"], reply["usage"]) == ("chat.completion", "champion", written["usage"])
        assert (reply["preceptor"]["version"], reply["preceptor"]["by"]) == (2, "memory")
        assert reply["preceptor"]["sources"][0]["id"] == "straße 1"
    *events, done = list(chat_events(reply))
    first, last = (json.loads(event.removeprefix("data: ")) for event in events)
    assert (first["choices"][0]["delta"], done) == (choice["message"], "data: [DONE]\n\n")
    assert (last["preceptor"], last["object"]) == (reply["preceptor"], "chat.completion.chunk")
    headers = source_headers(answer)
    assert (headers["x-preceptor-version"], headers["x-preceptor-by"]) == ("2", "memory")
    assert headers["x-preceptor-sources"].isascii()
