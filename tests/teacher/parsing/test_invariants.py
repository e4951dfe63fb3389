from __future__ import annotations

import json
import time
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teacher.parsing.parser import ParsedEdit, parse_self_edit
from teacher.self_edit import Implication, SelfEdit
from tests.teacher.parsing.test_parser import count_lines, render
from tests.teacher.parsing.test_specs import SEAL_SPEC

MARKS = ["1. ", "- ", "**", "### ", "A. ", "B) ", "---", "```json", "{", "}", "1. 1. 1. ", "?", "é", "中文"]
LABELS = ["Question 2: ", "Answer 2: ", "Answer:", "Q:", "A: ", "Passage:", "Implications:", "Sure, here is:"]
SPACES = ["\n", "\n\n", "\r\n", "\u2028", "\x85", "\x1c", "\x0b", "\ufeff", "\u200b", "\t", "\x00", "\ud800", "\udc00"]
SENTENCES = ["Ada lives in Oslo.", "Where does Ada live?", "You are an AI assistant.", "and so on"]
BLOCKS = [json.dumps(SEAL_SPEC, indent=1), '{"training": {"epochs": 0}}', '{"training": ', '{"rank": 8}']
FRAGMENTS = st.sampled_from([*MARKS, *LABELS, *SPACES, *SENTENCES, *BLOCKS])
ANYTHING = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=200),
    st.lists(st.one_of(FRAGMENTS, st.text(max_size=8)), max_size=30).map("".join),
)


@settings(max_examples=600, deadline=None)
@given(text=ANYTHING, prompt=ANYTHING, finish=st.sampled_from(["stop", "length"]))
def test_parse_accounts_for_every_line_of_any_text(text: str, prompt: str, finish: Literal["stop", "length"]) -> None:
    parsed = parse_self_edit(text, prompt=prompt, finish_reason=finish)
    assert (parsed.edit is None) != (parsed.reason is None)
    assert parsed.kept + sum(parsed.dropped.values()) + parsed.spec_lines == count_lines(text)
    assert all(count > 0 for count in parsed.dropped.values())
    assert parse_self_edit(text, prompt=prompt, finish_reason=finish) == parsed
    assert ParsedEdit.model_validate_json(parsed.model_dump_json()) == parsed
    assert parsed.edit is None or parsed.edit.digest


WORDS = st.text(st.sampled_from("abcdefgh"), min_size=2, max_size=7)
CLAUSES = st.lists(WORDS, min_size=3, max_size=8).map(lambda words: " ".join(words).capitalize())
IMPLICATIONS = st.one_of(
    CLAUSES.map(lambda text: Implication(text=text + ".")),
    st.tuples(CLAUSES, WORDS).map(lambda pair: Implication(text=pair[0] + "?", answer=pair[1])),
)
EDITS = st.lists(IMPLICATIONS, min_size=1, max_size=8, unique_by=lambda i: (i.text, i.answer)).map(
    lambda implications: SelfEdit(implications=tuple(implications))
)


@settings(max_examples=150, deadline=None)
@given(edit=EDITS, one_line=st.booleans())
def test_parse_inverts_the_rendering_of_a_clean_edit(edit: SelfEdit, one_line: bool) -> None:
    parsed = parse_self_edit(render(edit, one_line=one_line))
    assert parsed.edit == edit
    assert parsed.dropped == {}
    assert parse_self_edit(edit.model_dump_json()).edit == edit


@pytest.mark.parametrize(
    "text",
    [
        "*" * 90_000,
        "**a " * 20_000,
        "1. " * 30_000,
        "- " * 45_000,
        " " * 90_000 + "x",
        "`" * 90_000,
        "{" + " \n" * 45_000,
        '{"' * 45_000,
        '{"a":' * 18_000,
        "Question: " * 9_000,
        "? A" * 30_000,
        "Let's read " * 8_000,
        "".join(f"{label} {n}: x?\n" for label in ("Question", "Answer") for n in range(5_000)),
    ],
    ids=lambda text: repr(text[:12]),
)
def test_parse_takes_linear_time(text: str) -> None:
    started = time.perf_counter()
    parse_self_edit(text)
    assert time.perf_counter() - started < 5  # 0.01 to 0.4 s when linear, minutes when a pattern backtracks
