from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.inbox.readers import READERS, Format
from pipelines.inbox.readers.office import read_pdf, read_word
from pipelines.inbox.readers.text import Block, Extract, UnreadableError
from tests.pipelines.inbox.files import changed_pdf, pdf, word_file

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
