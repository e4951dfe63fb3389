"""Invariants of all readers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.inbox.readers import READERS, Format
from pipelines.inbox.readers.text import Block, UnreadableError
from tests.pipelines.inbox.files import PAGES, pdf, word_file


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
