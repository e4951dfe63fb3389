"""How varied the self-edits of a document are: distinct n-grams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def distinct_n(texts: Sequence[str], n: int) -> float | None:
    """Return the share of n-grams over all texts that are distinct, in (0, 1] (Li et al. 2016, arXiv 1510.03055).

    Args:
        texts: Whose words are taken together, in lower case; n-grams do not cross texts.
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
        words = text.casefold().split()
        grams += [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def mean_distinct(groups: Mapping[str, Sequence[str]], n: int) -> float | None:
    """Return the mean of `distinct_n` over documents: how alike the samples of one document are, not the documents.

    Args:
        groups: Texts by document id.
        n: Words of an n-gram, at least 1.
    """
    found = [value for texts in groups.values() if (value := distinct_n(texts, n)) is not None]
    return sum(found) / len(found) if found else None
