"""How varied the self-edits of a document are: distinct n-grams."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from evaluation.statistics import known_mean

_WORD = re.compile(r"\w+")
"""Runs of letters and digits: neither punctuation nor the list markers that lines begin with are words."""


def distinct_n(texts: Sequence[str], n: int) -> float | None:
    """Return the share of n-grams over all texts that are distinct, in (0, 1] (Li et al. 2016, arXiv 1510.03055).

    The share falls with the length of the texts, so only groups of about equal lengths compare.

    Args:
        texts: Whose words are taken together, without regard to case; n-grams do not cross texts.
        n: Words of an n-gram, at least 1.

    Returns:
        None where no text has n words.

    Raises:
        ValueError: `n` is below 1.
    """
    if n < 1:
        raise ValueError(f"distinct_n: got n = {n}, allowed is at least 1")
    grams: list[tuple[str, ...]] = []
    for text in texts:
        words = _WORD.findall(text.casefold())
        grams += [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def mean_distinct(groups: Mapping[str, Sequence[str]], n: int) -> float | None:
    """Return the mean of `distinct_n` over documents: how alike the samples of one document are, not the documents.

    Args:
        groups: Texts by document id; documents in which no text has n words are left out.
        n: Words of an n-gram, at least 1.

    Returns:
        A share in (0, 1]; None where no document has one.

    Raises:
        ValueError: `n` is below 1 and there is a document.
    """
    return known_mean(distinct_n(texts, n) for texts in groups.values())
