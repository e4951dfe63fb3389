from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher.diversity import distinct_n, mean_distinct

WORDS = st.lists(st.sampled_from(["ab", "cd", "ef", "gh"]), max_size=8)
TEXTS = st.lists(WORDS.map(" ".join), max_size=5)
N = st.integers(1, 4)


def grams_in(text: str, n: int) -> int:
    return max(len(text.split()) - n + 1, 0)


@pytest.mark.parametrize(
    ("texts", "n", "share"),
    [
        (["the cat saw the cat"], 1, 3 / 5),
        (["the cat saw the cat"], 2, 3 / 4),
        (["the cat", "the cat"], 1, 2 / 4),
        (["the cat", "saw the"], 2, 2 / 2),  # "cat saw" would cross texts
        (["The cat.", "the CAT"], 2, 1 / 2),
        (["- A cat.\n- A dog."], 1, 3 / 4),  # list markers are no words
        (["- A cat.\n- A dog."], 2, 3 / 3),
        (["one two", "one"], 2, 1.0),
        (["one", "- ..."], 2, None),
        ([], 1, None),
    ],
)
def test_distinct_n_counts_distinct_runs_of_words(texts: list[str], n: int, share: float | None) -> None:
    assert distinct_n(texts, n) == share


@given(texts=TEXTS, n=N)
def test_distinct_n_is_a_share_whatever_the_order_and_case(texts: list[str], n: int) -> None:
    share, total = distinct_n(texts, n), sum(grams_in(text, n) for text in texts)
    assert (share is None) == (total == 0)
    if share is not None:
        assert 1 / total <= share <= 1.0
    assert distinct_n(texts[::-1], n) == share
    assert distinct_n([text.upper() for text in texts], n) == share


@given(texts=TEXTS.filter(lambda texts: any(texts)), copies=st.integers(1, 5))
def test_saying_the_same_again_divides_the_share(texts: list[str], copies: int) -> None:
    once = distinct_n(texts, 1)
    assert once is not None
    assert distinct_n(texts * copies, 1) == pytest.approx(once / copies)


@given(texts=TEXTS, n=N)
def test_words_that_nobody_shares_are_all_distinct(texts: list[str], n: int) -> None:
    numbered = [
        " ".join(f"{word}{place}x{i}" for place, word in enumerate(text.split())) for i, text in enumerate(texts)
    ]
    assert distinct_n(numbered, n) in (1.0, None)


@given(texts=TEXTS.filter(lambda texts: any(texts)), documents=st.integers(1, 5))
def test_mean_distinct_does_not_see_that_documents_are_alike(texts: list[str], documents: int) -> None:
    groups = {f"doc-{i}": texts for i in range(documents)}
    assert mean_distinct(groups, 1) == pytest.approx(distinct_n(texts, 1))


@given(groups=st.dictionaries(st.text(max_size=3), TEXTS, max_size=4), n=N)
def test_mean_distinct_lies_between_its_documents(groups: dict[str, list[str]], n: int) -> None:
    shares = [share for texts in groups.values() if (share := distinct_n(texts, n)) is not None]
    mean = mean_distinct(groups, n)
    assert (mean is None) == (not shares)
    if mean is not None:
        assert min(shares) - 1e-12 <= mean <= max(shares) + 1e-12


def test_mean_distinct_weighs_documents_alike_and_leaves_out_those_without_words() -> None:
    groups = {"long": ["a b c d", "a b c d"], "short": ["a"], "empty": ["-", ""]}
    assert mean_distinct(groups, 1) == pytest.approx((4 / 8 + 1) / 2)


@pytest.mark.parametrize("n", [0, -1])
def test_runs_without_a_word_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"got n = {n}"):
        distinct_n(["a"], n)
    with pytest.raises(ValueError, match=f"got n = {n}"):
        mean_distinct({"doc": ["a"]}, n)
