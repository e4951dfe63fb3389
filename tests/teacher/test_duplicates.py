from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher.duplicates import Seen

WORDS = [f"word{i}" for i in range(2_000)]


def jaccard(first: list[str], second: list[str]) -> float:
    grams = [{tuple(words[i : i + 5]) for i in range(len(words) - 4)} for words in (first, second)]
    return len(grams[0] & grams[1]) / len(grams[0] | grams[1])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The mill was opened in 1871 by Anton Keller.", "exact"),
        ("the mill  was opened in 1871 by Anton Keller", "exact"),
        ("The mill was opened in 1872 by Anton Keller.", None),
        ("The mill was opened.", None),
        ("", None),
    ],
)
def test_exact_duplicates_differ_in_case_spaces_and_final_punctuation_alone(text: str, expected: str | None) -> None:
    seen = Seen()
    assert seen.add("The mill was opened in 1871 by Anton Keller.") is None
    assert seen.add(text) == expected
    assert seen.add(text) == "exact"


def test_near_duplicates_are_those_above_a_similarity_of_0_8() -> None:
    """Against the exact Jaccard similarity of random texts with words exchanged; near the threshold either may come."""
    random_ = random.Random(0)
    wrong = {"near": 0, None: 0}
    counts = {"near": 0, None: 0}
    for _ in range(300):
        words = random_.choices(WORDS, k=random_.randint(40, 200))
        changed = list(words)
        for place in random_.sample(range(len(words)), random_.randint(1, 8)):
            changed[place] = "other"
        similarity = jaccard(words, changed)
        seen = Seen()
        assert seen.add(" ".join(words)) is None
        found = seen.add(" ".join(changed))
        expected = "near" if similarity >= 0.8 else None
        if abs(similarity - 0.8) > 0.05:
            counts[expected] += 1
            wrong[expected] += found != expected
    assert min(counts.values()) > 40
    assert wrong["near"] <= 0.05 * counts["near"]
    assert wrong[None] <= 0.08 * counts[None]


@given(st.lists(st.text(max_size=40), max_size=12))
def test_each_text_is_new_once_and_two_runs_agree(texts: list[str]) -> None:
    first, second = Seen(), Seen()
    found = [first.add(text) for text in texts]
    assert found == [second.add(text) for text in texts]
    assert [first.add(text) for text, was in zip(texts, found, strict=True) if was is None] == ["exact"] * found.count(
        None
    )
