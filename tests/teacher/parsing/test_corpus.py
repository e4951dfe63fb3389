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
COLUMNS = (
    *("lines", "kept", "implications", "pairs", "rejected", "heading", "other_task", "echoed_prompt", "marker_only"),
    *("duplicate", "unanswered_question", "unpaired_answer", "preamble", "choice"),
)
MEASURED = {
    "base_val": (7418, 6436, 6435, 0, 0, 17, 889, 71, 2, 3, 0, 0, 0, 0),
    "base_val_prompt-long": (17866, 15841, 15828, 0, 0, 25, 1864, 56, 1, 78, 1, 0, 0, 0),
    "base_val_prompt-rewrite": (6731, 4356, 4353, 1, 3, 533, 1049, 382, 177, 181, 18, 0, 31, 4),
    "base_val_prompt-self-qa": (13835, 11231, 5702, 5570, 42, 14, 1587, 372, 10, 122, 469, 25, 1, 4),
    "iter1_val": (8777, 8758, 8756, 0, 0, 0, 0, 19, 0, 0, 0, 0, 0, 0),
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
        assert +counts == +Counter(dict(zip(COLUMNS, MEASURED[family], strict=True))), family


def test_real_edits_parse_back_from_their_rendering(completions: dict[str, list[tuple[str, str]]]) -> None:
    for prompt, text in itertools.islice(all_of(completions), 0, None, 3):
        edit = parse_self_edit(text, prompt=prompt).edit
        if edit is not None:
            assert parse_self_edit(render(edit, one_line=True)).edit == edit
            assert parse_self_edit(render(edit, one_line=False)).edit == edit
            assert parse_self_edit(edit.model_dump_json()).edit == edit
