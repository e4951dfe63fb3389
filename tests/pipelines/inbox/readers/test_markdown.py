from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.inbox.readers.markdown import read_markdown
from pipelines.inbox.readers.text import Block, Extract, UnreadableError

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
| Norway  | `a|b`  |

```python
x = 1
```

> Quoted.

<div><p>From HTML</p></div>
"""


def test_markdown_is_read_as_text_with_headings() -> None:
    assert read_markdown(MARKDOWN.encode()) == Extract(
        (
            Block("Refunds", 1),
            Block("Paid within ten days.\nNever in cash. Really"),
            Block("Second heading", 2),
            Block("1. First\n2. Second\n  - nested & deep"),
            Block("Country | Days\nNorway | a|b"),
            Block("x = 1"),
            Block("Quoted."),
            Block("From HTML"),
        ),
        title="Refund rules",
        fields={"effective": "2026-11-01", "supersedes": ["old.md"]},
    )


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("Use `<p>` or <select> or <s> here.\n\n<div>\n\n3. c\n4. d\n", "Use <p> or or here.\n\n3. c\n4. d"),
        ("It is ~~nine~~ <del>eight</del> ten m<sup>2</sup>.", "It is ten m^2."),
        ("Lifts.[^1]\n\n[^1]: Forty\n[^2]: Tons [here]\n\n[here]: a.md", "Lifts.[^1]\n\n[^1]: Forty\n[^2]: Tons here"),
        ("<details><summary>More</summary>\n\nHidden *part*.\n\n</details>", "More\n\nHidden part."),
        ('<div id="foo"\n*hi*', '<div id="foo" *hi*'),
        ("> " * 60 + "deep", "deep"),
    ],
)
def test_every_passage_is_read(text: str, read: str) -> None:
    assert "\n\n".join(block.text for block in read_markdown(text.encode()).blocks) == read


def test_recorded_files_lose_nothing(shared_data: Callable[..., Path]) -> None:
    cases = shared_data("..", "cases")
    whole = "\n".join(block.text for block in read_markdown((cases / "md_footnote.md").read_bytes()).blocks)
    kept = ("tons.[^1]", "[^1]: Measured", "maker's plate says 1964", "2 | a|b", "- [x] oil", "$x^2$", "Hidden part")
    assert [each for each in kept if each not in whole] == []
    assert "[^a]: word" in [block.text for block in read_markdown((cases / "md_linkdef.md").read_bytes()).blocks]


@pytest.mark.parametrize(
    ("name", "title", "fields", "notes", "first"),
    [
        ("front_colon", "Harbour: the north pier", {}, 0, "The north pier was painted grey in February."),
        ("front_date", "2026-02-03", {"effective": "2026-02-03"}, 0, "The pier guide names nine berths."),
        ("front_route", "Pier guide", {"source": "https://example.org/pier"}, 1, "The pier guide names nine berths."),
        ("hr_first", "", {}, 0, "Minutes of the harbour board: the crane is out of use until May."),
    ],
)
def test_recorded_front_matter(
    shared_data: Callable[..., Path], name: str, title: str, fields: dict[str, Any], notes: int, first: str
) -> None:
    found = read_markdown(shared_data("..", "cases", f"md_{name}.md").read_bytes())
    assert (found.title, found.fields, len(found.notes), found.blocks[0].text) == (title, fields, notes, first)


@pytest.mark.parametrize(
    ("front", "fields", "notes"),
    [
        ("effective: 2026-02-30", {}, 1),  # no such date
        ("effective: 2026-02-03 10:00", {"effective": "2026-02-03"}, 0),
        ("supersedes: a.md\nreading time: 3\ntags: [x]", {"supersedes": ["a.md"]}, 0),
        ("supersedes: {a: 1}\nroute: disk\nsource: [a, b]", {}, 1),
        ("route: memory\nurl: http://x: y\n", {"route": "memory"}, 0),
        ("mood: grey\nlongitude: 3", {}, 0),
    ],
)
def test_keys_in_the_form_of_other_programs_are_left_alone(front: str, fields: dict[str, Any], notes: int) -> None:
    found = read_markdown(f"---\n{front}\n---\nText.".encode())
    assert (found.fields, len(found.notes), found.blocks) == (fields, notes, (Block("Text."),))


@pytest.mark.parametrize("front", ["Text.", "Note: the crane rests", "title: [a", "- a\n- b", "[[[[" * 300, "7: x"])
def test_passage_between_rules_that_is_no_mapping_is_text(front: str) -> None:
    found = read_markdown(f"---\n{front}\n\n---\nMore.".encode())
    words = "".join("".join(block.text.split()) for block in found.blocks)
    assert words.endswith("More.")
    assert front.split()[-1] in words


def test_aliases_in_front_matter_are_refused() -> None:
    with pytest.raises(UnreadableError, match="aliases"):
        read_markdown(b"---\na: &a [x, x]\ntitle: [*a, *a]\n---\nText.")
