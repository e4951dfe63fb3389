from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.inbox.intake import Intake
from pipelines.inbox.readers.text import UnreadableError
from pipelines.inbox.transcripts import read_transcript

CALLS = [
    {"id": "c1", "type": "function", "function": {"name": "search", "arguments": '{"query": "refund", "n": 3}'}},
    {"id": "c2", "type": "function", "function": {"name": "note", "arguments": "x" * 300}},
]
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "When is a refund\npaid?"}, {"type": "image_url"}]},
    {"role": "assistant", "content": None, "tool_calls": CALLS},
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


def test_legacy_function_calls_are_read() -> None:
    call = {"role": "assistant", "function_call": {"name": "now", "arguments": ""}}
    found = read_transcript([call, {"role": "function", "name": "now", "content": "noon"}])
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
def test_invalid_transcript_is_refused_with_its_path(messages: Any, reason: str) -> None:
    with pytest.raises(UnreadableError, match=reason):
        read_transcript(messages)


QUESTION = {"role": "user", "content": "Where is the spare key kept?"}
TOLD = ["User: Where is the spare key kept?", "Assistant calls find({})", "Tool find: Hook 7, boathouse"]
TOLD += ["Assistant: On hook seven in the boathouse."]
FIELD_CASES = {
    "tr_anthropic.json": ([each.format('item="key"') for each in TOLD], 1),
    "tr_responses_items.json": ([each.format("") for each in TOLD], 1),
    "tr_messages_responses.json": ([each.format("") for each in TOLD], 0),
    "tr_think.json": (["User: Where is the key?", "Assistant: On hook seven."], 2),
}


@pytest.mark.parametrize("name", FIELD_CASES)
def test_field_cases_are_read(name: str, shared_data: Callable[..., Path], tmp_path: Path) -> None:
    turns, notes = FIELD_CASES[name]
    for copy in (tmp_path / name, tmp_path / f"{name}l"):
        copy.write_bytes(shared_data("..", "cases", name).read_bytes())
        intake = Intake().read(copy).check()
        assert [document.text for document in intake.documents] == ["\n\n".join(turns)]
        assert len(intake.notes) == (notes > 0)
        assert all(note.startswith(str(copy)) and f"{notes} thought" in note for note in intake.notes)


def test_a_message_on_each_line_is_one_transcript(tmp_path: Path) -> None:
    turns = [QUESTION, {"role": "assistant", "content": "Here."}]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, turns)))
    (document,) = Intake().read(tmp_path / "log.jsonl").check().documents
    assert document.text == "User: Where is the spare key kept?\n\nAssistant: Here."


def test_embedded_files_are_left_out(shared_data: Callable[..., Path], tmp_path: Path) -> None:
    found = read_transcript(json.loads(shared_data("..", "cases", "tr_b64text.json").read_bytes())["messages"])
    assert "A" * 20 not in "".join(block.text for block in found.blocks)
    assert found.blocks[0].text.startswith("User: Look: ![x]([image/png]")
    assert len(found.notes) == 1


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([{"type": "tool_result", "tool_use_id": "t", "content": "seven"}], ["Tool: seven"]),
        ([{"type": "server_tool_use", "id": "t", "name": "look", "input": {}}], ["Assistant calls look()"]),
        ([{"type": "text", "text": "a"}, {"type": "tool_use", "id": "t", "name": "b", "input": {"c": 1}}], ["User: a"]),
        ([{"type": "image", "source": {"type": "base64", "data": "A" * 900}}], ["User: [image]"]),
        (
            [{"type": "tool_result", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}],
            ["Tool: a\n[image]"],
        ),
    ],
)
def test_content_blocks_are_read(messages: list[dict[str, Any]], said: list[str]) -> None:
    found = read_transcript([{"role": "user", "content": messages}])
    assert [block.text for block in found.blocks][: len(said)] == said


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"type": "mcp_call", "id": "m", "name": "look", "arguments": "{}", "output": "seven"}, ["Tool look: seven"]),
        ({"type": "custom_tool_call_output", "call_id": "x", "output": {"n": 7}}, ['Tool: {"n": 7}']),
        ({"type": "function_call_output", "output": [{"type": "input_text", "text": "seven"}]}, ["Tool: seven"]),
        (
            {"type": "web_search_call", "id": "w", "action": {"query": "key"}},
            ['Assistant calls web_search(query="key")'],
        ),
        ({"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}, []),
    ],
)
def test_response_items_are_read(item: dict[str, Any], said: list[str]) -> None:
    assert [block.text for block in read_transcript([QUESTION, item]).blocks][1:][-1:] == said


def test_items_of_an_unknown_type_are_refused_by_its_name() -> None:
    with pytest.raises(UnreadableError, match=r"messages\[1\].*'hologram'"):
        read_transcript([QUESTION, {"type": "hologram", "data": "x"}])
