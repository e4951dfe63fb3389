from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.inbox.readers.text import Block, Extract, UnreadableError, read_plain


def test_plain_text_has_paragraphs_and_must_be_unicode() -> None:
    content = b"\xef\xbb\xbfOne\r\nline.\r\n \t\r\n\r\nTwo.\r\n"
    assert read_plain(content) == Extract((Block("One\nline."), Block("Two.")))
    with pytest.raises(UnreadableError, match=r"not UTF-8: line 2 has the byte 0xf6"):
        read_plain(b"eins\nzw\xf6lf")


def test_recorded_texts_are_decoded_and_what_nobody_sees_is_no_text(shared_data: Callable[..., Path]) -> None:
    cases = shared_data("..", "cases")
    assert read_plain((cases / "txt_utf16nobom.txt").read_bytes()).blocks == (Block("The pier has nine berths."),)
    assert read_plain((cases / "txt_zero.txt").read_bytes()).blocks == ()
