from __future__ import annotations

import gzip
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from teacher.parsing.parser import parse_self_edit
from tests.teacher.parsing.test_parser import count_lines, render

SharedData = Callable[..., Path]

FAMILIES = ("base_val", "base_val_prompt-long", "base_val_prompt-rewrite", "base_val_prompt-self-qa", "iter1_val")


@pytest.fixture(scope="module")
def completions(shared_data: SharedData) -> dict[str, list[tuple[str, str]]]:
    """Prompt and text of SEAL's published completions of Qwen2.5-7B, by prompt family."""
    found = {}
    for family in FAMILIES:
        with gzip.open(shared_data("seal", "completions", f"{family}.json.gz"), "rt", encoding="utf-8") as file:
            found[family] = [(row["prompt"], text) for row in json.load(file) for text in row["completions"]]
    return found


def all_of(completions: dict[str, list[tuple[str, str]]]) -> Iterator[tuple[str, str]]:
    return itertools.chain.from_iterable(completions.values())


# Measured with this parser on the files above; no published figures exist for it.
MEASURED: dict[str, dict[str, int]] = {
    "base_val": {
        "lines": 7418,
        "kept": 6436,
        "implications": 6435,
        "heading": 17,
        "other_task": 889,
        "echoed_prompt": 71,
        "marker_only": 2,
        "duplicate": 3,
    },
    "base_val_prompt-long": {
        "lines": 17866,
        "kept": 15841,
        "implications": 15828,
        "heading": 25,
        "other_task": 1864,
        "echoed_prompt": 56,
        "duplicate": 78,
        "marker_only": 1,
        "unanswered_question": 1,
    },
    "base_val_prompt-rewrite": {
        "lines": 6731,
        "kept": 4356,
        "implications": 4353,
        "pairs": 1,
        "rejected": 3,
        "echoed_prompt": 382,
        "heading": 533,
        "other_task": 1049,
        "marker_only": 177,
        "duplicate": 181,
        "preamble": 31,
        "unanswered_question": 18,
        "choice": 4,
    },
    "base_val_prompt-self-qa": {
        "lines": 13835,
        "kept": 11231,
        "implications": 5702,
        "pairs": 5570,
        "rejected": 42,
        "echoed_prompt": 372,
        "unpaired_answer": 25,
        "other_task": 1587,
        "unanswered_question": 469,
        "duplicate": 122,
        "preamble": 1,
        "marker_only": 10,
        "heading": 14,
        "choice": 4,
    },
    "iter1_val": {"lines": 8777, "kept": 8758, "implications": 8756, "echoed_prompt": 19},
}


def test_real_completions_keep_their_counts(completions: dict[str, list[tuple[str, str]]]) -> None:
    assert sum(map(len, completions.values())) == 5250
    for family, rows in completions.items():
        counts: Counter[str] = Counter()
        for prompt, text in rows:
            parsed = parse_self_edit(text, prompt=prompt)
            assert parsed.kept + sum(parsed.dropped.values()) == count_lines(text)
            counts.update(parsed.dropped)
            counts.update({"lines": count_lines(text), "kept": parsed.kept, "rejected": parsed.edit is None})
            if parsed.edit is not None:
                counts["implications"] += len(parsed.edit.implications)
                counts["pairs"] += sum(i.answer is not None for i in parsed.edit.implications)
        assert {name: n for name, n in counts.items() if n} == MEASURED[family], family


def test_real_edits_parse_back_from_their_rendering(completions: dict[str, list[tuple[str, str]]]) -> None:
    for prompt, text in itertools.islice(all_of(completions), 0, None, 3):
        edit = parse_self_edit(text, prompt=prompt).edit
        if edit is not None:
            assert parse_self_edit(render(edit, one_line=True)).edit == edit
            assert parse_self_edit(render(edit, one_line=False)).edit == edit
            assert parse_self_edit(edit.model_dump_json()).edit == edit
