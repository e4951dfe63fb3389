from __future__ import annotations

from typing import Any

import pytest

from pipelines.inbox.blocks import UnreadableError
from pipelines.inbox.readers.transcripts import read_transcript

MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "When is a refund\npaid?"}, {"type": "image_url"}]},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "c1",
                "type": "function",
                "function": {"name": "search", "arguments": '{"query": "refund", "n": 3}'},
            },
            {"id": "c2", "type": "function", "function": {"name": "note", "arguments": "x" * 300}},
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "Within ten days."},
    {"role": "assistant", "content": "Within ten days.", "tool_calls": None},
]


def test_transcript_becomes_readable_text() -> None:
    found = read_transcript(MESSAGES)
    assert [block.text for block in found.blocks] == [
        "User: When is a refund\npaid?\n[image]",
        'Assistant calls search(query="refund", n=3)',
        f"Assistant calls note({'x' * 199}…)",
        "Tool search: Within ten days.",
        "Assistant: Within ten days.",
    ]
    assert found.title == "When is a refund paid? [image]"


def test_system_prompts_are_kept_on_request() -> None:
    assert read_transcript(MESSAGES, with_system=True).blocks[0].text == "System: Be brief."


def test_calls_of_the_older_form_are_read() -> None:
    found = read_transcript(
        [
            {"role": "assistant", "function_call": {"name": "now", "arguments": ""}},
            {"role": "function", "name": "now", "content": "noon"},
        ]
    )
    assert [block.text for block in found.blocks] == ["Assistant calls now()", "Tool now: noon"]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "at least one message"),
        ("hello", "must be a list"),
        ([{"role": "user", "content": "a"}, {"role": "robot"}], r"messages\[1\] must be an object with a role"),
        (["hello"], r"messages\[0\] must be"),
        ([{"role": "user", "content": 3}], r"messages\[0\]\.content must be"),
        ([{"role": "user", "content": ["a"]}], r"messages\[0\]\.content\[0\] must be an object with a type"),
        ([{"role": "assistant", "tool_calls": {"a": 1}}], "tool_calls must be a list"),
        ([{"role": "assistant", "tool_calls": [{"function": {}}]}], "functions with a name"),
    ],
)
def test_what_is_no_transcript_is_refused_with_the_place(messages: Any, reason: str) -> None:
    with pytest.raises(UnreadableError, match=reason):
        read_transcript(messages)
