from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.inbox.documents import read_transcript
from pipelines.inbox.readers import READERS, Format
from pipelines.inbox.readers.text import Block, Extract, UnreadableError, read_html, read_markdown, read_plain
from tests.pipelines.inbox.files import PAGES, pdf, word_file

MARKDOWN = """\
---
title: Refund rules
effective: 2026-11-01
supersedes: [old.md]
layout: page
---
# Refunds

Paid within *ten* [days](https://example.org).
Never in `cash`. <b>Really</b>

Second heading
--------------

1. First
2. Second
   - nested &amp; deep

| Country | Days |
|---------|------|
| Norway  | ten  |

```python
x = 1
```

> Quoted.

<div><p>From HTML</p></div>
"""

HTML = b"""<!doctype html><html><head><meta charset="utf-8"><title>Refund  rules</title><style>p{}</style></head>
<body><nav>Home</nav><script>alert(1)</script><h1>Refunds</h1><p>Paid within <b>ten</b>
days<!-- secret -->.<br>Never <span>in cash</span>.</p><div>Loose <p>inner</p> tail</div>
<ul><li>First</li><li><p>Second</p></li></ul><table><caption>Days</caption><tr><th>Country</th><th>Days</th></tr>
<tr><td>Norway</td><td>ten<br>or so</td></tr></table><pre>a  b
 c</pre><p hidden>Not seen</p><h2>End</h2><img src="x" alt="A crane"><footer>Legal</footer></body></html>"""


def test_plain_text_has_paragraphs_and_must_be_unicode() -> None:
    assert read_plain(b"\xef\xbb\xbfOne\r\nline.\r\n \t\r\n\r\nTwo.\r\n") == Extract(
        (Block("One\nline."), Block("Two."))
    )
    assert read_plain("Zwölf.".encode("utf-16")).blocks == (Block("Zwölf."),)

    with pytest.raises(UnreadableError, match=r"not UTF-8: line 2 has the byte 0xf6"):
        read_plain(b"eins\nzw\xf6lf")


def test_markdown_is_read_as_text_with_headings() -> None:
    assert read_markdown(MARKDOWN.encode()) == Extract(
        (
            Block("Refunds", 1),
            Block("Paid within ten days.\nNever in cash. Really"),
            Block("Second heading", 2),
            Block("1. First"),
            Block("2. Second"),
            Block("- nested & deep"),
            Block("Country | Days\nNorway | ten"),
            Block("x = 1"),
            Block("Quoted."),
            Block("From HTML"),
        ),
        title="Refund rules",
        fields={"effective": "2026-11-01", "supersedes": ["old.md"]},
    )


def test_tags_in_markdown_prose_swallow_no_text() -> None:
    found = read_markdown(b"Use `<p>` or <select> here.\n\n<div>\n\n3. three\n4. four\n").blocks
    assert [block.text for block in found] == ["Use <p> or here.", "3. three", "4. four"]


def test_thematic_break_is_no_front_matter_and_broken_front_matter_is_refused() -> None:
    assert read_markdown(b"---\nText.\n\n---\n").blocks[0] == Block("Text.")
    with pytest.raises(UnreadableError, match="front matter is not YAML"):
        read_markdown(b"---\ntitle: [a\n---\nText.")


def test_html_is_read_as_visible_text() -> None:
    assert read_html(HTML) == Extract(
        (
            Block("Refunds", 1),
            Block("Paid within ten days.\nNever in cash."),
            Block("Loose"),
            Block("inner"),
            Block("tail"),
            Block("- First"),
            Block("- Second"),
            Block("Days\nCountry | Days\nNorway | ten or so"),
            Block("a  b\n c"),
            Block("End", 2),
            Block("A crane"),
        ),
        title="Refund rules",
    )


def test_html_main_element_and_declared_encoding() -> None:
    page = b"<body><div>Menu</div><main><h2>Heading</h2>Text</main></body>"
    assert read_html(page).blocks == (Block("Heading", 2), Block("Text"))
    assert read_html('<meta charset="windows-1252"><p>Zwölf'.encode("cp1252")).blocks == (Block("Zwölf"),)


def test_html_nested_too_deeply_is_refused() -> None:
    assert read_html(b"<div>" * 100 + b"deep").blocks == (Block("deep"),)
    with pytest.raises(UnreadableError, match="nested too deeply"):
        read_html(b"<div>" * 5_000 + b"deep")


def blocks_or_none(kind: Format, content: bytes) -> tuple[Block, ...] | None:
    try:
        return READERS[kind](content).blocks
    except UnreadableError:
        return None


@pytest.mark.parametrize(("kind", "whole"), [("pdf", pdf(PAGES)), ("docx", word_file())], ids=["pdf", "docx"])
@settings(deadline=None, max_examples=40)
@given(cut=st.integers(0, 2000), noise=st.binary(max_size=40))
def test_damaged_file_is_refused_or_read_and_nothing_else(kind: Format, whole: bytes, cut: int, noise: bytes) -> None:
    place = cut % len(whole)
    blocks = blocks_or_none(kind, whole[:place] + noise + whole[place + len(noise) + 1 :])
    assert blocks is None or all(block.text.strip() for block in blocks)


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=300))
def test_any_bytes_are_refused_or_read(content: bytes) -> None:
    for kind in READERS:
        blocks = blocks_or_none(kind, content)
        assert blocks is None or all(block.text == block.text.strip() != "" for block in blocks)


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
