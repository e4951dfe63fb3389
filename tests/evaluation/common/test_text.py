from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.common.text import clean_text, decode_text

UNSEEN = "\x1b[31m\x1b]0;t\x07\xad\u200b\u2060\ufeff\u202e\u2066\x00\x85\u2000\u2028\ufb01\U000e0041\u0301\r"


@given(st.lists(st.one_of(st.text(max_size=20), st.text(alphabet=UNSEEN, max_size=8)), max_size=6).map("".join))
def test_clean_text_holds_nothing_unseen_and_cleaning_again_changes_nothing(text: str) -> None:
    cleaned = clean_text(text)
    assert clean_text(cleaned) == cleaned == unicodedata.normalize("NFC", cleaned)
    categories = {unicodedata.category(each) for each in cleaned if each not in "\n\t\u200c\u200d"}
    assert not categories & {"Cc", "Cs", "Zl", "Zp"}
    assert not set(cleaned) & set("\xad\xa0\u200b\u2060\ufeff\u202e\u2066\ufb01\U000e0041")


@given(st.text(alphabet=st.characters(min_codepoint=32, exclude_categories=["C", "Z"]), max_size=30))
def test_words_are_only_composed_and_ligatures_spelled(text: str) -> None:
    plain = "".join(each for each in text if not 0xFB00 <= ord(each) <= 0xFB06)
    assert clean_text(plain) == unicodedata.normalize("NFC", plain)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_text_is_decoded_in_each_unicode_encoding(encoding: str) -> None:
    assert decode_text("The pier, naïve.\n".encode(encoding)) == "The pier, naïve.\n"


@pytest.mark.parametrize("content", [b"ok\nzw\xf6lf", bytes(99), "日本".encode("shift-jis"), b"\xff\xfea"])
def test_other_bytes_are_refused_and_not_guessed(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"^is not (UTF-8: line [12] has the byte 0x|UTF-16: line 1|text)"):
        decode_text(content)
