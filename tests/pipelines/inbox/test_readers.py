from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.inbox.readers import READERS, Format
from pipelines.inbox.readers.office import read_pdf, read_word
from pipelines.inbox.readers.text import Block, Extract, UnreadableError, read_html, read_markdown, read_plain
from tests.pipelines.inbox.files import changed_pdf, pdf, word_file

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


LONG_LINE = "Refunds are paid within ten days after the parcel has come back"
PAGES = [
    ["Chapter one", LONG_LINE, "to us.", "", "Cards come first (always)."],
    ["Chapter two", "Gift cards are not refunded."],
]


def test_pdf_is_read_in_paragraphs_with_headings_from_its_outline() -> None:
    content = changed_pdf(pdf(PAGES), title="Refund rules", outline={"Chapter one": 0, "Chapter two": 1, "Nowhere": 1})
    assert read_pdf(content) == Extract(
        (
            Block("Chapter one", 1),
            Block("Refunds are paid within ten days after the parcel has come back to us."),
            Block("Cards come first (always)."),
            Block("Chapter two", 1),
            Block("Gift cards are not refunded."),
        ),
        title="Refund rules",
    )


def test_pages_without_text_are_noted_and_scans_refused() -> None:
    found = read_pdf(pdf([["Text."], [], ["More."], []]))
    assert [block.text for block in found.blocks] == ["Text.", "More."]
    assert found.notes == ("no text on 2 of 4 pages (2, 4): blank or scanned",)

    with pytest.raises(UnreadableError, match="has 2 pages and no text: it is a scan"):
        read_pdf(pdf([[], []]))


def test_pdf_with_a_password_is_refused_and_one_that_opens_without_is_read() -> None:
    with pytest.raises(UnreadableError, match="encrypted and needs a password"):
        read_pdf(changed_pdf(pdf(PAGES), user_password="secret"))
    assert read_pdf(changed_pdf(pdf(PAGES), user_password="")).blocks[-1].text == "Gift cards are not refunded."


def test_word_file_is_read_in_order() -> None:
    assert read_word(word_file()).blocks == (
        Block("Refund handbook", 1),
        Block("Deadlines", 1),
        Block("Refunds are paid within ten days."),
        Block("- Cards first"),
        Block("Country | Days | Fee\nNorway | ten"),
        Block("Exceptions", 2),
        Block("Gift cards are not refunded."),
    )


def test_word_content_controls_and_insertions_are_read_and_deletions_are_not(tmp_path: Path) -> None:
    from docx import Document
    from docx.oxml import parse_xml
    from docx.oxml.ns import nsdecls

    def paragraph(text: str) -> str:
        return f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>"

    made = Document()
    body = made.element.body
    for inner in (
        f"<w:sdt {nsdecls('w')}><w:sdtContent>{paragraph('In a control.')}</w:sdtContent></w:sdt>",
        f"<w:sdt {nsdecls('w')}><w:sdtPr><w:docPartObj><w:docPartGallery w:val='Table of Contents'/></w:docPartObj>"
        f"</w:sdtPr><w:sdtContent>{paragraph('Contents 1')}</w:sdtContent></w:sdt>",
        f"<w:p {nsdecls('w')}><w:r><w:t xml:space='preserve'>Now </w:t></w:r><w:ins><w:r><w:t>ten</w:t></w:r></w:ins>"
        "<w:del><w:r><w:delText>nine</w:delText></w:r></w:del></w:p>",
    ):
        body.insert(len(body) - 1, parse_xml(inner))
    made.save(str(tmp_path / "a.docx"))
    assert read_word((tmp_path / "a.docx").read_bytes()).blocks == (Block("In a control."), Block("Now ten"))


def test_legacy_encrypted_or_too_large_word_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnreadableError, match=r"legacy \.doc file or encrypted"):
        read_word(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(512))

    monkeypatch.setattr("pipelines.inbox.readers.office.MAX_UNPACKED_BYTES", 2**20)
    with zipfile.ZipFile(tmp_path / "a.docx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", bytes(3 * 2**20))
    with pytest.raises(UnreadableError, match="unpacks to 3 MiB, allowed are 1"):
        read_word((tmp_path / "a.docx").read_bytes())


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
